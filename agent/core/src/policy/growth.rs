//! Classes that grow while they are in use: what a grant or approval asks splits the classes it cuts, and nothing else moves.
//!
//! Every new class is a part of one that was there ([`Growth`] says of which), so a row made before it answers for both
//! alike: its projections are read at the class it was part of. Atoms and classes only ever get further numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::classes::{AtomId, Class, Classes, DestinationAtoms, ExecutableClass, ancestors, members, merged};
use super::inputs::{AddressSet, Inputs, PortSet};
use super::state::Approval;
use crate::config::Destination;

/// The most prefixes that may be moved to another class: beyond it, building anew is as quick.
const MOST_PREFIXES: usize = 4_096;

/// What is new in classes that have grown. Old classes keep their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Growth {
    /// Prefixes that are new or have another class.
    pub v4: BTreeMap<Ipv4Net, u32>,
    /// The same for IPv6.
    pub v6: BTreeMap<Ipv6Net, u32>,
    /// Ports that have another class.
    pub ports: BTreeSet<u16>,
    /// Paths that have a class now: each was `unlisted`, class 0, before.
    pub executables: Vec<(String, u32)>,
    /// Of each new address class in turn: the class it was part of.
    pub(crate) addresses_from: Vec<u32>,
    /// Of each new port class in turn.
    pub(crate) ports_from: Vec<u16>,
}

impl Growth {
    /// Whether nothing is new.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Classes {
    /// Makes these classes tell apart what `inputs` ask, and these approvals of one account; `None` if so much of them
    /// would change that they should be built anew. They are not to be used then.
    pub(crate) fn grow(
        &mut self,
        inputs: &Inputs,
        destinations: &BTreeMap<String, Destination>,
        account: &str,
        approvals: &BTreeSet<Approval>,
    ) -> Option<Growth> {
        let mut growth = Growth::default();
        for addresses in &inputs.addresses {
            self.grow_addresses(addresses, &mut growth)?;
        }
        for ports in &inputs.ports {
            self.grow_ports(ports, &mut growth)?;
        }
        for name in members(&inputs.destinations, destinations) {
            let Some(destination) = destinations.get(&name).filter(|_| !self.destinations.contains_key(&name)) else {
                continue;
            };
            let mut addresses = destination.addresses.clone();
            addresses.sort_unstable();
            addresses.dedup();
            let address = self.grow_addresses(&addresses, &mut growth)?;
            let port = match destination.ports.is_empty() {
                true => None,
                false => Some(self.grow_ports(&merged(&destination.ports), &mut growth)?),
            };
            let groups = ancestors(&name, destinations);
            let protocols = destination.protocols.clone();
            self.destinations.insert(name, DestinationAtoms { address, port, protocols, groups });
        }
        for approval in approvals {
            self.grow_addresses(&vec![IpNet::from(approval.address)], &mut growth)?;
            self.grow_ports(&vec![(approval.port, approval.port)], &mut growth)?;
        }
        let paths =
            inputs.executables.iter().chain(approvals.iter().filter_map(|approval| approval.executable.as_ref()));
        for path in paths.filter(|path| *path != super::UNLISTED) {
            if self.executables.iter().all(|known| known.path.as_ref() != Some(path)) {
                growth.executables.push((path.clone(), u32::try_from(self.executables.len()).ok()?));
                self.executables.push(ExecutableClass { path: Some(path.clone()), name: super::UNLISTED.to_owned() });
            }
        }
        if !approvals.is_empty() {
            self.approvals.entry(account.to_owned()).or_default().extend(approvals.iter().cloned());
        }
        if !growth.is_empty() {
            self.forget_spans();
        }
        Some(growth)
    }

    fn grow_addresses(&mut self, addresses: &AddressSet, growth: &mut Growth) -> Option<AtomId> {
        if let Some(known) = self.address_atom_of(addresses) {
            return Some(known);
        }
        let atom = self.add_address_atom(addresses.clone());
        // A prefix inside another of the set adds nothing to it.
        let within = |net: &IpNet| addresses.iter().any(|other| other != net && other.contains(net));
        let nets: BTreeSet<IpNet> = addresses.iter().filter(|net| !within(net)).map(IpNet::trunc).collect();
        let mut split = Split { atom, nets: &nets, becomes: HashMap::new() };
        for net in &nets {
            match net {
                IpNet::V4(net) => {
                    let moved = cut(&self.v4, *net, IpNet::V4)?;
                    for (prefix, class, member) in moved {
                        let class = split.part(class, member, &mut self.address_classes, growth)?;
                        self.v4.insert(prefix, class);
                        growth.v4.insert(prefix, class);
                    }
                }
                IpNet::V6(net) => {
                    let moved = cut(&self.v6, *net, IpNet::V6)?;
                    for (prefix, class, member) in moved {
                        let class = split.part(class, member, &mut self.address_classes, growth)?;
                        self.v6.insert(prefix, class);
                        growth.v6.insert(prefix, class);
                    }
                }
            }
        }
        // A class is asked about by one of its members, which may be in the new part now. If no other is left, its number
        // stands for the class that this one is in: it must not speak for others any more.
        for old in 0..self.address_classes.len() {
            let Some(class) = self.address_classes.get(old) else { continue };
            let representative = class.representative;
            if class.atoms.contains(&atom) || !nets.iter().any(|net| net.contains(&representative)) {
                continue;
            }
            let number = old as u32;
            let member = member_of(&self.v4, number, IpNet::V4);
            let member = member.or_else(|| member_of(&self.v6, number, IpNet::V6));
            let now = self.class_of(representative).and_then(|now| self.address_classes.get(now as usize)).cloned();
            if let (Some(class), Some(now)) = (self.address_classes.get_mut(old), now) {
                match member {
                    Some(member) => class.representative = member,
                    None => *class = now,
                }
            }
        }
        Some(atom)
    }

    /// The class of an address: the longest match.
    fn class_of(&self, address: IpAddr) -> Option<u32> {
        match IpNet::from(address) {
            IpNet::V4(host) => {
                std::iter::successors(Some(host), Prefix::around).find_map(|net| self.v4.get(&net).copied())
            }
            IpNet::V6(host) => {
                std::iter::successors(Some(host), Prefix::around).find_map(|net| self.v6.get(&net).copied())
            }
        }
    }

    fn grow_ports(&mut self, ports: &PortSet, growth: &mut Growth) -> Option<AtomId> {
        if let Some(known) = self.port_atom_of(ports) {
            return Some(known);
        }
        let atom = self.add_port_atom(ports.clone());
        let mut becomes: HashMap<u16, u16> = HashMap::new();
        let ranges = merged(ports);
        for port in ranges.iter().flat_map(|(first, last)| *first..=*last) {
            let old = *self.ports.get(usize::from(port))?;
            let class = match becomes.get(&old) {
                Some(class) => *class,
                None => {
                    let class = u16::try_from(self.port_classes.len()).ok()?;
                    let mut atoms = self.port_classes.get(usize::from(old))?.atoms.clone();
                    atoms.push(atom);
                    self.port_classes.push(Class { atoms, representative: port });
                    growth.ports_from.push(old);
                    becomes.insert(old, class);
                    class
                }
            };
            *self.ports.get_mut(usize::from(port))? = class;
            growth.ports.insert(port);
        }
        for old in 0..self.port_classes.len() {
            let Some(class) = self.port_classes.get(old) else { continue };
            let now = self.ports.get(usize::from(class.representative)).copied();
            if now.map(usize::from) == Some(old) {
                continue;
            }
            let member = self.ports.iter().position(|class| usize::from(*class) == old);
            let now = now.and_then(|now| self.port_classes.get(usize::from(now))).cloned();
            if let (Some(class), Some(now)) = (self.port_classes.get_mut(old), now) {
                match member.and_then(|port| u16::try_from(port).ok()) {
                    Some(member) => class.representative = member,
                    None => *class = now,
                }
            }
        }
        Some(atom)
    }
}

/// The parts of classes for which a new atom is true.
struct Split<'a> {
    atom: AtomId,
    nets: &'a BTreeSet<IpNet>,
    becomes: HashMap<u32, u32>,
}

impl Split<'_> {
    /// The part of a class that is in the new atom's prefixes; `member` is an address of it.
    fn part(&mut self, old: u32, member: IpAddr, classes: &mut Vec<Class<IpAddr>>, growth: &mut Growth) -> Option<u32> {
        if let Some(class) = self.becomes.get(&old) {
            return Some(*class);
        }
        let whole = classes.get(old as usize)?;
        let mut atoms = whole.atoms.clone();
        atoms.push(self.atom);
        let inside = self.nets.iter().any(|net| net.contains(&whole.representative));
        let representative = if inside { whole.representative } else { member };
        let class = u32::try_from(classes.len()).ok().filter(|class| *class < u32::from(u16::MAX))?;
        classes.push(Class { atoms, representative });
        growth.addresses_from.push(old);
        self.becomes.insert(old, class);
        Some(class)
    }
}

/// A kind of prefix.
pub(super) trait Prefix: Copy + Ord {
    fn first(&self) -> IpAddr;
    fn last(&self) -> IpAddr;
    fn around(&self) -> Option<Self>;
}

impl Prefix for Ipv4Net {
    fn first(&self) -> IpAddr {
        self.network().into()
    }
    fn last(&self) -> IpAddr {
        self.broadcast().into()
    }
    fn around(&self) -> Option<Self> {
        self.supernet()
    }
}

impl Prefix for Ipv6Net {
    fn first(&self) -> IpAddr {
        self.network().into()
    }
    fn last(&self) -> IpAddr {
        self.broadcast().into()
    }
    fn around(&self) -> Option<Self> {
        self.supernet()
    }
}

/// The prefixes whose class a new prefix splits: itself, with the class of the prefix around it if it was not there, and
/// those inside it. Each comes with an address that has it as its longest match. `None`: too many.
fn cut<P: Prefix>(prefixes: &BTreeMap<P, u32>, new: P, net: fn(P) -> IpNet) -> Option<Vec<(P, u32, IpAddr)>> {
    let mut found = Vec::new();
    let around = std::iter::successors(Some(new), P::around).find_map(|prefix| prefixes.get(&prefix).copied());
    if let (Some(class), Some(member)) = (around, own_address(prefixes, new, net)) {
        found.push((new, class, member));
    }
    for (prefix, class) in prefixes.range(new..).take_while(|(prefix, _)| prefix.first() <= new.last()) {
        if *prefix != new
            && let Some(member) = own_address(prefixes, *prefix, net)
        {
            found.push((*prefix, *class, member));
        }
        if found.len() > MOST_PREFIXES {
            return None;
        }
    }
    Some(found)
}

/// An address whose longest match is this prefix, whether or not it is listed; `None` if longer ones cover it whole.
fn own_address<P: Prefix>(prefixes: &BTreeMap<P, u32>, of: P, net: fn(P) -> IpNet) -> Option<IpAddr> {
    let mut free = of.first();
    for (inside, _) in prefixes.range(of..).take_while(|(prefix, _)| prefix.first() <= of.last()) {
        if *inside == of || !net(of).contains(&net(*inside)) || inside.last() < free {
            continue;
        }
        if free < inside.first() {
            return Some(free);
        }
        free = next(inside.last())?;
        if free > of.last() {
            return None;
        }
    }
    Some(free)
}

/// The address after this one, in the same family.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// A member of a class, if any prefix leads to it.
fn member_of<P: Prefix>(prefixes: &BTreeMap<P, u32>, class: u32, net: fn(P) -> IpNet) -> Option<IpAddr> {
    let own = prefixes.iter().filter(|(_, found)| **found == class);
    own.filter_map(|(prefix, _)| own_address(prefixes, *prefix, net)).next()
}
