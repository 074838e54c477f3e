//! Where a grant leads: a declared destination, or one spelled out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use writ_abi::Protocol;

/// A grant's destination. Its text is `NAME` or `ADDRESS[/LEN]:PORT[/PROTOCOL]`, an IPv6 address in brackets; without
/// a protocol it is TCP alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GrantDestination {
    /// A declared destination.
    Named(String),
    /// Addresses, one port, one protocol.
    Endpoint {
        /// A prefix, truncated to its network, in the form that decisions use: IPv4-mapped addresses are IPv4, and the
        /// unspecified addresses are loopback.
        addresses: IpNet,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
    },
}

/// Why a text is not a destination.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DestinationError {
    /// Neither form.
    #[error("`{0}` is neither a destination's name nor ADDRESS[/LEN]:PORT[/PROTOCOL]")]
    Form(String),
    /// An IPv6 address without brackets: its last group could be the port.
    #[error("an IPv6 address needs brackets: `[{0}]:PORT`")]
    Brackets(String),
    /// Not an address, or not a prefix length of its family.
    #[error("`{0}` is not an IP address or prefix")]
    Address(String),
    /// The address lies inside the prefix but does not begin it: one of both is not meant.
    #[error("`{given}` has bits beyond its prefix: write `{network}`, or the address without a length")]
    HostBits {
        /// As written.
        given: String,
        /// The prefix it lies in.
        network: String,
    },
    /// A prefix around the IPv4-mapped range would silently cover no IPv4 address.
    #[error("`{0}` spans IPv4-mapped and other addresses: write the IPv4 prefix itself")]
    Mapped(String),
    /// Not a port.
    #[error("`{0}` is not a port from 1 to 65535")]
    Port(String),
    /// Not a protocol.
    #[error("`{0}` is not a protocol: `tcp` or `udp`")]
    Protocol(String),
}

impl FromStr for GrantDestination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let form = || DestinationError::Form(text.to_owned());
        if is_name(text) {
            return Ok(Self::Named(text.to_owned()));
        }
        let (address, length, rest) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (inside, outside) = bracketed.split_once(']').ok_or_else(form)?;
                let (length_outside, rest) = outside.split_once(':').ok_or_else(form)?;
                match (inside.split_once('/'), length_outside.strip_prefix('/')) {
                    (Some((address, length)), None) if length_outside.is_empty() => (address, Some(length), rest),
                    (None, Some(length)) => (inside, Some(length), rest),
                    (None, None) if length_outside.is_empty() => (inside, None, rest),
                    _ => return Err(form()),
                }
            }
            None => {
                let (prefix, rest) = text.split_once(':').ok_or_else(form)?;
                if rest.contains(':') {
                    return Err(DestinationError::Brackets(text.to_owned()));
                }
                match prefix.split_once('/') {
                    Some((address, length)) => (address, Some(length), rest),
                    None => (prefix, None, rest),
                }
            }
        };
        let (port, protocol) = match rest.split_once('/') {
            Some((port, protocol)) => (port, Some(protocol)),
            None => (rest, None),
        };
        Ok(Self::Endpoint {
            addresses: prefix(address, length)?,
            port: parse_port(port)?,
            protocol: parse_protocol(protocol)?,
        })
    }
}

impl fmt::Display for GrantDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Endpoint { addresses, port, protocol } => {
                match addresses {
                    IpNet::V4(net) => write!(f, "{}", net.addr())?,
                    IpNet::V6(net) => write!(f, "[{}]", net.addr())?,
                }
                if addresses.prefix_len() < addresses.max_prefix_len() {
                    write!(f, "/{}", addresses.prefix_len())?;
                }
                write!(f, ":{port}/{}", protocol.name())
            }
        }
    }
}

impl TryFrom<String> for GrantDestination {
    type Error = DestinationError;

    fn try_from(text: String) -> Result<Self, DestinationError> {
        text.parse()
    }
}

impl From<GrantDestination> for String {
    fn from(destination: GrantDestination) -> Self {
        destination.to_string()
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        // A bare address is a destination that lacks its port, not a name.
        && text.parse::<IpAddr>().is_err()
}

/// Digits only: `u16::from_str` also takes a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn parse_port(text: &str) -> Result<u16, DestinationError> {
    number(text).filter(|port| *port != 0).ok_or_else(|| DestinationError::Port(text.to_owned()))
}

fn parse_protocol(text: Option<&str>) -> Result<Protocol, DestinationError> {
    match text {
        None | Some("tcp") => Ok(Protocol::Tcp),
        Some("udp") => Ok(Protocol::Udp),
        Some(other) => Err(DestinationError::Protocol(other.to_owned())),
    }
}

fn prefix(address: &str, length: Option<&str>) -> Result<IpNet, DestinationError> {
    let written = || length.map_or_else(|| address.to_owned(), |length| format!("{address}/{length}"));
    let malformed = || DestinationError::Address(written());
    let address: IpAddr = address.parse().map_err(|_| malformed())?;
    let Some(length) = length else { return Ok(host(address)) };
    let length: u8 = number(length).ok_or_else(malformed)?;
    let given = IpNet::new(address, length).map_err(|_| malformed())?;
    let net = given.trunc();
    if net != given {
        return Err(DestinationError::HostBits { given: written(), network: net.to_string() });
    }
    match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len()) {
            (Some(v4), 96..=128) => {
                let net = Ipv4Net::new(v4, v6.prefix_len() - 96).map_err(|_| malformed())?;
                Ok(if net.prefix_len() == 32 { host(IpAddr::V4(v4)) } else { IpNet::V4(net) })
            }
            (_, 128) => Ok(host(IpAddr::V6(v6.addr()))),
            // `::/0` and its like are plainly about IPv6.
            (_, 64..=95) if v6.contains(&MAPPED) => Err(DestinationError::Mapped(written())),
            _ => Ok(net),
        },
        IpNet::V4(v4) if v4.prefix_len() == 32 => Ok(host(IpAddr::V4(v4.addr()))),
        IpNet::V4(_) => Ok(net),
    }
}

const MAPPED: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();

/// One address as decisions see it: a connect to an unspecified address reaches loopback.
fn host(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Net::from(Ipv4Addr::LOCALHOST).into(),
        IpAddr::V4(v4) => Ipv4Net::from(v4).into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Net::from(Ipv6Addr::LOCALHOST).into(),
        IpAddr::V6(v6) => Ipv6Net::from(v6).into(),
    }
}
