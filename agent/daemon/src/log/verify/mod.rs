//! Whether a log is what was signed: the tree from the lines, every tile, the signature, the sequences.

mod lines;
#[cfg(test)]
mod named;
mod sequence;
#[cfg(test)]
mod tampering;
#[cfg(test)]
pub(crate) mod tests;
mod tile;

use std::path::Path;

use serde::Serialize;
use writ_core::log::{Checkpoint, Hash, Pruned, Vkey, root_of};

use self::lines::{Lines, read_lines};
pub(crate) use self::sequence::SequenceReport;
use self::sequence::Sequences;
use self::tile::check_tiles;
use super::file::read_if_there;
use super::recovery::is_damaged_log;
use super::{Layout, LogError};

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Finding {
    /// The file, relative to the log directory.
    pub file: String,
    /// The line in it, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The record's index in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The record's id, as the line now says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What is wrong.
    pub problem: String,
}

impl Finding {
    fn of(file: &str, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, index: None, id: None, problem: problem.into() }
    }
}

/// The answer of `verify`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// What the answer rests on: `key given`, or `integrity only: key taken from the log itself`.
    pub trust: &'static str,
    /// Which log.
    pub origin: Option<String>,
    /// Lines in the log, the removed ones included.
    pub records: u64,
    /// How many of them the checkpoint signs.
    pub signed: u64,
    /// Whole lines after the checkpoint.
    pub unsigned_tail: u64,
    /// Bytes of a torn last line.
    pub torn_bytes: u64,
    /// Lines before this index were removed, as the log's key says.
    pub pruned_before: u64,
    /// The root over the signed lines, in hex.
    pub root: String,
    /// Attempts and losses, by boot.
    pub sequences: SequenceReport,
    /// What is wrong, the first record first. At most 100.
    pub findings: Vec<Finding>,
}

/// What the caller trusts already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// The log's public key, from elsewhere.
    pub key: Option<Vkey>,
    /// A checkpoint that was taken earlier: the log must continue it.
    pub against: Option<String>,
}

const MOST_FINDINGS: usize = 100;

/// How often a look is taken again because lines were pruned meanwhile.
const MOST_LOOKS: usize = 5;

/// Verifies a log directory, which may be written and pruned meanwhile.
pub(crate) fn verify(dir: &Path, trust: &Trust) -> Result<Report, LogError> {
    let layout = Layout::new(dir);
    let kept = || (read_if_there(&layout.pruned()).ok(), layout.segments().ok().and_then(|all| all.first().cloned()));
    for _ in 1..MOST_LOOKS {
        let before = kept();
        let report = look(&layout, trust);
        // What a look missed because it was removed under it, with a statement, is no finding.
        if report.as_ref().is_ok_and(|report| report.ok) || kept() == before {
            return report;
        }
    }
    look(&layout, trust)
}

fn look(layout: &Layout, trust: &Trust) -> Result<Report, LogError> {
    // Where lines were signed, their directory being gone is something to find.
    if !layout.records().is_dir() && !layout.checkpoint().exists() {
        return Err(LogError::None { path: layout.dir().to_owned() });
    }
    let mut findings = Vec::new();
    let key = trust.key.clone().or_else(|| own_key(layout, &mut findings));
    let checkpoint = key.as_ref().and_then(|key| head(layout, key, &mut findings));
    let signed = checkpoint.as_ref().map_or(0, |head| head.size);
    let pruned = key.as_ref().map_or(0, |key| pruned(layout, key, &mut findings));

    let mut sequences = Sequences::default();
    let mut lines = read_lines(layout, pruned, signed, &mut sequences, &mut findings)?;
    let signed_now =
        || key.as_ref().and_then(|key| head(layout, key, &mut Vec::new())).map_or(signed, |head| head.size);
    let root = check_root(checkpoint.as_ref(), &lines, &mut findings);
    lines.confirmed = checkpoint.as_ref().filter(|head| head.root == root).map_or(0, |head| head.size);
    check_tiles(layout, &lines, signed, signed_now, &mut findings)?;
    if let (Some(text), Some(key)) = (&trust.against, &key) {
        check_against(text, key, &lines, signed, &mut findings);
    }
    sequences.check(&mut findings);
    check_set_aside(layout, &mut findings)?;

    // A line that is known to be wrong says more than the files that no longer fit it.
    findings.sort_by_key(|finding| (finding.index.unwrap_or(u64::MAX), finding.line.is_none()));
    findings.truncate(MOST_FINDINGS);
    let records = lines.hashes.len() as u64;
    Ok(Report {
        ok: findings.is_empty(),
        trust: if trust.key.is_some() { "key given" } else { "integrity only: key taken from the log itself" },
        origin: checkpoint.map(|head| head.origin),
        records,
        signed,
        unsigned_tail: records.saturating_sub(signed),
        torn_bytes: lines.torn_bytes,
        pruned_before: pruned,
        root: root.iter().map(|byte| format!("{byte:02x}")).collect(),
        sequences: sequences.report(),
        findings,
    })
}

/// The key that lies beside the log.
pub(crate) fn own_key(layout: &Layout, findings: &mut Vec<Finding>) -> Option<Vkey> {
    let text = match read_if_there(&layout.vkey()) {
        Ok(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
        _ => {
            findings.push(Finding::of("writ.vkey", "it is missing"));
            return None;
        }
    };
    Vkey::parse(text.trim_end()).map_err(|error| findings.push(Finding::of("writ.vkey", error.to_string()))).ok()
}

fn head(layout: &Layout, key: &Vkey, findings: &mut Vec<Finding>) -> Option<Checkpoint> {
    let Ok(Some(text)) = read_if_there(&layout.checkpoint()) else {
        // A log that has not signed anything yet has no lines that count as signed either.
        let begun = layout.segments().is_ok_and(|segments| !segments.is_empty());
        if begun && layout.tiles().exists() {
            findings.push(Finding::of("checkpoint", "it is missing"));
        }
        return None;
    };
    match Checkpoint::open(&String::from_utf8_lossy(&text), key) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            findings.push(Finding::of("checkpoint", error.to_string()));
            None
        }
    }
}

fn pruned(layout: &Layout, key: &Vkey, findings: &mut Vec<Finding>) -> u64 {
    let Ok(Some(text)) = read_if_there(&layout.pruned()) else { return 0 };
    match Pruned::open(&String::from_utf8_lossy(&text), key) {
        Ok(pruned) => pruned.first_index,
        Err(error) => {
            findings.push(Finding::of("pruned", error.to_string()));
            0
        }
    }
}

fn check_root(checkpoint: Option<&Checkpoint>, lines: &Lines, findings: &mut Vec<Finding>) -> Hash {
    let Some(checkpoint) = checkpoint else { return root_of(&lines.hashes) };
    let Some(signed) = lines.hashes.get(..checkpoint.size as usize) else {
        let missing = checkpoint.size - lines.hashes.len() as u64;
        let problem = format!("{missing} signed records are missing at the end of the log");
        findings.push(Finding { index: Some(lines.hashes.len() as u64), ..Finding::of("records", problem) });
        return root_of(&lines.hashes);
    };
    let root = root_of(signed);
    if root != checkpoint.root {
        findings.push(Finding::of("checkpoint", "the records are not those that it signs"));
    }
    root
}

fn check_against(text: &str, key: &Vkey, lines: &Lines, signed: u64, findings: &mut Vec<Finding>) {
    let earlier = match Checkpoint::open(text, key) {
        Ok(earlier) => earlier,
        Err(error) => return findings.push(Finding::of("--against", error.to_string())),
    };
    let problem = match lines.hashes.get(..earlier.size as usize) {
        None => format!("rolled back: {} records were signed then, {} are there now", earlier.size, lines.hashes.len()),
        Some(_) if signed < earlier.size => {
            format!("rolled back: {} records were signed then, {signed} are signed now", earlier.size)
        }
        Some(then) if root_of(then) != earlier.root => {
            format!("rewritten: the first {} records are not those that were signed then", earlier.size)
        }
        Some(_) => return,
    };
    findings.push(Finding::of("checkpoint", problem));
}

/// A log that could not be continued lies beside this one: signed records are not in it.
fn check_set_aside(layout: &Layout, findings: &mut Vec<Finding>) -> Result<(), LogError> {
    for entry in std::fs::read_dir(layout.dir()).map_err(LogError::io("read", layout.dir()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_damaged_log(&name) && entry.path().is_dir() {
            findings.push(Finding::of(&name, "an earlier log was damaged or changed and was set aside here"));
        }
    }
    Ok(())
}
