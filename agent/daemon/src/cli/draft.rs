//! `writ account draft-policy`: the least that would have permitted what an account was recorded doing, as Cedar.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use writ_core::config::Destination as Declared;
use writ_core::printable::printable;
use writ_core::record::{Body, Destination, Head, Record, Verdict};

use super::find::{Filter, each, since};
use super::output;
use crate::configuration;

/// What `draft-policy` takes.
#[derive(Debug, clap::Args)]
pub(super) struct DraftArgs {
    /// The account
    name: String,
    /// Only from records since a time, or for a duration: 15m, 2h, 7d
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

/// Where an account went: what one policy of the draft permits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    /// One endpoint of a declared destination, by the destination's name; a port or protocol that it says itself is left
    /// out.
    Destination { name: String, port: Option<u16>, protocol: Option<String> },
    /// An endpoint that no declared destination holds.
    Endpoint { address: String, port: u16, protocol: String },
}

#[derive(Debug, Default)]
struct Use {
    attempts: u64,
    executables: BTreeSet<String>,
}

/// Writes the draft to standard output: a file for `policies.d/`.
pub(super) fn draft(asked: &DraftArgs, config_dir: &Path, log: &Path) -> anyhow::Result<()> {
    let filter = Filter {
        account: Some(asked.name.clone()),
        since: asked.since.as_deref().map(since).transpose()?,
        ..Filter::default()
    };
    // A configuration that cannot be read names no destinations: endpoints are drafted as they were reached.
    let config = configuration::load(config_dir).config;
    let mut known = config.as_ref().is_some_and(|config| config.accounts.contains_key(&asked.name));
    let declared = config.map(|config| config.destinations).unwrap_or_default();
    let mut used: BTreeMap<Target, Use> = BTreeMap::new();
    let mut refused: BTreeMap<Target, Use> = BTreeMap::new();
    each(log, |_, line| {
        if !filter.matches(line) {
            // What was before `--since` still tells that there is such an account.
            known |= !known && Head::of(line).is_ok_and(|head| head.account.as_deref() == Some(asked.name.as_str()));
            return Ok(());
        }
        known = true;
        let Ok(record) = Record::from_line(line) else { return Ok(()) };
        let (judged, happened) = match &record.body {
            // What was only observed happened, whatever would have been said.
            Body::Observation(judged) => (judged, true),
            Body::Decision(judged) => (judged, judged.verdict == Verdict::Allow),
            _ => return Ok(()),
        };
        if let Some(target) = judged.destination.as_ref().map(|to| target(to, &declared)) {
            let entry = if happened { used.entry(target) } else { refused.entry(target) }.or_default();
            entry.attempts += u64::from(judged.count);
            entry.executables.extend(judged.process.as_ref().and_then(|process| process.executable.clone()));
        }
        Ok(())
    })?;
    if !known {
        return Err(output::not_found(format!(
            "no service account `{}` is declared in {}, and none is in the log at {}: `writ account list` names them",
            asked.name,
            config_dir.display(),
            log.display()
        )));
    }
    std::io::stdout().lock().write_all(text(&asked.name, &used, &refused).as_bytes())?;
    Ok(())
}

/// The least that permits an endpoint: by the narrowest destination that was declared for it, or as it is. What is built
/// in is too wide to be the least.
fn target(to: &Destination, declared: &BTreeMap<String, Declared>) -> Target {
    let endpoint = || Target::Endpoint { address: to.address.clone(), port: to.port, protocol: to.protocol.clone() };
    let Ok(address) = to.address.parse::<IpAddr>() else { return endpoint() };
    let holds = |destination: &&Declared| {
        destination.at.is_some()
            && destination.addresses.iter().any(|prefix| prefix.contains(&address))
            && (destination.ports.is_empty()
                || destination.ports.iter().any(|(from, until)| (*from..=*until).contains(&to.port)))
            && (destination.protocols.is_empty()
                || destination.protocols.iter().any(|protocol| protocol.name() == to.protocol))
    };
    let width = |destination: &&Declared| {
        let hosts = |prefix: &IpNet| u32::from(prefix.max_prefix_len() - prefix.prefix_len());
        (destination.addresses.iter().map(hosts).max(), destination.addresses.len(), destination.ports.is_empty())
    };
    let Some(found) = declared.values().filter(holds).min_by_key(width) else { return endpoint() };
    let one_port = matches!(found.ports.as_slice(), [(from, until)] if from == until);
    Target::Destination {
        name: found.name.clone(),
        port: (!one_port).then_some(to.port),
        protocol: (found.protocols.len() != 1).then(|| to.protocol.clone()),
    }
}

impl Target {
    /// The rest of the policy, after its action.
    fn scope(&self) -> String {
        match self {
            Self::Destination { name, port, protocol } => {
                let port = port.map(|port| format!("context.port == {port}"));
                let protocol = protocol.as_ref().map(|protocol| format!("context.protocol == {}", quoted(protocol)));
                let when: Vec<String> = port.into_iter().chain(protocol).collect();
                let resource = format!("  resource in Destination::{}\n)", quoted(name));
                if when.is_empty() {
                    format!("{resource};")
                } else {
                    format!("{resource} when {{\n  {}\n}};", when.join(" && "))
                }
            }
            Self::Endpoint { address, port, protocol } => format!(
                "  resource\n) when {{\n  context.ip.isInRange(ip({})) && context.port == {port} && context.protocol == {}\n}};",
                quoted(address),
                quoted(protocol)
            ),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Destination { name, port, .. } => {
                write!(out, "{name}")?;
                port.map_or(Ok(()), |port| write!(out, " port {port}"))
            }
            Self::Endpoint { address, port, protocol } => write!(out, "{address} port {port}/{protocol}"),
        }
    }
}

fn text(account: &str, used: &BTreeMap<Target, Use>, refused: &BTreeMap<Target, Use>) -> String {
    let mut out = format!(
        "// Drafted by writ from what `{}` was recorded doing. Review each policy, say who owns it and why.\n",
        printable(account)
    );
    if used.is_empty() {
        out += "// Nothing it did is on record: nothing is permitted.\n";
    }
    for (number, (target, seen)) in used.iter().enumerate() {
        // Whoever runs a program chooses its path: a line break in it would end the comment, and the rest be policy.
        let executables: Vec<Cow<'_, str>> = seen.executables.iter().map(|path| printable(path)).collect();
        let executables = executables.join(", ");
        let _ = write!(
            out,
            "\n// {} attempts by {executables}\n@id({})\n@owner(\"unassigned\")\n@reason(\"drafted from observed use; \
             say why\")\npermit (\n  principal == ServiceAccount::{},\n  action == Action::\"connect\",\n",
            seen.attempts,
            quoted(&format!("draft-{account}-{}", number + 1)),
            quoted(account)
        );
        let _ = writeln!(out, "{}", target.scope());
    }
    if !refused.is_empty() {
        out += "\n// Tried and refused, and not in this draft:\n";
    }
    for (target, seen) in refused {
        let _ = writeln!(out, "//   {} ×{}", printable(&target.to_string()), seen.attempts);
    }
    out
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.escape_default())
}

#[cfg(test)]
mod tests {
    use writ_abi::Protocol;

    use super::*;

    fn declared(name: &str, addresses: &[&str], ports: &[(u16, u16)], protocols: &[Protocol]) -> (String, Declared) {
        let destination = Declared {
            name: name.to_owned(),
            addresses: addresses.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            names: Vec::new(),
            ports: ports.to_vec(),
            protocols: protocols.to_vec(),
            parents: Vec::new(),
            at: Some(writ_core::diagnostic::Location {
                file: "d.toml".to_owned(),
                line: 1,
                column: 1,
                offset: 0,
                length: 1,
            }),
        };
        (name.to_owned(), destination)
    }

    fn scope(address: &str, port: u16) -> String {
        let all = BTreeMap::from([
            declared("prod", &["10.0.0.0/8"], &[], &[]),
            declared("prod-db", &["10.20.0.0/16"], &[(5432, 5432)], &[Protocol::Tcp]),
            declared("cache", &["10.30.0.0/16"], &[(6379, 6380)], &[Protocol::Tcp]),
        ]);
        let to = Destination {
            address: address.to_owned(),
            port,
            protocol: "tcp".to_owned(),
            name: None,
            groups: vec!["prod".to_owned()],
        };
        target(&to, &all).scope()
    }

    #[test]
    fn a_path_with_line_breaks_stays_within_its_comment() {
        let path = "/tmp/a\npermit (principal, action, resource);\u{2028}//\r\n".to_owned();
        let endpoint = |port| Target::Endpoint { address: "10.0.0.1".into(), port, protocol: "tcp".into() };
        let seen = || Use { attempts: 3, executables: BTreeSet::from([path.clone()]) };
        let drafted =
            text("billing", &BTreeMap::from([(endpoint(1), seen())]), &BTreeMap::from([(endpoint(2), seen())]));
        assert!(drafted.contains("// 3 attempts by /tmp/a\\npermit (principal, action, resource);"), "{drafted}");
        let policies = drafted.lines().filter(|line| line.trim_start().starts_with("permit")).count();
        assert_eq!(policies, 1, "{drafted}");
        let odd = text("a\"b\n", &BTreeMap::from([(endpoint(1), seen())]), &BTreeMap::new());
        assert!(odd.contains("@id(\"draft-a\\\"b\\n-1\")"), "{odd}");
    }

    #[test]
    fn an_endpoint_is_drafted_by_the_narrowest_destination_that_holds_it_and_by_no_more_of_it_than_was_used() {
        assert_eq!(scope("10.20.1.2", 5432), "  resource in Destination::\"prod-db\"\n);");
        assert_eq!(
            scope("10.30.0.1", 6380),
            "  resource in Destination::\"cache\"\n) when {\n  context.port == 6380\n};"
        );
        assert_eq!(
            scope("10.20.1.2", 22),
            "  resource in Destination::\"prod\"\n) when {\n  context.port == 22 && context.protocol == \"tcp\"\n};"
        );
        assert_eq!(
            scope("192.0.2.1", 443),
            "  resource\n) when {\n  context.ip.isInRange(ip(\"192.0.2.1\")) && context.port == 443 && context.protocol == \
             \"tcp\"\n};"
        );
    }
}
