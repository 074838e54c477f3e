//! What a change of stance opened and closed: the decision function asked about every class that either side tells apart.
//!
//! [`Common`] is what two generations tell apart together; it is worked out once for all accounts. [`Common::difference`]
//! compares two stances over it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use writ_abi::{AccountFlags, Address, Attempt, Endpoint, Family, Protocol, Slot, StanceRow, StanceWord, Tables};

use super::Generation;
use super::asked::{Asked, reaches, together};
use crate::policy::Classes;
use crate::record::Reach;

/// The most questions one comparison asks of each side.
const MOST_QUESTIONS: usize = 16_384;

/// The most entries of what opened, and of what closed.
const MOST_ENTRIES: usize = 32;

/// The most prefixes, ranges of ports and executables that one entry names.
const MOST_NAMES: usize = 16;

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];

/// An account's place in a generation: the stance it is in, or was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The slot.
    pub slot: Slot,
    /// The account's flags.
    pub flags: AccountFlags,
}

/// What opened and what closed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReachDifference {
    /// What can be reached that could not.
    pub opened: Vec<Reach>,
    /// What could be reached and cannot any more.
    pub closed: Vec<Reach>,
    /// Members that were cut short: `opened`, `closed`.
    pub truncated: BTreeSet<&'static str>,
}

/// One kind of class on both sides, and which destinations its members are in.
#[derive(Clone, Debug)]
struct Pair<T> {
    before: T,
    after: T,
    /// Number of the set of destinations (by address, or by port) on both sides.
    within: usize,
}

/// A set of destinations, by index, before and after.
type Within = (BTreeSet<usize>, BTreeSet<usize>);

/// What two sets of classes tell apart together.
#[derive(Clone, Debug, Default)]
pub struct Common {
    addresses: Vec<Pair<u32>>,
    ports: Vec<Pair<u16>>,
    /// First and last port of each run, by pair.
    runs: Vec<Vec<(u16, u16)>>,
    /// Class before and after, and the path; the first is every executable that nothing names.
    executables: Vec<(u32, u32, Option<String>)>,
    destinations: Vec<Destination>,
    /// Sets of destinations by address.
    near: Vec<Within>,
    /// Sets of destinations by port.
    at: Vec<Within>,
}

#[derive(Clone, Debug)]
struct Destination {
    name: String,
    /// Protocols before and after; empty: any. `None`: it was not there.
    protocols: [Option<Vec<Protocol>>; 2],
}

impl Destination {
    fn has(&self, side: usize, protocol: Protocol) -> bool {
        let asked = self.protocols.get(side).and_then(Option::as_ref);
        asked.is_some_and(|protocols| protocols.is_empty() || protocols.contains(&protocol))
    }
}

impl Common {
    /// What two generations tell apart together. Both may be the same one.
    pub fn of(before: &Generation, after: &Generation) -> Self {
        let (old, new) = (&*before.layout.classes, &*after.layout.classes);
        let mut common = Self::default();
        let names: BTreeSet<&String> = old.destinations.keys().chain(new.destinations.keys()).collect();
        let names: Vec<&String> = names.into_iter().collect();
        for name in &names {
            let protocols = [old, new].map(|classes| Some(classes.destinations.get(*name)?.protocols.clone()));
            common.destinations.push(Destination { name: (*name).clone(), protocols });
        }
        let by_address = |classes: &Classes, class: u32| -> BTreeSet<usize> {
            let Some(class) = classes.address_classes.get(class as usize) else { return BTreeSet::new() };
            let within = |name: &String| {
                let destination = classes.destinations.get(name)?;
                class.atoms.binary_search(&destination.address).ok()
            };
            (0..).zip(&names).filter(|(_, name)| within(name).is_some()).map(|(index, _)| index).collect()
        };
        let by_port = |classes: &Classes, class: u16| -> BTreeSet<usize> {
            let Some(class) = classes.port_classes.get(usize::from(class)) else { return BTreeSet::new() };
            let within = |name: &String| {
                let destination = classes.destinations.get(name)?;
                destination.port.is_none_or(|port| class.atoms.binary_search(&port).is_ok()).then_some(())
            };
            (0..).zip(&names).filter(|(_, name)| within(name).is_some()).map(|(index, _)| index).collect()
        };

        let mut near = Interned::default();
        let mut known = HashMap::new();
        let spans = (old.spans(), new.spans());
        for (_, before, after) in together(&spans.0.addresses, &spans.1.addresses) {
            known.entry((before, after)).or_insert_with(|| {
                let within = near.of((by_address(old, before), by_address(new, after)));
                common.addresses.push(Pair { before, after, within });
            });
        }
        common.near = near.all;

        let mut at = Interned::default();
        let mut known: HashMap<(u16, u16), usize> = HashMap::new();
        let runs = together(&spans.0.ports, &spans.1.ports);
        for (index, (first, before, after)) in runs.iter().enumerate() {
            let last = runs.get(index + 1).map_or(u16::MAX, |(next, ..)| next.saturating_sub(1));
            let pair = *known.entry((*before, *after)).or_insert_with(|| {
                let within = at.of((by_port(old, *before), by_port(new, *after)));
                common.ports.push(Pair { before: *before, after: *after, within });
                common.runs.push(Vec::new());
                common.ports.len() - 1
            });
            if let Some(runs) = common.runs.get_mut(pair) {
                runs.push((*first, last));
            }
        }
        common.at = at.all;

        let paths: BTreeSet<&String> = before.executables.keys().chain(after.executables.keys()).collect();
        let class = |generation: &Generation, path: &String| generation.executables.get(path).copied().unwrap_or(0);
        common.executables = std::iter::once((0, 0, None))
            .chain(paths.into_iter().map(|path| (class(before, path), class(after, path), Some(path.clone()))))
            .collect();
        common
    }

    /// What an account can reach under one stance and cannot under the other.
    ///
    /// Reach is what the kernel lets through: the verdict of policy, or anything while glass is broken. For accounts that
    /// are in observe mode by configuration it is the verdict of policy, which is what the change is about.
    pub fn difference(&self, account: u32, before: (&Generation, Held), after: (&Generation, Held)) -> ReachDifference {
        let sides = [before, after];
        let mut found = ReachDifference::default();
        self.families(account, sides, &mut found);

        // Classes that neither side tells apart, and that are in the same destinations, are asked about once.
        let projected = |(generation, held): (&Generation, Held), axis: StanceWord, class: u32| {
            let word = generation.stance(held.slot.stance())?.word(axis);
            let base = match axis {
                StanceWord::FamiliesExecutables => (word >> 32) as u32,
                StanceWord::Bases => word as u32,
                _ => 0,
            };
            generation.projection(base.wrapping_add(class))
        };
        let ports_of = |(generation, held): (&Generation, Held), class: u32| {
            let word = generation.stance(held.slot.stance())?.word(StanceWord::Bases);
            generation.projection(((word >> 32) as u32).wrapping_add(class))
        };
        let mut addresses: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, pair) in self.addresses.iter().enumerate() {
            let key = (
                projected(before, StanceWord::Bases, pair.before),
                projected(after, StanceWord::Bases, pair.after),
                pair.within,
            );
            addresses.entry(key).or_default().push(index);
        }
        let mut ports: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, pair) in self.ports.iter().enumerate() {
            let key = (ports_of(before, u32::from(pair.before)), ports_of(after, u32::from(pair.after)), pair.within);
            ports.entry(key).or_default().push(index);
        }
        let mut executables: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, (old, new, _)) in self.executables.iter().enumerate() {
            let key = (
                projected(before, StanceWord::FamiliesExecutables, *old),
                projected(after, StanceWord::FamiliesExecutables, *new),
            );
            executables.entry(key).or_default().push(index);
        }

        let mut extents: BTreeMap<(bool, Option<usize>), Extent> = BTreeMap::new();
        let mut questions = 0;
        for ((.., near), addresses) in &addresses {
            for ((.., at), ports) in &ports {
                for (protocol, _) in PROTOCOLS {
                    let within = [0, 1].map(|side| self.within(*near, *at, protocol, side));
                    for executables in executables.values() {
                        for new in [false, true] {
                            questions += 1;
                            if questions > MOST_QUESTIONS {
                                found.truncated.extend(["opened", "closed"]);
                                return self.told(found, extents, sides);
                            }
                            let ask = |side: usize| {
                                self.allows(account, sides, side, (addresses, ports, protocol, executables, new))
                            };
                            let opened = match (ask(0), ask(1)) {
                                (false, true) => true,
                                (true, false) => false,
                                _ => continue,
                            };
                            let [old, now] = &within;
                            let named = if opened { now } else { old };
                            let labels: Vec<Option<usize>> =
                                if named.is_empty() { vec![None] } else { named.iter().copied().map(Some).collect() };
                            for label in labels {
                                let extent = extents.entry((opened, label)).or_default();
                                extent.addresses.extend(addresses);
                                extent.ports.extend(ports);
                                extent.protocols.insert(protocol as u32);
                                extent.executables.extend(executables);
                                extent.new.insert(new);
                                extent.size += addresses.len() * ports.len() * executables.len();
                            }
                        }
                    }
                }
            }
        }
        self.told(found, extents, sides)
    }

    /// The side whose word it is what a destination is: the one asked for, unless no policy names it there.
    fn told_by(&self, destination: usize, side: usize) -> usize {
        let known = self.destinations.get(destination).and_then(|found| found.protocols.get(side));
        if known.is_some_and(Option::is_some) { side } else { 1 - side }
    }

    /// The destinations that an address, port and protocol are in.
    fn within(&self, near: usize, at: usize, protocol: Protocol, side: usize) -> Vec<usize> {
        let (Some(near), Some(at)) = (self.near.get(near), self.at.get(at)) else { return Vec::new() };
        let is_in = |index: &usize| {
            let from = self.told_by(*index, side);
            let has = self.destinations.get(*index).is_some_and(|found| found.has(from, protocol));
            has && on(near, from).contains(index) && on(at, from).contains(index)
        };
        near.0.union(&near.1).copied().filter(is_in).collect()
    }

    fn allows(
        &self,
        account: u32,
        sides: [(&Generation, Held); 2],
        side: usize,
        (addresses, ports, protocol, executables, new): (&[usize], &[usize], Protocol, &[usize], bool),
    ) -> bool {
        let address = addresses.first().and_then(|index| self.addresses.get(*index));
        let port = ports.first().and_then(|index| self.ports.get(*index));
        let executable = executables.first().and_then(|index| self.executables.get(*index));
        let (Some(address), Some(port), Some((old, new_class, _))) = (address, port, executable) else { return false };
        let Some((generation, held)) = sides.get(side).copied() else { return false };
        let first = side == 0;
        let asked = Asked {
            generation,
            held,
            address: if first { address.before } else { address.after },
            port: u32::from(if first { port.before } else { port.after }),
            seen: !new,
        };
        let endpoint = Endpoint { address: Address::default(), port: 0, protocol };
        let executable = if first { *old } else { *new_class };
        reaches(&asked, account, &Attempt::Connect { endpoint, executable })
    }

    fn families(&self, account: u32, sides: [(&Generation, Held); 2], found: &mut ReachDifference) {
        for family in Family::ALL {
            let asked = sides.map(|(generation, held)| {
                let judged = match family {
                    Family::Unix => held.flags.has(AccountFlags::JUDGES_UNIX),
                    Family::Netlink => held.flags.has(AccountFlags::JUDGES_NETLINK),
                    _ => true,
                };
                let asked = Asked { generation, held, address: 0, port: 0, seen: true };
                !judged || reaches(&asked, account, &Attempt::OpenSocket(family))
            });
            let entry = || Reach { family: Some(family.name().to_owned()), ..Reach::of("open-socket") };
            match asked {
                [false, true] => found.opened.push(entry()),
                [true, false] => found.closed.push(entry()),
                _ => {}
            }
        }
    }

    /// What was found, in words.
    fn told(
        &self,
        mut difference: ReachDifference,
        extents: BTreeMap<(bool, Option<usize>), Extent>,
        sides: [(&Generation, Held); 2],
    ) -> ReachDifference {
        for ((opened, label), extent) in extents {
            let side = usize::from(opened);
            let entry = self.entry(label, &extent, side, sides);
            let (list, name) =
                if opened { (&mut difference.opened, "opened") } else { (&mut difference.closed, "closed") };
            let (entry, cut) = entry;
            if cut {
                difference.truncated.insert(name);
            }
            list.push(entry);
        }
        for (list, name) in [(&mut difference.opened, "opened"), (&mut difference.closed, "closed")] {
            if list.len() > MOST_ENTRIES {
                list.truncate(MOST_ENTRIES);
                difference.truncated.insert(name);
            }
        }
        difference
    }

    fn entry(
        &self,
        label: Option<usize>,
        extent: &Extent,
        side: usize,
        sides: [(&Generation, Held); 2],
    ) -> (Reach, bool) {
        let mut cut = false;
        let destination = label.and_then(|index| self.destinations.get(index));
        // How much of the destination there is, to tell whether all of it changed.
        let from = label.map_or(side, |label| self.told_by(label, side));
        let inside = |sets: &[Within], within: usize| {
            label.is_none_or(|label| sets.get(within).is_some_and(|set| on(set, from).contains(&label)))
        };
        let all_addresses = self.addresses.iter().filter(|pair| inside(&self.near, pair.within)).count();
        let all_ports = self.ports.iter().filter(|pair| inside(&self.at, pair.within)).count();
        let every_address = destination.is_some() && extent.addresses.len() >= all_addresses;
        let mut addresses = Vec::new();
        if !every_address {
            let Some((generation, _)) = sides.get(side) else { return (Reach::of("connect"), true) };
            let prefixes = &generation.layout.classes.spans().prefixes;
            let classes: BTreeSet<u32> = extent
                .addresses
                .iter()
                .filter_map(|index| self.addresses.get(*index))
                .map(|pair| if side == 0 { pair.before } else { pair.after })
                .collect();
            let named = classes.iter().filter_map(|class| prefixes.get(class)).flatten();
            addresses = named.map(ToString::to_string).collect();
            cut |= addresses.len() > MOST_NAMES;
            addresses.truncate(MOST_NAMES);
        }
        let mut ports = Vec::new();
        if extent.ports.len() < all_ports {
            let mut runs: Vec<(u16, u16)> =
                extent.ports.iter().filter_map(|index| self.runs.get(*index)).flatten().copied().collect();
            runs.sort_unstable();
            cut |= runs.len() > MOST_NAMES;
            ports = runs
                .into_iter()
                .take(MOST_NAMES)
                .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
                .collect();
        }
        let executables = (extent.executables.len() < self.executables.len()).then(|| {
            let named = extent.executables.iter().filter_map(|index| self.executables.get(*index));
            let named: Vec<String> =
                named.map(|(.., path)| path.clone().unwrap_or_else(|| crate::policy::UNLISTED.to_owned())).collect();
            cut |= named.len() > MOST_NAMES;
            named.into_iter().take(MOST_NAMES).collect()
        });
        let product = extent.addresses.len()
            * extent.ports.len()
            * extent.protocols.len()
            * extent.executables.len()
            * extent.new.len();
        let reach = Reach {
            destination: destination.map(|found| found.name.clone()),
            addresses,
            ports,
            protocols: PROTOCOLS
                .iter()
                .filter(|(protocol, _)| extent.protocols.contains(&(*protocol as u32)))
                .map(|(_, name)| (*name).to_owned())
                .collect(),
            executables,
            new_destination: (extent.new.len() == 1).then(|| extent.new.contains(&true)),
            part: extent.size < product,
            ..Reach::of("connect")
        };
        (reach, cut)
    }
}

fn on(set: &Within, side: usize) -> &BTreeSet<usize> {
    if side == 0 { &set.0 } else { &set.1 }
}

/// What a part of the destinations gained or lost.
#[derive(Clone, Debug, Default)]
struct Extent {
    addresses: BTreeSet<usize>,
    ports: BTreeSet<usize>,
    protocols: BTreeSet<u32>,
    executables: BTreeSet<usize>,
    new: BTreeSet<bool>,
    size: usize,
}

/// Sets of destinations, each once.
#[derive(Default)]
struct Interned {
    known: HashMap<Within, usize>,
    all: Vec<Within>,
}

impl Interned {
    fn of(&mut self, within: Within) -> usize {
        if let Some(known) = self.known.get(&within) {
            return *known;
        }
        self.all.push(within.clone());
        self.known.insert(within, self.all.len() - 1);
        self.all.len() - 1
    }
}
