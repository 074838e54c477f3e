//! Prefixes cut into ranges, and the ranges laid out as the tree that a connect searches (see `writ_abi::class_v4`).

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use writ_abi::{FAN_V4, FAN_V6, LINK_CLASS, NodeV4, NodeV6};

/// The first address of a range, and its class or what is known below it.
type Range = (u128, u32);

/// The tree of these prefixes, its root first. Addresses that no prefix holds have class 0.
pub fn nodes_v4(prefixes: &BTreeMap<Ipv4Net, u32>) -> Vec<NodeV4> {
    let spans = prefixes.iter().map(|(net, class)| (u32::from(net.network()), u32::from(net.broadcast()), *class));
    let spans = spans.map(|(first, last, class)| (u128::from(first), u128::from(last), class));
    tree(ranges(spans, u128::from(u32::MAX)), FAN_V4, |ranges| {
        let firsts = padded(ranges, FAN_V4).map(|(first, _)| first as u32);
        let links = padded(ranges, FAN_V4).map(|(_, link)| link);
        let mut node: NodeV4 = [0; 2 * FAN_V4];
        node.iter_mut().zip(firsts.chain(links)).for_each(|(to, from)| *to = from);
        node
    })
}

/// The same for IPv6.
pub fn nodes_v6(prefixes: &BTreeMap<Ipv6Net, u32>) -> Vec<NodeV6> {
    let spans = prefixes.iter().map(|(net, class)| (net.network().to_bits(), net.broadcast().to_bits(), *class));
    tree(ranges(spans, u128::MAX), FAN_V6, |ranges| {
        let firsts = padded(ranges, FAN_V6).flat_map(|(first, _)| [(first >> 64) as u64, first as u64]);
        let links: Vec<u64> = padded(ranges, FAN_V6).map(|(_, link)| u64::from(link)).collect();
        let links = links.chunks(2).map(|pair| pair.iter().rev().fold(0, |word, link| word << 32 | link));
        let mut node: NodeV6 = [0; 2 * FAN_V6 + FAN_V6 / 2];
        node.iter_mut().zip(firsts.chain(links)).for_each(|(to, from)| *to = from);
        node
    })
}

/// As many as a node has room for: behind the last, an address that only the greatest reaches, with the link of the last.
fn padded(ranges: &[Range], fan: usize) -> impl Iterator<Item = Range> {
    let last = ranges.last().map_or(LINK_CLASS, |(_, link)| *link);
    ranges.iter().copied().chain(std::iter::repeat((u128::MAX, last))).take(fan)
}

/// Cuts nested spans (first and last address, class; outer before inner, as prefixes sort) into ranges from 0 to `most`.
fn ranges(spans: impl Iterator<Item = (u128, u128, u32)>, most: u128) -> Vec<Range> {
    let mut ranges = Vec::new();
    // The spans around the current one, with what holds outside all of them.
    let mut around = vec![(most, 0)];
    begin(&mut ranges, 0, 0);
    for (first, last, class) in spans {
        end(&mut ranges, &mut around, first);
        begin(&mut ranges, first, class);
        around.push((last, class));
    }
    end(&mut ranges, &mut around, most);
    ranges
}

/// Ends the spans whose last address lies before this one: what was around them goes on.
fn end(ranges: &mut Vec<Range>, around: &mut Vec<(u128, u32)>, before: u128) {
    while let Some((last, _)) = around.pop_if(|(last, _)| *last < before) {
        let outer = around.last().map_or(0, |(_, class)| *class);
        begin(ranges, last + 1, outer);
    }
}

/// Begins a range; one that would have no address is none, and one that goes on as before goes on.
fn begin(ranges: &mut Vec<Range>, first: u128, class: u32) {
    ranges.pop_if(|(begun, _)| *begun == first);
    if ranges.last().is_none_or(|(_, before)| *before != class) {
        ranges.push((first, class));
    }
}

/// Lays ranges out as nodes, level by level, the root first.
fn tree<N>(ranges: Vec<Range>, fan: usize, node: impl Fn(&[Range]) -> N) -> Vec<N> {
    // From the leaves up: above each level one with an entry for each of its nodes.
    let mut levels = vec![ranges];
    while let Some(below) = levels.last().filter(|level| level.len() > fan) {
        let above = (0u32..).zip(below.chunks(fan));
        levels.push(above.filter_map(|(place, node)| Some((node.first()?.0, place))).collect());
    }
    let mut nodes = Vec::new();
    let mut below = 0;
    for (height, level) in levels.iter().enumerate().rev() {
        below += level.len().div_ceil(fan) as u32;
        let linked = |(first, to): &Range| (*first, if height == 0 { LINK_CLASS | to } else { below + to });
        let level: Vec<Range> = level.iter().map(linked).collect();
        nodes.extend(level.chunks(fan).map(&node));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use writ_abi::{Address, Tables as _, class_v4, class_v6};

    use super::*;
    use crate::table::Generation;

    /// A generation's trees.
    struct Trees<'a>(&'a Generation, Vec<NodeV4>, Vec<NodeV6>);

    impl<'a> Trees<'a> {
        fn of(generation: &'a Generation) -> Self {
            Self(generation, nodes_v4(&generation.v4), nodes_v6(&generation.v6))
        }

        /// The class that the tree finds, and the class of the longest prefix.
        fn both(&self, address: IpAddr) -> (Option<u32>, Option<u32>) {
            let Self(generation, v4, v6) = self;
            let judged = Address::from(address);
            let found = match address {
                IpAddr::V4(address) => class_v4(|at| v4.get(at as usize), address.to_bits()),
                IpAddr::V6(_) => class_v6(|at| v6.get(at as usize), judged.halves()),
            };
            (found, generation.address_class(&judged))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_address_finds_the_class_of_its_longest_prefix(
            v4 in prop::collection::btree_map((any::<u32>(), 0u8..=32), 0u32..40, 0..600),
            v6 in prop::collection::btree_map((any::<u128>(), 0u8..=128), 0u32..40, 0..200),
            near in prop::collection::vec((any::<prop::sample::Index>(), -1i8..=1, any::<bool>()), 40),
        ) {
            let mut generation = Generation::default();
            generation.v4.insert(Ipv4Net::default(), 7);
            generation.v6.insert(Ipv6Net::default(), 7);
            for ((bits, length), class) in v4 {
                // Half of them close together, so that they nest.
                let bits = if class % 2 == 0 { bits & 0xff | 0x0a00_0000 } else { bits };
                generation.v4.insert(Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length).trunc(), class);
            }
            for ((bits, length), class) in v6 {
                let bits = if class % 2 == 0 { bits & 0xffff | 0xfd << 120 } else { bits };
                let net = Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length).trunc();
                if net.addr().to_ipv4_mapped().is_none() {
                    generation.v6.insert(net, class);
                }
            }
            let trees = Trees::of(&generation);
            // At, one before and one after both ends of prefixes.
            for (which, step, end) in near {
                let net = *which.get(&generation.v4.keys().collect::<Vec<_>>());
                let at = if end { net.broadcast() } else { net.network() }.to_bits();
                let (found, longest) = trees.both(Ipv4Addr::from_bits(at.wrapping_add_signed(step.into())).into());
                prop_assert_eq!(found, longest);
                let net = *which.get(&generation.v6.keys().collect::<Vec<_>>());
                let at = if end { net.broadcast() } else { net.network() }.to_bits();
                let address = Ipv6Addr::from_bits(at.wrapping_add_signed(step.into()));
                if address.to_ipv4_mapped().is_none() {
                    let (found, longest) = trees.both(address.into());
                    prop_assert_eq!(found, longest);
                }
            }
        }
    }

    #[test]
    fn the_first_and_the_last_address_are_found_and_a_missing_node_is_no_class() {
        let mut generation = Generation::default();
        generation.v4.insert(Ipv4Net::default(), 1);
        for last in 0..=255 {
            let host = Ipv4Addr::new(255, 255, 255, last);
            generation.v4.insert(Ipv4Net::new_assert(host, 32), 2 + u32::from(last));
        }
        generation.v6.insert(Ipv6Net::default(), 1);
        generation.v6.insert(Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::MAX), 128), 9);
        let trees = Trees::of(&generation);
        for address in ["0.0.0.0", "255.255.254.255", "255.255.255.0", "255.255.255.254", "255.255.255.255"] {
            let (found, longest) = trees.both(address.parse().unwrap());
            assert_eq!(found, longest, "{address}");
            assert!(found.is_some());
        }
        for address in
            ["::", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        {
            let (found, longest) = trees.both(address.parse().unwrap());
            assert_eq!(found, longest, "{address}");
        }
        assert_eq!(class_v4(|_| None, 1), None);
        let nodes = nodes_v4(&generation.v4);
        assert_eq!(class_v4(|at| nodes.get(at as usize).filter(|_| at == 0), u32::MAX), None);
    }

    #[test]
    fn ten_thousand_prefixes_are_four_nodes_deep() {
        let nets =
            (0..10_000u32).map(|index| Ipv4Net::new_assert(Ipv4Addr::from_bits(index.wrapping_mul(0x9e37_79b1)), 32));
        let prefixes: BTreeMap<Ipv4Net, u32> = nets.zip(1..).collect();
        let nodes = nodes_v4(&prefixes);
        assert!(nodes.len() < 1_400, "{}", nodes.len());
        let depth = std::cell::Cell::new(0);
        let found = class_v4(
            |at| {
                depth.set(depth.get() + 1);
                nodes.get(at as usize)
            },
            0x9e37_79b1,
        );
        assert_eq!((found, depth.get()), (Some(2), 4));
    }
}
