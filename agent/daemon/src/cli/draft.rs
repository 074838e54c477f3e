//! `writ account draft-policy`: the least that would have permitted what an account was recorded doing, as Cedar.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use writ_core::record::{Body, Decision, Record, Verdict};

use super::find::{Filter, each, since};

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
    /// A declared destination.
    Group(String),
    /// An endpoint that no destination holds.
    Endpoint { address: String, port: u16, protocol: String },
}

#[derive(Debug, Default)]
struct Use {
    attempts: u64,
    executables: BTreeSet<String>,
}

/// Writes the draft to standard output: a file for `policies.d/`.
pub(super) fn draft(asked: &DraftArgs, log: &Path) -> anyhow::Result<()> {
    let filter = Filter {
        account: Some(asked.name.clone()),
        since: asked.since.as_deref().map(since).transpose()?,
        ..Filter::default()
    };
    let mut used: BTreeMap<Target, Use> = BTreeMap::new();
    let mut refused: BTreeMap<Target, Use> = BTreeMap::new();
    each(log, |_, line| {
        if !filter.matches(line) {
            return Ok(());
        }
        let Ok(record) = Record::from_line(line) else { return Ok(()) };
        let (judged, happened) = match &record.body {
            // What was only observed happened, whatever would have been said.
            Body::Observation(judged) => (judged, true),
            Body::Decision(judged) => (judged, judged.verdict == Verdict::Allow),
            _ => return Ok(()),
        };
        if let Some(target) = target(judged) {
            let entry = if happened { used.entry(target) } else { refused.entry(target) }.or_default();
            entry.attempts += u64::from(judged.count);
            entry.executables.extend(judged.process.as_ref().and_then(|process| process.executable.clone()));
        }
        Ok(())
    })?;
    print!("{}", text(&asked.name, &used, &refused));
    Ok(())
}

fn target(judged: &Decision) -> Option<Target> {
    let to = judged.destination.as_ref()?;
    // The narrowest name is not recorded; where an endpoint is in several, the first is as good a start as any.
    Some(match to.groups.first() {
        Some(group) => Target::Group(group.clone()),
        None => Target::Endpoint { address: to.address.clone(), port: to.port, protocol: to.protocol.clone() },
    })
}

fn text(account: &str, used: &BTreeMap<Target, Use>, refused: &BTreeMap<Target, Use>) -> String {
    let mut out = format!(
        "// Drafted by writ from what `{account}` was recorded doing. Review each policy, say who owns it and why.\n"
    );
    if used.is_empty() {
        out += "// Nothing it did is on record: nothing is permitted.\n";
    }
    for (number, (target, seen)) in used.iter().enumerate() {
        let executables = seen.executables.iter().cloned().collect::<Vec<_>>().join(", ");
        let _ = write!(
            out,
            "\n// {} attempts by {executables}\n@id(\"draft-{account}-{}\")\n@owner(\"unassigned\")\n@reason(\"drafted from observed use; \
             say why\")\npermit (\n  principal == ServiceAccount::{},\n  action == Action::\"connect\",\n",
            seen.attempts,
            number + 1,
            quoted(account)
        );
        let _ = match target {
            Target::Group(group) => writeln!(out, "  resource in Destination::{}\n);", quoted(group)),
            Target::Endpoint { address, port, protocol } => writeln!(
                out,
                "  resource\n) when {{\n  context.ip.isInRange(ip(\"{address}\")) && context.port == {port} && \
                 context.protocol == \"{protocol}\"\n}};"
            ),
        };
    }
    if !refused.is_empty() {
        out += "\n// Tried and refused, and not in this draft:\n";
    }
    for (target, seen) in refused {
        let _ = match target {
            Target::Group(group) => writeln!(out, "//   {group} ×{}", seen.attempts),
            Target::Endpoint { address, port, protocol } => {
                writeln!(out, "//   {address} port {port}/{protocol} ×{}", seen.attempts)
            }
        };
    }
    out
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.escape_default())
}
