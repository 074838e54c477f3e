//! `writ signal`: statements about accounts sent, listed, taken back, and taken in by the line.

use std::io::{self, BufRead};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use writ_core::printable::printable;
use writ_core::signal::Signal;

use super::output::{self, ago, ahead};
use crate::api::{ReasonBody, SignalBody};
use crate::client::{Client, ClientError, segment};
use crate::statement::statement;

/// What `signal` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send a signal about an account; returns when the kernel holds what follows from it
    Send(SendArgs),
    /// List live signals
    List {
        /// Only signals about this account
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// End a signal before its time
    Clear {
        /// The signal's id
        id: String,
        /// Why
        #[arg(long, value_parser = output::reason)]
        reason: String,
        /// Print the signal as JSON
        #[arg(long)]
        json: bool,
    },
    /// Send a signal for each line of JSON on standard input; a CloudEvents 1.0 envelope is accepted
    Ingest {
        /// Print one JSON object per line read
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct SendArgs {
    /// The account it is about
    #[arg(long, value_name = "NAME")]
    account: String,
    /// Its kind
    #[arg(long)]
    kind: String,
    /// Risk contribution, 0-100; the kind's where absent
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    risk: Option<u8>,
    /// Time to live (90s, 15m, 1h); the kind's where absent
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// Free text kept with it
    #[arg(long, value_name = "TEXT")]
    evidence: Option<String>,
    /// Your own id for the event: sending it again changes nothing
    #[arg(long)]
    id: Option<String>,
    /// When it was observed (RFC 3339); now where absent
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// What the daemon answers; only what is shown.
#[derive(Debug, Deserialize)]
struct Received {
    outcome: Value,
    grants: Vec<Value>,
    approvals: Vec<Value>,
}

/// Does it.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Send(sent) => send(config_dir, sent)?,
        Command::List { account, json } => list(config_dir, account.as_deref(), *json)?,
        Command::Clear { id, reason, json } => {
            let body = ReasonBody { reason: reason.clone() };
            let path = format!("/v1/signals/{}/clear", segment(id));
            let cleared: Signal = output::converse(config_dir, async |client| client.post(&path, &body).await)?;
            if output::is_json(*json) {
                output::json(&cleared)?;
            } else {
                let cleared = output::shown(&cleared)?;
                println!("cleared {}: {} about {}", cleared.id, cleared.kind, cleared.account);
            }
        }
        Command::Ingest { json } => return ingest(config_dir, *json),
    }
    Ok(ExitCode::SUCCESS)
}

fn send(config_dir: &Path, sent: &SendArgs) -> anyhow::Result<()> {
    let body = SignalBody {
        account: sent.account.clone(),
        kind: sent.kind.clone(),
        id: sent.id.clone(),
        risk: sent.risk,
        ttl: sent.ttl.clone(),
        evidence: sent.evidence.clone(),
        at: sent.at,
    };
    let answer: Value = output::converse(config_dir, async |client| client.post("/v1/signals", &body).await)?;
    if output::is_json(sent.json) {
        return output::json(&answer);
    }
    let Received { outcome, grants, approvals } = serde_json::from_value(output::shown(&answer)?)?;
    let text = |name: &str| outcome.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    match outcome.get("signal") {
        Some(signal) => {
            let signal: Signal = serde_json::from_value(signal.clone())?;
            println!(
                "in force: {} {} about {}, risk {}, for {}",
                signal.id,
                signal.kind,
                signal.account,
                signal.risk,
                ahead(signal.expires)
            );
        }
        None => println!("nothing changed: {}", text("outcome")),
    }
    for grant in &grants {
        println!("  grant {} ended for good", grant.get("id").and_then(Value::as_str).unwrap_or("?"));
    }
    for approval in &approvals {
        println!("  approval {} ended for good", approval.get("id").and_then(Value::as_str).unwrap_or("?"));
    }
    Ok(())
}

fn list(config_dir: &Path, account: Option<&str>, json: bool) -> anyhow::Result<()> {
    let of = account.map_or_else(String::new, |account| format!("?account={}", segment(account)));
    let path = format!("/v1/signals{of}");
    let signals: Vec<Signal> = output::converse(config_dir, async |client| client.get(&path).await)?;
    if output::is_json(json) {
        return output::json(&signals);
    }
    if signals.is_empty() {
        println!("no live signals");
        return Ok(());
    }
    let mut table = output::table(&["id", "account", "kind", "risk", "source", "observed", "ends in", "evidence"]);
    for signal in output::shown(&signals)? {
        table.add_row([
            signal.id,
            signal.account,
            signal.kind,
            signal.risk.to_string(),
            signal.source.name.unwrap_or_else(|| signal.source.uid.to_string()),
            ago(signal.at),
            ahead(signal.expires),
            signal.evidence.unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Lines are sent in order, each on its own: one that is refused does not hold up those after it. Exit code 1 if any was.
fn ingest(config_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let socket = output::socket(config_dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut taken, mut refused) = (0u64, 0u64);
    let mut not_permitted = false;
    for (number, line) in (1u64..).zip(io::stdin().lock().lines()) {
        let line = line.context("cannot read standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        let sent = match statement(&line) {
            Ok(body) => runtime.block_on(Client::new(&socket).post::<Value>("/v1/signals", &body)),
            Err(why) => Err(ClientError::Garbled(why)),
        };
        match sent {
            Ok(answer) => {
                taken += 1;
                if output::is_json(json) {
                    output::json(&json!({ "line": number, "outcome": answer.get("outcome") }))?;
                }
            }
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Silent { .. })) => return Err(error.into()),
            Err(error) => {
                refused += 1;
                not_permitted |= matches!(error, ClientError::Refused { status: 403, .. });
                let why = match &error {
                    ClientError::Garbled(why) => why.clone(),
                    other => other.to_string(),
                };
                if output::is_json(json) {
                    output::json(&json!({ "line": number, "error": why }))?;
                }
                eprintln!("line {number}: {}", printable(&why));
            }
        }
    }
    if !output::is_json(json) {
        println!("{taken} taken, {refused} refused");
    }
    Ok(match (refused, not_permitted) {
        (0, _) => ExitCode::SUCCESS,
        (_, true) => ExitCode::from(super::NOT_PERMITTED),
        _ => ExitCode::FAILURE,
    })
}
