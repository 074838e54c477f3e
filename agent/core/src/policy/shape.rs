//! The shape of an account's row: global classes reduced to what the account's policies can tell apart.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::account::AccountPolicy;
use super::bundle::Bundle;
use super::classes::{AtomId, Class, Classes, DestinationAtoms, ExecutableClass, members};
use super::row::{PROTOCOLS, Projection};

/// Global classes as one account sees them, each with a representative.
pub(super) struct Axis<'a, T> {
    pub(super) projection: Projection,
    /// The first global class of each projected one.
    pub(super) classes: Vec<&'a Class<T>>,
}

fn axis<'a, T>(classes: &'a [Class<T>], relevant: &BTreeSet<AtomId>) -> Axis<'a, T> {
    let mut known: HashMap<Vec<AtomId>, u16> = HashMap::new();
    let mut axis = Axis { projection: Projection::default(), classes: Vec::new() };
    for class in classes {
        let seen: Vec<AtomId> = class.atoms.iter().copied().filter(|atom| relevant.contains(atom)).collect();
        let next = axis.classes.len() as u16;
        let projected = *known.entry(seen).or_insert(next);
        if projected == next {
            axis.classes.push(class);
        }
        axis.projection.of.push(projected);
    }
    axis.projection.count = axis.classes.len() as u32;
    axis
}

/// The size and shape of an account's row, before anything is asked.
pub(super) struct Shape<'a> {
    pub(super) addresses: Axis<'a, IpAddr>,
    pub(super) ports: Axis<'a, u16>,
    pub(super) executables: Projection,
    /// The first class of each projected one: path and name.
    pub(super) executable_classes: Vec<&'a ExecutableClass>,
    pub(super) destinations: Vec<&'a DestinationAtoms>,
    /// Atoms that conditions name themselves, not by way of a destination or approval.
    pub(super) condition_addresses: BTreeSet<AtomId>,
    pub(super) condition_ports: BTreeSet<AtomId>,
}

impl<'a> Shape<'a> {
    pub(super) fn new(bundle: &'a Bundle, classes: &'a Classes, account: &AccountPolicy) -> Self {
        let inputs = &account.shared.inputs;
        let empty = BTreeSet::new();
        let approvals = classes.approvals.get(&account.account.name).filter(|_| inputs.approvals).unwrap_or(&empty);
        let condition_addresses: BTreeSet<AtomId> =
            inputs.addresses.iter().filter_map(|addresses| classes.address_atom_of(addresses)).collect();
        let condition_ports: BTreeSet<AtomId> =
            inputs.ports.iter().filter_map(|ports| classes.port_atom_of(ports)).collect();
        let destinations: Vec<&DestinationAtoms> = members(&inputs.destinations, &bundle.destinations)
            .iter()
            .filter_map(|name| classes.destinations.get(name))
            .collect();
        let mut addresses = condition_addresses.clone();
        addresses.extend(destinations.iter().map(|destination| destination.address));
        addresses
            .extend(approvals.iter().filter_map(|approval| classes.address_atom_of(&vec![approval.address.into()])));
        let mut ports = condition_ports.clone();
        ports.extend(destinations.iter().filter_map(|destination| destination.port));
        ports.extend(
            approvals.iter().filter_map(|approval| classes.port_atom_of(&vec![(approval.port, approval.port)])),
        );

        let mut executables = Projection::default();
        let mut executable_classes = Vec::new();
        let mut known = HashMap::new();
        for class in &classes.executables {
            let name = class.name_for(inputs);
            let named = (inputs.executables.contains(name)
                || inputs.own_executables && account.account.executables.contains(name))
            .then_some(name);
            let approved = class
                .path
                .as_ref()
                .filter(|path| approvals.iter().any(|approval| approval.executable.as_ref() == Some(path)));
            let next = executable_classes.len() as u16;
            let projected = *known.entry((named, approved)).or_insert(next);
            if projected == next {
                executable_classes.push(class);
            }
            executables.of.push(projected);
        }
        executables.count = executable_classes.len() as u32;
        Self {
            addresses: axis(&classes.address_classes, &addresses),
            ports: axis(&classes.port_classes, &ports),
            executables,
            executable_classes,
            destinations,
            condition_addresses,
            condition_ports,
        }
    }

    pub(super) fn cells(&self) -> usize {
        [self.executable_classes.len(), self.addresses.classes.len(), self.ports.classes.len(), PROTOCOLS.len(), 2]
            .into_iter()
            .fold(1, usize::saturating_mul)
    }
}
