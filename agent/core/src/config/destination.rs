//! `[destination.NAME]`: a named group of addresses, ports and protocols; and the two that are built in.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use writ_abi::Protocol;

use super::HostFacts;
use super::draft::{Reference, References};
use super::fault::Fault;
use super::model::Destination;
use super::network::{judged_as, ports, prefix, protocol};
use super::section::Section;
use super::value::name;
use crate::diagnostic::Location;

/// The built-in destination of this host itself.
pub const LOOPBACK: &str = "loopback";

/// The built-in destination of the resolvers this host is configured with.
pub const HOST_RESOLVERS: &str = "host-resolvers";

const KEYS: [&str; 5] = ["addresses", "names", "ports", "protocols", "in"];

/// Reads one destination.
pub(super) fn read_destination(
    mut section: Section<'_, '_>,
    own_name: String,
    at: Location,
    references: &mut References,
) -> Destination {
    section.know(&KEYS);
    if is_built_in(&own_name) {
        let fault = Fault::new("built-in", format!("destination `{own_name}` is built in and cannot be declared"));
        section.refuse(at.offset..at.offset + at.length, fault.help("choose another name"));
    }
    refuse_names(&mut section);
    Destination {
        addresses: addresses(&mut section),
        names: Vec::new(),
        ports: any_if_absent(&mut section, "ports", |section| {
            section.scalars("ports", "a port or a range of ports", ports)
        }),
        protocols: any_if_absent(&mut section, "protocols", |section| {
            Some(section.list("protocols", protocol)?.into_iter().map(|(protocol, _)| protocol).collect())
        }),
        parents: parents(&mut section, &own_name, references),
        name: own_name,
        at: Some(at),
    }
}

fn is_built_in(name: &str) -> bool {
    matches!(name, LOOPBACK | HOST_RESOLVERS)
}

/// Names cannot be left out quietly: a forbid on a destination that lost its names would forbid nothing.
fn refuse_names(section: &mut Section<'_, '_>) {
    let Some(names) = section.list("names", |text| Ok(text.to_owned())) else { return };
    let Some(span) = section.span("names").filter(|_| !names.is_empty()) else { return };
    let fault = Fault::new("names-not-implemented", "names are not implemented yet: ignoring one would open forbids");
    section.refuse(span, fault.help("write the addresses of the names in `addresses`"));
}

fn addresses(section: &mut Section<'_, '_>) -> Vec<IpNet> {
    let prefixes = section.list("addresses", prefix).unwrap_or_default();
    let mut networks = Vec::with_capacity(prefixes.len());
    for (prefix, span) in prefixes {
        let network = prefix.network;
        if prefix.written != network {
            let message = format!("`addresses`: `{}` has bits beyond its prefix: read as `{network}`", prefix.written);
            section.warn(span.clone(), Fault::new("host-bits", message).help(format!("write \"{network}\"")));
        }
        let judged = judged_as(network.addr());
        if network.prefix_len() == network.max_prefix_len() && judged != network.addr() {
            let message = format!("`addresses`: `{}` is judged as `{judged}`: this matches nothing", network.addr());
            section.warn(span, Fault::new("never-matches", message).help(format!("write \"{judged}\"")));
        }
        networks.push(network);
    }
    networks
}

/// Absent means any; an empty list would mean any too, and read as none.
fn any_if_absent<T>(
    section: &mut Section<'_, '_>,
    key: &str,
    read: impl FnOnce(&mut Section<'_, '_>) -> Option<Vec<T>>,
) -> Vec<T> {
    let list = read(section);
    let empty =
        section.value(key).is_some_and(|value| value.get_ref().as_array().is_some_and(|array| array.is_empty()));
    if let Some(span) = section.span(key).filter(|_| empty) {
        let fault = Fault::new("empty-list", format!("`{key}` is empty, which says neither any nor none"));
        section.refuse(span, fault.help(format!("leave `{key}` out for any")));
    }
    list.unwrap_or_default()
}

fn parents(section: &mut Section<'_, '_>, own_name: &str, references: &mut References) -> Vec<String> {
    let written = section.list("in", name).unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut parents = Vec::with_capacity(written.len());
    for (parent, span) in written {
        if is_built_in(&parent) {
            let fault =
                Fault::new("built-in", format!("`in`: destination `{parent}` is built in and cannot be added to"));
            section.refuse(span, fault.help("name a destination of your own"));
            continue;
        }
        if seen.insert(parent.clone()) {
            references.parents.push(Reference { from: own_name.to_owned(), to: parent.clone(), at: section.at(span) });
            parents.push(parent);
        }
    }
    parents
}

/// The destinations every configuration has.
pub(super) fn built_in(facts: &HostFacts) -> [Destination; 2] {
    let resolvers: BTreeSet<IpNet> = facts.resolvers.iter().map(|resolver| judged_as(*resolver).into()).collect();
    let loopback_v4 = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let loopback_v6 = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
    [
        Destination { addresses: vec![IpNet::V4(loopback_v4), IpNet::V6(loopback_v6)], ..Destination::named(LOOPBACK) },
        Destination {
            addresses: resolvers.into_iter().collect(),
            ports: vec![(53, 53)],
            protocols: vec![Protocol::Tcp, Protocol::Udp],
            ..Destination::named(HOST_RESOLVERS)
        },
    ]
}

/// A destination that only others name as their parent.
pub(super) fn implied(name: &str, at: &Location) -> Destination {
    Destination { at: Some(at.clone()), ..Destination::named(name) }
}

impl Destination {
    /// One of which nothing but its name is known.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            addresses: Vec::new(),
            names: Vec::new(),
            ports: Vec::new(),
            protocols: Vec::new(),
            parents: Vec::new(),
            at: None,
        }
    }
}
