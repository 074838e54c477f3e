//! Equivalence classes: connects that no policy can tell apart, and one representative of each.
//!
//! An address's class is the set of address atoms that are true for it, a port's the set of port atoms. Prefixes form a
//! tree, so the longest match of an address tells its atoms: those of the prefix and of all prefixes around it. Prefixes
//! with the same atoms share a class, so that fifty thousand of them in ten destinations make about ten classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use writ_abi::Protocol;

use super::inputs::{AddressSet, Inputs, PortSet};
use super::spans::Spans;
use super::state::Approval;
use crate::config::Destination;
use crate::diagnostic::Diagnostic;

/// Number of an atom among the address atoms, or among the port atoms.
pub(crate) type AtomId = u32;

/// The most classes of a kind: projections are 16-bit.
const MOST_CLASSES: usize = u16::MAX as usize;

/// The classes of one generation.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    /// Address class by prefix; both default routes are there.
    pub v4: BTreeMap<Ipv4Net, u32>,
    /// Address class by prefix.
    pub v6: BTreeMap<Ipv6Net, u32>,
    /// Class of each of the 65,536 ports.
    pub ports: Vec<u16>,
    /// Path and `context.executable` of each class; class 0 is every executable that nothing names.
    pub executables: Vec<ExecutableClass>,
    pub(crate) address_classes: Vec<Class<IpAddr>>,
    pub(crate) port_classes: Vec<Class<u16>>,
    pub(crate) destinations: BTreeMap<String, DestinationAtoms>,
    /// By account.
    pub(crate) approvals: BTreeMap<String, BTreeSet<Approval>>,
    address_atoms: HashMap<AddressSet, AtomId>,
    port_atoms: HashMap<PortSet, AtomId>,
    /// Which addresses and ports each class has, once something has asked.
    spans: OnceLock<Spans>,
}

/// One class: the atoms that are true on it, sorted, and one of its members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Class<T> {
    pub(crate) atoms: Vec<AtomId>,
    pub(crate) representative: T,
}

/// One class of executables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecutableClass {
    /// The path; `None` for class 0.
    pub path: Option<String>,
    /// What `context.executable` says: the path, or `unlisted` where only an approval or grant names it.
    pub name: String,
}

impl ExecutableClass {
    /// What `context.executable` says to policies that ask this: a path that a grant names is listed for its account.
    pub(super) fn name_for(&self, inputs: &Inputs) -> &String {
        self.path.as_ref().filter(|path| inputs.executables.contains(*path)).unwrap_or(&self.name)
    }
}

/// What makes an endpoint a direct member of a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DestinationAtoms {
    pub(crate) address: AtomId,
    /// `None`: any port.
    pub(crate) port: Option<AtomId>,
    /// Empty: any protocol.
    pub(crate) protocols: Vec<Protocol>,
    /// The destination itself and everything it is in.
    pub(crate) groups: BTreeSet<String>,
}

impl Classes {
    /// The classes that these inputs and approvals need.
    pub(crate) fn build(
        inputs: &Inputs,
        destinations: &BTreeMap<String, Destination>,
        executables: &BTreeSet<String>,
        approvals: BTreeMap<String, BTreeSet<Approval>>,
    ) -> Result<Self, Box<Diagnostic>> {
        let mut classes = Self { approvals, ..Self::default() };
        for addresses in &inputs.addresses {
            classes.add_address_atom(addresses.clone());
        }
        for ports in &inputs.ports {
            classes.add_port_atom(ports.clone());
        }
        for name in members(&inputs.destinations, destinations) {
            let Some(destination) = destinations.get(&name) else { continue };
            let mut addresses = destination.addresses.clone();
            #[cfg(test)]
            if super::mutation::current() == super::mutation::Mutation::DestinationAddresses {
                addresses.clear();
            }
            addresses.sort_unstable();
            addresses.dedup();
            let address = classes.add_address_atom(addresses);
            let port = (!destination.ports.is_empty()).then(|| classes.add_port_atom(merged(&destination.ports)));
            let groups = ancestors(&name, destinations);
            let protocols = destination.protocols.clone();
            classes.destinations.insert(name, DestinationAtoms { address, port, protocols, groups });
        }
        for approval in classes.approvals.clone().values().flatten() {
            classes.add_address_atom(vec![IpNet::from(approval.address)]);
            classes.add_port_atom(vec![(approval.port, approval.port)]);
        }
        classes.class_addresses();
        classes.class_ports();
        classes.class_executables(executables, &inputs.executables);
        let most = classes.address_classes.len().max(classes.port_classes.len()).max(classes.executables.len());
        if most > MOST_CLASSES {
            let finding = Diagnostic::error(
                "too-many-classes",
                format!("the policies tell {most} kinds of addresses, ports or executables apart; {MOST_CLASSES} is the limit"),
            )
            .help("put addresses that are treated alike into one destination, and ports into ranges");
            return Err(Box::new(finding));
        }
        Ok(classes)
    }

    /// Which addresses and ports each class has.
    pub(crate) fn spans(&self) -> &Spans {
        self.spans.get_or_init(|| Spans::of(self))
    }

    /// What has been worked out about these classes does not hold any more: they are about to be others.
    pub(super) fn forget_spans(&mut self) {
        self.spans = OnceLock::new();
    }

    /// The number of an address atom that the classes were built with.
    pub(crate) fn address_atom_of(&self, addresses: &AddressSet) -> Option<AtomId> {
        self.address_atoms.get(addresses).copied()
    }

    /// The number of a port atom that the classes were built with.
    pub(crate) fn port_atom_of(&self, ports: &PortSet) -> Option<AtomId> {
        self.port_atoms.get(ports).copied()
    }

    /// Gives an address atom a number.
    pub(super) fn add_address_atom(&mut self, addresses: AddressSet) -> AtomId {
        let next = self.address_atoms.len() as AtomId;
        *self.address_atoms.entry(addresses).or_insert(next)
    }

    /// Gives a port atom a number.
    pub(super) fn add_port_atom(&mut self, ports: PortSet) -> AtomId {
        let next = self.port_atoms.len() as AtomId;
        *self.port_atoms.entry(ports).or_insert(next)
    }

    fn class_addresses(&mut self) {
        let mut v4: BTreeMap<(u128, u8), Vec<AtomId>> = BTreeMap::from([((0, 0), Vec::new())]);
        let mut v6 = v4.clone();
        for (addresses, atom) in &self.address_atoms {
            for prefix in addresses {
                let (family, bits) = match prefix {
                    IpNet::V4(net) => (&mut v4, u128::from(u32::from(net.network()))),
                    IpNet::V6(net) => (&mut v6, u128::from(net.network())),
                };
                family.entry((bits, prefix.prefix_len())).or_default().push(*atom);
            }
        }
        let mut known = HashMap::new();
        for ((bits, length), class) in
            classed(&v4, 32, &mut self.address_classes, &mut known, |bits| IpAddr::V4(Ipv4Addr::from(bits as u32)))
        {
            self.v4.extend(Ipv4Net::new(Ipv4Addr::from(bits as u32), length).ok().map(|net| (net, class)));
        }
        for ((bits, length), class) in
            classed(&v6, 128, &mut self.address_classes, &mut known, |bits| IpAddr::V6(Ipv6Addr::from(bits)))
        {
            self.v6.extend(Ipv6Net::new(Ipv6Addr::from(bits), length).ok().map(|net| (net, class)));
        }
        // A default route that longer prefixes cover whole is nobody's longest match; lookups still expect one.
        self.v4.entry(Ipv4Net::default()).or_insert(0);
        self.v6.entry(Ipv6Net::default()).or_insert(0);
    }

    fn class_ports(&mut self) {
        let mut switches: BTreeMap<u32, Vec<AtomId>> = BTreeMap::new();
        for (ports, atom) in &self.port_atoms {
            for (first, last) in merged(ports) {
                switches.entry(u32::from(first)).or_default().push(*atom);
                switches.entry(u32::from(last) + 1).or_default().push(*atom);
            }
        }
        let mut known: HashMap<Vec<AtomId>, u16> = HashMap::new();
        let mut on = BTreeSet::new();
        for port in 0..=u16::MAX {
            let switched = switches.get(&u32::from(port));
            for atom in switched.into_iter().flatten() {
                if !on.remove(atom) {
                    on.insert(*atom);
                }
            }
            let class = match (switched, self.ports.last()) {
                (None, Some(class)) => *class,
                _ => {
                    let atoms: Vec<AtomId> = on.iter().copied().collect();
                    *known.entry(atoms.clone()).or_insert_with(|| {
                        self.port_classes.push(Class { atoms, representative: port });
                        (self.port_classes.len() - 1) as u16
                    })
                }
            };
            self.ports.push(class);
        }
    }

    /// Classes for the `listed` executables; those that only grants ask for, or approvals, are `unlisted` to all others.
    fn class_executables(&mut self, listed: &BTreeSet<String>, asked: &BTreeSet<String>) {
        let unlisted = || super::UNLISTED.to_owned();
        let approved = self.approvals.values().flatten().filter_map(|approval| approval.executable.as_ref());
        let paths: BTreeSet<&String> =
            listed.iter().chain(asked).chain(approved).filter(|path| *path != super::UNLISTED).collect();
        self.executables = vec![ExecutableClass { path: None, name: unlisted() }];
        self.executables.extend(paths.into_iter().map(|path| ExecutableClass {
            path: Some(path.clone()),
            name: if listed.contains(path) { path.clone() } else { unlisted() },
        }));
    }
}

/// Sorted ranges with overlapping and adjacent ones joined, so that each port switches an atom once.
pub(super) fn merged(ports: &[(u16, u16)]) -> PortSet {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut joined: PortSet = Vec::new();
    for (first, last) in sorted {
        match joined.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// These destinations and every destination that is in one of them, directly or not.
pub(crate) fn members(of: &BTreeSet<String>, destinations: &BTreeMap<String, Destination>) -> BTreeSet<String> {
    destinations.keys().filter(|name| !ancestors(name, destinations).is_disjoint(of)).cloned().collect()
}

/// A destination and everything it is in.
pub(crate) fn ancestors(name: &str, destinations: &BTreeMap<String, Destination>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![name.to_owned()];
    while let Some(next) = pending.pop() {
        if let Some(destination) = destinations.get(&next) {
            pending.extend(destination.parents.iter().filter(|parent| !found.contains(*parent)).cloned());
        }
        found.insert(next);
    }
    found
}

/// A prefix on the path from the root to the one being looked at.
struct Open {
    prefix: (u128, u8),
    last: u128,
    atoms: Vec<AtomId>,
    /// First address not yet covered by a longer prefix; `None` when they cover it to its end.
    cursor: Option<u128>,
}

/// The class of every prefix that is the longest match of some address.
///
/// `prefixes` is in tree order (by first address, shorter first) and contains the default route.
fn classed(
    prefixes: &BTreeMap<(u128, u8), Vec<AtomId>>,
    width: u8,
    classes: &mut Vec<Class<IpAddr>>,
    known: &mut HashMap<Vec<AtomId>, u32>,
    address: impl Fn(u128) -> IpAddr,
) -> BTreeMap<(u128, u8), u32> {
    // The address that represents each prefix, if one has it as its longest match.
    let mut own: BTreeMap<(u128, u8), (Vec<AtomId>, u128)> = BTreeMap::new();
    let mut stack: Vec<Open> = Vec::new();
    let close = |stack: &mut Vec<Open>, own: &mut BTreeMap<_, _>| {
        if let Some(done) = stack.pop() {
            if let Some(cursor) = done.cursor {
                own.entry(done.prefix).or_insert((done.atoms, cursor));
            }
            if let Some(parent) = stack.last_mut() {
                parent.cursor = done.last.checked_add(1).filter(|next| *next <= parent.last);
            }
        }
    };
    for ((first, length), atoms) in prefixes {
        while stack.last().is_some_and(|open| open.last < *first) {
            close(&mut stack, &mut own);
        }
        let mut all = atoms.clone();
        if let Some(parent) = stack.last() {
            if let Some(cursor) = parent.cursor.filter(|cursor| cursor < first) {
                own.entry(parent.prefix).or_insert((parent.atoms.clone(), cursor));
            }
            all.extend(&parent.atoms);
        }
        all.sort_unstable();
        all.dedup();
        let hosts = width - length;
        let span = if hosts >= 128 { u128::MAX } else { (1u128 << hosts) - 1 };
        stack.push(Open { prefix: (*first, *length), last: first | span, atoms: all, cursor: Some(*first) });
    }
    while !stack.is_empty() {
        close(&mut stack, &mut own);
    }
    let mut found = BTreeMap::new();
    for (prefix, (atoms, representative)) in own {
        let class = *known.entry(atoms.clone()).or_insert_with(|| {
            classes.push(Class { atoms, representative: address(representative) });
            (classes.len() - 1) as u32
        });
        found.insert(prefix, class);
    }
    found
}

impl Classes {
    /// Whether some approval is for one executable only, so that the executable must be looked at.
    pub(crate) fn approves_executables(&self) -> bool {
        self.approvals.values().flatten().any(|approval| approval.executable.is_some())
    }

    /// The approvals of an account that the classes tell apart.
    pub(crate) fn approvals_of(&self, account: &str) -> Option<&BTreeSet<Approval>> {
        self.approvals.get(account)
    }
}
