//! Which destinations an endpoint is in: found by the prefixes around its address, not by reading every destination.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use writ_abi::Protocol;

use super::classes::ancestors;
use crate::config::Destination;

/// Destinations by prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    by_prefix: HashMap<IpNet, Vec<String>>,
    /// Lengths of prefixes that occur: of IPv4, of IPv6.
    lengths: [BTreeSet<u8>; 2],
}

impl Places {
    pub(crate) fn of(destinations: &BTreeMap<String, Destination>) -> Self {
        let mut places = Self::default();
        for destination in destinations.values() {
            for prefix in &destination.addresses {
                let [v4, v6] = &mut places.lengths;
                let lengths = if prefix.addr().is_ipv4() { v4 } else { v6 };
                lengths.insert(prefix.prefix_len());
                places.by_prefix.entry(prefix.trunc()).or_default().push(destination.name.clone());
            }
        }
        places
    }

    /// The destinations that an endpoint, its address in canonical form, is in, parents included; of the destinations that
    /// this was made of.
    pub(crate) fn groups(
        &self,
        destinations: &BTreeMap<String, Destination>,
        ip: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> BTreeSet<String> {
        let [v4, v6] = &self.lengths;
        let lengths = if ip.is_ipv4() { v4 } else { v6 };
        let around = lengths.iter().filter_map(|length| self.by_prefix.get(&IpNet::new(ip, *length).ok()?.trunc()));
        around
            .flatten()
            .filter_map(|name| destinations.get(name))
            .filter(|destination| {
                destination.ports.is_empty()
                    || destination.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
            })
            .filter(|destination| destination.protocols.is_empty() || destination.protocols.contains(&protocol))
            .flat_map(|destination| ancestors(&destination.name, destinations))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(name: &str, addresses: &[&str], ports: &[(u16, u16)], parents: &[&str]) -> (String, Destination) {
        let destination = Destination {
            name: name.to_owned(),
            addresses: addresses.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            names: Vec::new(),
            ports: ports.to_vec(),
            protocols: vec![Protocol::Tcp],
            parents: parents.iter().map(|name| (*name).to_owned()).collect(),
            at: None,
        };
        (name.to_owned(), destination)
    }

    #[test]
    fn every_prefix_around_an_address_counts_and_their_parents_do() {
        let destinations = BTreeMap::from([
            destination("all", &["0.0.0.0/0", "::/0"], &[], &[]),
            destination("ten", &["10.0.0.0/8", "10.1.0.0/16"], &[(443, 443), (5000, 5010)], &["inside"]),
            destination("host", &["10.1.2.3/32", "fd00::1/128"], &[], &["inside", "all"]),
        ]);
        let places = Places::of(&destinations);
        let groups = |ip: &str, port, protocol| {
            places.groups(&destinations, ip.parse().unwrap(), port, protocol).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(groups("10.1.2.3", 5005, Protocol::Tcp), ["all", "host", "inside", "ten"]);
        assert_eq!(groups("10.1.2.3", 80, Protocol::Tcp), ["all", "host", "inside"]);
        assert_eq!(groups("10.9.9.9", 443, Protocol::Tcp), ["all", "inside", "ten"]);
        assert_eq!(groups("192.0.2.1", 443, Protocol::Tcp), ["all"]);
        assert_eq!(groups("fd00::1", 1, Protocol::Tcp), ["all", "host", "inside"]);
        assert_eq!(groups("10.1.2.3", 443, Protocol::Udp), [""; 0]);
    }
}
