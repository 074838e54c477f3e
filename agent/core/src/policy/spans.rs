//! Which addresses and ports each class has, whatever its number: what a row means without the layout it was made in.

use std::collections::{BTreeMap, HashMap};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use super::classes::Classes;
use super::row::{PROTOCOLS, Projection, Row, RowCell};

/// How many prefixes of a class are kept to name it by.
const MOST_NAMES: usize = 4;

/// An address: IPv4 before IPv6.
pub(crate) type Place = (u8, u128);

/// The addresses and ports of classes as runs: each goes on to the next one's start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    /// First address and class of each run; IPv4, then IPv6, each from its first address.
    pub(crate) addresses: Vec<(Place, u32)>,
    /// First port and class of each run.
    pub(crate) ports: Vec<(u16, u16)>,
    /// The first prefixes of each address class, shorter ones before those inside them.
    pub(crate) prefixes: HashMap<u32, Vec<IpNet>>,
}

impl Spans {
    pub(super) fn of(classes: &Classes) -> Self {
        let mut spans = Self::default();
        let v4 = |net: &Ipv4Net| (u128::from(u32::from(net.network())), u128::from(u32::from(net.broadcast())));
        let v6 = |net: &Ipv6Net| (u128::from(net.network()), u128::from(net.broadcast()));
        runs(&mut spans.addresses, 4, &classes.v4, v4);
        runs(&mut spans.addresses, 6, &classes.v6, v6);
        let v4 = classes.v4.iter().map(|(net, class)| (IpNet::V4(*net), *class));
        for (net, class) in v4.chain(classes.v6.iter().map(|(net, class)| (IpNet::V6(*net), *class))) {
            let names = spans.prefixes.entry(class).or_default();
            if names.len() < MOST_NAMES {
                names.push(net);
            }
        }
        for (port, class) in (0..=u16::MAX).zip(&classes.ports) {
            if spans.ports.last().is_none_or(|(_, last)| last != class) {
                spans.ports.push((port, *class));
            }
        }
        spans
    }
}

/// The runs of prefixes in tree order (by first address, shorter first), of which the longest that has an address counts.
fn runs<N>(found: &mut Vec<(Place, u32)>, family: u8, prefixes: &BTreeMap<N, u32>, ends: impl Fn(&N) -> (u128, u128)) {
    let mut emit = |at: u128, class: u32| match found.last_mut() {
        Some((last, known)) if *last == (family, at) => *known = class,
        Some(((of, _), known)) if *of == family && *known == class => {}
        _ => found.push(((family, at), class)),
    };
    let mut around: Vec<(u128, u32)> = Vec::new();
    let leave = |around: &mut Vec<(u128, u32)>, emit: &mut dyn FnMut(u128, u32)| {
        let (last, _) = around.pop()?;
        let next = last.checked_add(1)?;
        let (_, class) = around.last().filter(|(last, _)| next <= *last)?;
        emit(next, *class);
        Some(())
    };
    for (prefix, class) in prefixes {
        let (first, last) = ends(prefix);
        while around.last().is_some_and(|(last, _)| *last < first) {
            leave(&mut around, &mut emit);
        }
        emit(first, *class);
        around.push((last, *class));
    }
    while !around.is_empty() {
        leave(&mut around, &mut emit);
    }
}

/// Numbers that do not depend on how classes are numbered: by first appearance.
#[derive(Default)]
struct Order {
    number: Vec<Option<u32>>,
    met: Vec<usize>,
}

impl Order {
    fn of(&mut self, class: impl Into<usize>) -> u32 {
        let class = class.into();
        if self.number.len() <= class {
            self.number.resize(class + 1, None);
        }
        let Some(number) = self.number.get_mut(class) else { return 0 };
        *number.get_or_insert_with(|| {
            self.met.push(class);
            (self.met.len() - 1) as u32
        })
    }
}

impl Row {
    /// The stance's digest: what the row answers and why, for every executable, address, port and protocol. Rows that were
    /// made over different classes and answer alike have the same digest.
    pub fn digest(&self, classes: &Classes) -> String {
        let spans = classes.spans();
        let mut hash = Sha256::new();
        let projected = |projection: &Projection, class: usize| projection.of.get(class).copied().unwrap_or(0);

        let mut addresses = Order::default();
        let mut last = None;
        for ((family, at), class) in &spans.addresses {
            let number = addresses.of(projected(&self.addresses, *class as usize));
            if last != Some((*family, number)) {
                hash.update([b'a', *family]);
                hash.update(at.to_le_bytes());
                hash.update(number.to_le_bytes());
                last = Some((*family, number));
            }
        }
        let mut ports = Order::default();
        let mut last = None;
        for (at, class) in &spans.ports {
            let number = ports.of(projected(&self.ports, usize::from(*class)));
            if last != Some(number) {
                hash.update([b'p', 0]);
                hash.update(at.to_le_bytes());
                hash.update(number.to_le_bytes());
                last = Some(number);
            }
        }
        let mut executables = Order::default();
        let unlisted = executables.of(projected(&self.executables, 0));
        let listed = classes.executables.iter().enumerate();
        let listed: BTreeMap<&String, usize> =
            listed.filter_map(|(class, executable)| Some((executable.path.as_ref()?, class))).collect();
        for (path, class) in listed {
            let number = executables.of(projected(&self.executables, class));
            if number != unlisted {
                hash.update([b'x', 0]);
                hash.update((path.len() as u64).to_le_bytes());
                hash.update(path.as_bytes());
                hash.update(number.to_le_bytes());
            }
        }

        let (width, depth) = (self.addresses.count as usize, self.ports.count as usize);
        let block = PROTOCOLS.len() * 2;
        let mut explanations = Order::default();
        let mut cell = |hash: &mut Sha256, cell: &RowCell| {
            hash.update([cell.verdict as u8, cell.would as u8, cell.reason as u8]);
            hash.update(explanations.of(cell.explanation as usize).to_le_bytes());
        };
        hash.update(b"c");
        for executable in &executables.met {
            for address in &addresses.met {
                for port in &ports.met {
                    let index = (executable * width + address) * depth + port;
                    let cells = self.cells.get(index * block..(index + 1) * block).unwrap_or_default();
                    cells.iter().for_each(|found| cell(&mut hash, found));
                }
            }
        }
        hash.update(b"f");
        self.families.iter().for_each(|found| cell(&mut hash, found));
        for explanation in &explanations.met {
            hash.update(format!("{:?}\n", self.explanations.get(*explanation)));
        }
        super::bundle::named(hash)
    }
}
