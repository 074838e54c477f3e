//! `writ verify`: is the log what was signed, and complete?

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use writ_core::log::{TlogProof, Vkey};
use writ_core::printable::printable;
use writ_core::record::Head;

use super::output;
use crate::log::{Layout, LogError, Report, Trust, own_key, verify as verify_log};

/// Options of `verify`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct VerifyArgs {
    /// The log directory; without it, the configured one
    #[arg(value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
    /// The log's public key, taken from elsewhere: the text of writ.vkey, or a file with it
    #[arg(long, value_name = "VKEY")]
    pub key: Option<String>,
    /// A checkpoint that was taken earlier: the log must continue it
    #[arg(long, value_name = "CHECKPOINT")]
    pub against: Option<PathBuf>,
    /// Check one record's proof (see `writ prove`) instead of a whole log
    #[arg(long, value_name = "FILE")]
    pub proof: Option<PathBuf>,
    /// The answer as JSON (the default when not a terminal)
    #[arg(long)]
    pub json: bool,
}

/// Verifies; `log` is the configured directory. Exit code 1: tampered.
pub(crate) fn verify(args: &VerifyArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let log = args.log.as_deref().unwrap_or(log);
    let json = args.json || !io::stdout().is_terminal();
    let key = args.key.as_deref().map(read_key).transpose()?;
    let mut stdout = io::stdout().lock();
    if let Some(file) = &args.proof {
        let ok = check_proof(&read(file)?, key, log, json, &mut stdout)?;
        return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let against = args.against.as_deref().map(read).transpose()?;
    let report = verify_log(log, &Trust { key, against }).map_err(|error| match error {
        LogError::None { path } => output::no_log(&path),
        other => other.into(),
    })?;
    let printed = match json {
        true => serde_json::to_writer(&mut stdout, &report).map_err(io::Error::from).and_then(|()| writeln!(stdout)),
        false => print(&report, &mut stdout),
    };
    output::found(report.ok, printed.map_err(Into::into))
}

/// A file that an argument names.
fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
            output::usage(format!("cannot read {}: {error}", path.display()))
        }
        _ => anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
    })
}

/// A key as an argument: its text, or a file that holds it.
fn read_key(argument: &str) -> anyhow::Result<Vkey> {
    let text = match std::fs::read_to_string(argument) {
        Ok(text) => text,
        Err(_) => argument.to_owned(),
    };
    Vkey::parse(text.trim_end())
        .map_err(|error| output::usage(format!("`{argument}` is no key, nor a file with one: {error}")))
}

fn print(report: &Report, output: &mut impl Write) -> io::Result<()> {
    let sequences = &report.sequences;
    writeln!(output, "log        {}", report.origin.as_deref().unwrap_or("(no checkpoint)"))?;
    writeln!(output, "records    {} ({} signed)", report.records, report.signed)?;
    writeln!(output, "unsigned_tail {}", report.unsigned_tail)?;
    if report.torn_bytes > 0 {
        writeln!(output, "torn       {} bytes after the last whole record", report.torn_bytes)?;
    }
    if report.pruned_before > 0 {
        writeln!(
            output,
            "pruned     records before number {} were removed, as the log's key says",
            report.pruned_before
        )?;
    }
    writeln!(
        output,
        "attempts   {} seen = {} recorded + {} folded + {} lost + {} missing",
        sequences.seen, sequences.recorded, sequences.folded, sequences.lost, sequences.missing
    )?;
    writeln!(output, "root       {}", report.root)?;
    writeln!(output, "trust      {}", report.trust)?;
    for finding in &report.findings {
        let line = finding.line.map(|line| format!(":{line}")).unwrap_or_default();
        let index = finding.index.map(|index| format!(" (record {index})")).unwrap_or_default();
        let id = finding.id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
        writeln!(output, "WRONG      {}{line}{index}{id}: {}", finding.file, printable(&finding.problem))?;
    }
    writeln!(output, "{}", if report.ok { "verified" } else { "NOT VERIFIED" })
}

/// Checks a tlog-proof. The record is the one that writ put into it.
pub(super) fn check_proof(
    text: &str,
    key: Option<Vkey>,
    log: &Path,
    json: bool,
    output: &mut impl Write,
) -> anyhow::Result<bool> {
    let given = key.is_some();
    let key = match key.or_else(|| own_key(&Layout::new(log), &mut Vec::new())) {
        Some(key) => key,
        None => {
            return Err(output::usage("a proof needs a key: give --key VKEY, or the directory of the log it is of"));
        }
    };
    let trust = if given { "key given" } else { "integrity only: key taken from the log itself" };
    let checked = TlogProof::parse(text).and_then(|proof| {
        let entry = proof.extra.clone().unwrap_or_default();
        proof.verify(&entry, &key).map(|checkpoint| (proof.index, entry, checkpoint))
    });
    let answer = match &checked {
        Ok((index, entry, checkpoint)) => json!({
            "ok": true,
            "trust": trust,
            "origin": checkpoint.origin,
            "signed": checkpoint.size,
            "index": index,
            "id": Head::of(entry).ok().map(|head| head.id.into_owned()),
            "record": serde_json::from_slice::<serde_json::Value>(entry).ok(),
        }),
        Err(error) => json!({ "ok": false, "trust": trust, "problem": error.to_string() }),
    };
    if json {
        writeln!(output, "{answer}")?;
    } else {
        match &checked {
            Ok((index, _, checkpoint)) => {
                writeln!(
                    output,
                    "record {index} is in {}, as signed at {} records",
                    checkpoint.origin, checkpoint.size
                )?;
            }
            Err(error) => writeln!(output, "NOT VERIFIED: {error}")?,
        }
        writeln!(output, "trust: {trust}")?;
    }
    Ok(checked.is_ok())
}
