//! Addresses, ports and protocols as written in destinations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use writ_abi::Protocol;

use super::fault::{Fault, suggest};
use super::section::Scalar;

/// A prefix as written (IPv4-mapped IPv6 as IPv4) and its network; they differ where host bits were set.
pub(super) struct Prefix {
    pub(super) written: IpNet,
    pub(super) network: IpNet,
}

/// Parses an address or a CIDR prefix.
pub(super) fn prefix(text: &str) -> Result<Prefix, Fault> {
    let parsed = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| not_an_address(text))?,
    };
    let written = unmapped(parsed);
    Ok(Prefix { written, network: written.trunc() })
}

fn not_an_address(text: &str) -> Fault {
    let fault = Fault::new("bad-address", format!("`{text}` is neither an address nor a prefix"));
    let (address, rest) = text.split_once('/').unwrap_or((text, ""));
    if address.contains('%') {
        return fault.help("leave the zone (`%…`) out: addresses are judged without it");
    }
    if address.parse::<IpAddr>().is_ok() {
        let longest = if address.contains(':') { 128 } else { 32 };
        return fault.help(format!("`/{rest}` is not a prefix length from 0 to {longest}"));
    }
    if address.chars().any(|c| c.is_ascii_alphabetic()) && !address.contains(':') {
        return fault.help("a host name is no address, and `names` are not implemented yet: write its addresses");
    }
    fault.help("write e.g. \"10.20.0.0/16\", \"192.0.2.7\" or \"fd00:20::/48\"")
}

/// The IPv4 prefix that an IPv4-mapped IPv6 prefix means: the kernel side knows such addresses as IPv4 only.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let (Some(v4), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) else { return net };
    Ipv4Net::new(v4, length).map_or(net, IpNet::V4)
}

/// The address that is judged when a program connects to this one: IPv4-mapped IPv6 is IPv4, unspecified is loopback.
pub fn judged_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    }
}

/// Parses a NAT64 prefix: IPv6 with 96 bits, since only there the IPv4 address is the last four bytes.
pub(super) fn nat64(text: &str) -> Result<(Ipv6Net, bool), Fault> {
    match text.parse::<Ipv6Net>() {
        Ok(net) if net.prefix_len() == 96 => Ok((net.trunc(), net.trunc() != net)),
        Ok(net) => Err(Fault::new("bad-nat64", format!("`{text}` has {} bits, not 96", net.prefix_len()))
            .help("only /96 prefixes are judged as IPv4, e.g. \"64:ff9b::/96\"")),
        Err(_) => {
            Err(Fault::new("bad-nat64", format!("`{text}` is not an IPv6 prefix")).help("write e.g. \"64:ff9b::/96\""))
        }
    }
}

/// Parses a port (`5432`) or an inclusive range (`"5000-5010"`).
pub(super) fn ports(value: &Scalar<'_>) -> Option<Result<(u16, u16), Fault>> {
    Some(match value {
        Scalar::Number(number) => u16::try_from(*number)
            .map(|port| (port, port))
            .map_err(|_| Fault::new("bad-port", format!("`{number}` is not a port")).help("ports are 0 to 65535")),
        Scalar::Text(text) => port_range(text),
    })
}

fn port_range(text: &str) -> Result<(u16, u16), Fault> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let port = |digits: &str| {
        let digits = digits.trim();
        // `u16::from_str` takes "+5".
        digits.parse::<u16>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match (port(from), port(to)) {
        (Some(from), Some(to)) if from <= to => Ok((from, to)),
        (Some(from), Some(to)) => {
            Err(Fault::new("bad-port", format!("`{text}` ends before it starts"))
                .help(format!("write \"{to}-{from}\"")))
        }
        _ => Err(Fault::new("bad-port", format!("`{text}` is neither a port nor a range of ports"))
            .help("write e.g. 5432 or \"5000-5010\"; ports are 0 to 65535")),
    }
}

/// Parses `tcp` or `udp`.
pub(super) fn protocol(text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ if text.eq_ignore_ascii_case("tcp") || text.eq_ignore_ascii_case("udp") => {
            Err(Fault::new("bad-protocol", format!("`{text}` is not a protocol")).help(suggest(text, ["tcp", "udp"])))
        }
        _ => Err(Fault::new(
            "bad-protocol",
            format!("`{text}` is not judged at connect: a destination has `tcp` and `udp` only"),
        )
        .help("other protocols need a policy for Action::\"open-socket\" (context.family)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_prefixes_are_ipv4() {
        for (text, network) in [
            ("10.20.0.0/16", "10.20.0.0/16"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00:20::/48", "fd00:20::/48"),
        ] {
            assert_eq!(prefix(text).unwrap().network.to_string(), network, "{text}");
        }
    }

    #[test]
    fn a_prefix_wider_than_the_mapped_range_stays_ipv6() {
        assert_eq!(prefix("::ffff:0:0/95").unwrap().network.to_string(), "::fffe:0:0/95");
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_the_reason() {
        for (text, help) in [
            ("10.0.0.0/33", "prefix length"),
            ("fe80::1%eth0", "zone"),
            ("db.example.internal", "host name"),
            ("10.0.0", "write e.g."),
            ("", "write e.g."),
            ("010.0.0.1", "write e.g."),
        ] {
            let fault = prefix(text).err().unwrap();
            assert!(fault.help.as_deref().unwrap().contains(help), "{text}: {fault:?}");
        }
    }

    #[test]
    fn port_ranges_are_inclusive_and_ordered() {
        assert_eq!(port_range("5000-5010"), Ok((5000, 5010)));
        assert_eq!(port_range(" 1 - 2 "), Ok((1, 2)));
        assert_eq!(port_range("443"), Ok((443, 443)));
        assert_eq!(port_range("5010-5000").unwrap_err().help.as_deref(), Some("write \"5000-5010\""));
        for text in ["", "-", "1-", "-1", "65536", "http", "+5", "1-2-3"] {
            assert_eq!(port_range(text).unwrap_err().code, "bad-port", "{text}");
        }
    }

    #[test]
    fn the_unspecified_addresses_are_judged_as_loopback() {
        for (address, judged) in
            [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::ffff:0.0.0.0", "127.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(judged_as(address.parse().unwrap()).to_string(), judged, "{address}");
        }
    }
}
