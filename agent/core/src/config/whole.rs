//! What only all files together show: references, groups, cycles, overlaps, limits.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv6Net};

use super::HostFacts;
use super::destination::{built_in, implied};
use super::draft::{Draft, Reference, References};
use super::fault::{distance, nearest};
use super::model::{Config, Destination, Match, SignalKind};
use super::role::Role;
use crate::diagnostic::{Diagnostic, Location, Severity};

/// How many accounts a host can have.
pub const MAX_ACCOUNTS: usize = 4096;

/// Adds what is built in or implied, and checks what crosses files.
pub(super) fn finish(draft: Draft, facts: &HostFacts) -> (Config, Vec<Diagnostic>) {
    let Draft { agent, accounts, mut destinations, signals, policies, schemas, references, broken, mut diagnostics } =
        draft;
    if let Some(account) = accounts.values().nth(MAX_ACCOUNTS) {
        let message = format!("{} service accounts; at most {MAX_ACCOUNTS} can be told apart", accounts.len());
        diagnostics.push(Diagnostic::error("too-many-accounts", message).at(account.at.clone()));
    }
    if !broken.contains(&Role::Signals) {
        diagnostics.extend(references.fresh.iter().filter_map(|reference| fresh(reference, &signals)));
    }
    if !broken.contains(&Role::Accounts) {
        let callers = agent.https.iter().flat_map(|https| &https.callers);
        for (name, caller) in callers.filter(|(_, caller)| !accounts.contains_key(&caller.account)) {
            let message = format!(
                "`[https.callers.{name}]`: no service account `{}` is declared: it may ask nothing",
                caller.account
            );
            let help = "declare it in `service-accounts.d/`; it needs no `match`";
            diagnostics.push(Diagnostic::warning("unknown-account", message).help(help));
        }
    }
    diagnostics.extend(overlaps(&references));
    diagnostics.extend(crowded(&references));
    // A file that could not be read may declare a parent, or be a child.
    let declared: BTreeSet<String> = destinations.keys().cloned().collect();
    for reference in &references.parents {
        if !destinations.contains_key(&reference.to) {
            if !broken.contains(&Role::Destinations) {
                diagnostics.extend(slip(reference, &declared));
            }
            destinations.insert(reference.to.clone(), implied(&reference.to, &reference.at));
        }
    }
    diagnostics.extend(cycles(&destinations, &references.parents));
    if !broken.contains(&Role::Destinations) {
        // Where an address could not be read, its absence is not the finding.
        let refused: BTreeSet<String> = diagnostics.iter().filter_map(refused_file).collect();
        let intact = |each: &&Destination| each.at.as_ref().is_none_or(|at| !refused.contains(&at.file));
        let found = destinations.values().filter(intact).filter_map(|each| pointless(each, &references.parents));
        diagnostics.extend(found.collect::<Vec<_>>());
    }
    diagnostics.extend(agent.nat64.iter().flat_map(|prefix| translated(prefix, &destinations)).collect::<Vec<_>>());
    for destination in built_in(facts) {
        destinations.insert(destination.name.clone(), destination);
    }
    (Config { agent, accounts, destinations, signals, policies, schemas }, diagnostics)
}

fn refused_file(finding: &Diagnostic) -> Option<String> {
    Some(finding.at.as_ref().filter(|_| finding.severity == Severity::Error)?.file.clone())
}

/// `requires-fresh` names a declared signal that can be fresh.
fn fresh(reference: &Reference, signals: &BTreeMap<String, SignalKind>) -> Option<Diagnostic> {
    let Reference { from, to, at } = reference;
    let finding = match signals.get(to) {
        Some(signal) if signal.freshness => return None,
        Some(_) => Diagnostic::error(
            "not-a-freshness-signal",
            format!("`requires-fresh` of service account `{from}`: signal `{to}` says nothing about freshness"),
        )
        .help(format!("set `freshness = true` in `[signal.\"{to}\"]`")),
        None => {
            let fitting = signals.values().filter(|signal| signal.freshness).map(|signal| signal.kind.as_str());
            let declare = format!("declare `[signal.\"{to}\"]` with `freshness = true` in `signals.d/`");
            let help = match nearest(to, fitting) {
                Some(near) => format!("did you mean `{near}`? Otherwise {declare}"),
                None => declare,
            };
            let message = format!(
                "`requires-fresh` of service account `{from}`: no signal `{to}` is declared, and until it is the account is refused everything"
            );
            Diagnostic::warning("unknown-signal", message).help(help)
        }
    };
    Some(finding.at(at.clone()))
}

/// Accounts whose processes another account's match takes in as well: the strictest account decides, which surprises.
fn overlaps(references: &References) -> Vec<Diagnostic> {
    let mut first: BTreeMap<&Match, Vec<(&str, &Location)>> = BTreeMap::new();
    let mut findings = Vec::new();
    for (index, (found, account, at)) in references.matches.iter().enumerate() {
        let same = first.entry(found).or_default();
        if let Some((other, place)) = same.iter().find(|(other, _)| other != account) {
            let message = format!(
                "service accounts `{other}` ({}:{}:{}) and `{account}` match the same processes",
                place.file, place.line, place.column
            );
            findings.push((index, message, at));
        }
        // One entry for each account at most is looked at, and the first two differ where any do.
        if same.len() < 2 && same.iter().all(|(other, _)| other != account) {
            same.push((account, at));
        }
    }
    for (index, (found, account, at)) in references.matches.iter().enumerate() {
        for wider in found.wider() {
            let others = first.get(&wider).into_iter().flatten();
            for (other, place) in others.filter(|(other, _)| other != account).take(1) {
                let message = format!(
                    "every process of service account `{account}` found by this is also `{other}` ({}:{}:{})",
                    place.file, place.line, place.column
                );
                findings.push((index, message, at));
            }
        }
    }
    findings.sort_by_key(|(index, ..)| *index);
    let help = "where both match, both must allow: give one of them a narrower `match`";
    findings
        .into_iter()
        .map(|(_, message, at)| Diagnostic::warning("overlapping-match", message).help(help).at(at.clone()))
        .collect()
}

impl Match {
    /// Every match with some, but not all, of the same keys.
    fn wider(&self) -> impl Iterator<Item = Self> + '_ {
        let all = (1..15u8).map(|kept| {
            let keep = |bit: u8, value: &Option<String>| value.clone().filter(|_| kept & (1 << bit) != 0);
            Self {
                user: keep(0, &self.user),
                unit: keep(1, &self.unit),
                cgroup: keep(2, &self.cgroup),
                executable: keep(3, &self.executable),
            }
        });
        let distinct: BTreeSet<Self> = all.filter(|wider| wider.keys() > 0 && wider.keys() < self.keys()).collect();
        distinct.into_iter()
    }
}

/// Views that lead to more match tables than the kernel looks at.
fn crowded(references: &References) -> Vec<Diagnostic> {
    let mut tables: BTreeMap<(&str, &str), Vec<&Location>> = BTreeMap::new();
    for (found, _, at) in &references.matches {
        // The key the kernel starts from, as `writ_abi::Clause` says.
        let anchor = [
            ("unit", found.unit_besides_cgroup()),
            ("cgroup", found.cgroup.as_ref()),
            ("executable", found.executable.as_ref()),
            ("user", found.user.as_ref()),
        ];
        if let Some((key, Some(value))) = anchor.into_iter().find(|(_, value)| value.is_some()) {
            tables.entry((key, value)).or_default().push(at);
        }
    }
    let limit = writ_abi::MAX_CLAUSES as usize;
    tables
        .into_iter()
        .filter_map(|((key, value), places)| {
            let message =
                format!("{} match tables start from {key} `{value}`; the kernel looks at {limit}", places.len());
            let finding = Diagnostic::error("too-many-matches", message);
            Some(finding.help("join accounts, or match by another key").at((*places.get(limit)?).clone()))
        })
        .collect()
}

/// An undeclared parent is a group of its own; one letter away from a declared one it is more likely a slip, and a slip
/// would take the destination out of the forbids on its group.
fn slip(reference: &Reference, declared: &BTreeSet<String>) -> Option<Diagnostic> {
    let near = declared.iter().find(|name| name.len() > 3 && distance(name, &reference.to) == 1)?;
    let message = format!("`in`: destination `{}` is not declared and becomes a group of its own", reference.to);
    Some(Diagnostic::warning("similar-group", message).help(format!("did you mean `{near}`?")).at(reference.at.clone()))
}

/// Destinations that are their own ancestors: each cycle once.
fn cycles(destinations: &BTreeMap<String, Destination>, parents: &[Reference]) -> Vec<Diagnostic> {
    // Take away what has no parent left, until only cycles and what lies below them remain.
    let mut waiting: BTreeMap<&str, usize> = destinations.values().map(|each| (each.name.as_str(), 0)).collect();
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Reference { from, to, .. } in parents {
        *waiting.entry(from).or_default() += 1;
        children.entry(to).or_default().push(from);
    }
    let mut free: Vec<&str> = waiting.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    while let Some(name) = free.pop() {
        waiting.remove(name);
        for child in children.get(name).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(child) {
                *count -= 1;
                if *count == 0 {
                    free.push(child);
                }
            }
        }
    }
    let mut findings = Vec::new();
    let mut reported: BTreeSet<&str> = BTreeSet::new();
    for start in waiting.keys() {
        let mut path: Vec<&str> = Vec::new();
        let mut at = *start;
        // Each of what remains has a parent that remains: going up must come back.
        while !path.contains(&at) && !reported.contains(at) {
            path.push(at);
            let up = destinations.get(at).into_iter().flat_map(|each| &each.parents);
            let Some(next) = up.map(String::as_str).find(|parent| waiting.contains_key(parent)) else { break };
            at = next;
        }
        reported.extend(&path);
        let cycle: Vec<&str> = path.into_iter().skip_while(|name| *name != at).collect();
        let first = cycle.first().copied().unwrap_or_default();
        let second = cycle.get(1).copied().unwrap_or(first);
        if let Some(reference) = parents.iter().find(|each| each.from == first && each.to == second) {
            let shown: Vec<String> = cycle.iter().chain([&first]).map(|name| format!("`{name}`")).collect();
            let message = format!("destinations are in each other: {}", shown.join(" in "));
            findings.push(
                Diagnostic::error("cycle", message).help("take one of them out of `in`").at(reference.at.clone()),
            );
        }
    }
    findings
}

/// Addresses below a NAT64 prefix: they are judged as the IPv4 addresses they carry, so naming them names nothing.
fn translated(prefix: &Ipv6Net, destinations: &BTreeMap<String, Destination>) -> Vec<Diagnostic> {
    let below = |net: &&IpNet| matches!(net, IpNet::V6(net) if prefix.contains(net));
    let named = |each: &Destination| Some((each.name.clone(), *each.addresses.iter().find(below)?, each.at.clone()?));
    let finding = |(name, net, at): (String, IpNet, Location)| {
        let message =
            format!("destination `{name}`: `{net}` is judged as IPv4 (`nat64` `{prefix}`) and matches nothing");
        Diagnostic::warning("never-matches", message).help("write the IPv4 addresses it stands for").at(at)
    };
    destinations.values().filter_map(named).map(finding).collect()
}

/// Destinations that match nothing, or say something about nothing.
fn pointless(destination: &Destination, parents: &[Reference]) -> Option<Diagnostic> {
    if !destination.addresses.is_empty() {
        return None;
    }
    let Destination { name, at, .. } = destination;
    let has_children = parents.iter().any(|reference| reference.to == *name);
    let finding = match (has_children, destination.ports.is_empty() && destination.protocols.is_empty()) {
        (true, true) => return None,
        (true, false) => Diagnostic::warning(
            "ports-without-addresses",
            format!("destination `{name}` has ports or protocols but no addresses: they do not narrow its members"),
        )
        .help("write them in the members, or give it `addresses`"),
        (false, _) => Diagnostic::warning(
            "matches-nothing",
            format!("destination `{name}` has no addresses and no members: it matches nothing"),
        )
        .help("write `addresses`; for any address: [\"0.0.0.0/0\", \"::/0\"]"),
    };
    Some(match at {
        Some(at) => finding.at(at.clone()),
        None => finding,
    })
}
