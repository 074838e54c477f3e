//! `writ escalation`: denied attempts that wait for a person: listed, waited for, approved and denied.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use writ_core::stance::{Escalation, EscalationStatus};

use super::output::{self, ago, ahead};
use crate::api::{ApproveBody, ReasonBody};
use crate::client::segment;

/// How often `list -f` asks.
const LOOK: Duration = Duration::from_millis(500);

/// What `escalation` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List open escalations; with -f wait for new ones
    List {
        /// Show what is open, then each new escalation and each answer
        #[arg(short, long)]
        follow: bool,
        /// Print one JSON array; with -f one object per line
        #[arg(long)]
        json: bool,
    },
    /// Let the account try again: that executable, that destination, for a while
    Approve {
        /// The escalation's id
        id: String,
        /// For how long (90s, 15m, 1h)
        #[arg(long, value_name = "DURATION")]
        ttl: String,
        /// Why
        #[arg(long, value_parser = output::reason)]
        reason: String,
        /// A reference into your own system
        #[arg(long)]
        ticket: Option<String>,
        /// Print the escalation as JSON
        #[arg(long)]
        json: bool,
    },
    /// Refuse it, and do not ask again for a while; or take an approval back
    Deny {
        /// The escalation's id
        id: String,
        /// Why
        #[arg(long, value_parser = output::reason)]
        reason: String,
        /// Print the escalation as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List { follow: true, json } => follow(config_dir, *json)?,
        Command::List { follow: false, json } => {
            let open = open(config_dir)?;
            if output::is_json(*json) {
                output::json(&open)?;
            } else if open.is_empty() {
                println!("no open escalations");
            } else {
                println!("{}", table(&output::shown(&open)?));
            }
        }
        Command::Approve { id, ttl, reason, ticket, json } => {
            let body = ApproveBody { ttl: ttl.clone(), reason: reason.clone(), ticket: ticket.clone() };
            let path = format!("/v1/escalations/{}/approve", segment(id));
            let done: Escalation = output::converse(config_dir, async |client| client.post(&path, &body).await)?;
            answered(&done, "approved", *json)?;
        }
        Command::Deny { id, reason, json } => {
            let path = format!("/v1/escalations/{}/deny", segment(id));
            let body = ReasonBody { reason: reason.clone() };
            let done: Escalation = output::converse(config_dir, async |client| client.post(&path, &body).await)?;
            answered(&done, "denied", *json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(config_dir: &Path) -> anyhow::Result<Vec<Escalation>> {
    output::converse(config_dir, async |client| client.get("/v1/escalations").await)
}

fn answered(escalation: &Escalation, word: &str, json: bool) -> anyhow::Result<()> {
    if output::is_json(json) {
        return output::json(escalation);
    }
    let escalation = output::shown(escalation)?;
    println!(
        "{word}: {} {} ({}) → {} until {}",
        escalation.id,
        escalation.account,
        who(&escalation),
        escalation.target,
        escalation.expires.strftime("%F %T")
    );
    Ok(())
}

/// The program that tried, or whoever it was asked about.
fn who(escalation: &Escalation) -> &str {
    escalation.target.executable().unwrap_or("asked")
}

fn status(escalation: &Escalation) -> &'static str {
    match escalation.status {
        EscalationStatus::Pending => "pending",
        EscalationStatus::Approved => "approved",
        EscalationStatus::Denied => "denied",
        EscalationStatus::Expired => "expired",
        EscalationStatus::Revoked => "revoked",
    }
}

fn table(open: &[Escalation]) -> comfy_table::Table {
    let mut table =
        output::table(&["id", "status", "account", "executable", "to", "policies", "tried", "last", "ends in"]);
    for escalation in open {
        table.add_row([
            escalation.id.clone(),
            status(escalation).to_owned(),
            escalation.account.clone(),
            who(escalation).to_owned(),
            escalation.target.to_string(),
            escalation.policies.iter().cloned().collect::<Vec<_>>().join(" "),
            format!("×{}", escalation.count),
            ago(escalation.last_seen),
            ahead(escalation.expires),
        ]);
    }
    table
}

/// Shows what is open, then whatever is new or answered, until interrupted.
fn follow(config_dir: &Path, json: bool) -> anyhow::Result<()> {
    let mut shown: BTreeMap<String, EscalationStatus> = BTreeMap::new();
    loop {
        for escalation in open(config_dir)? {
            if shown.insert(escalation.id.clone(), escalation.status) == Some(escalation.status) {
                continue;
            }
            let mut out = io::stdout().lock();
            let wrote = if json || !io::stdout().is_terminal() {
                serde_json::to_string(&escalation).map(|line| writeln!(out, "{line}"))?
            } else {
                let escalation = output::shown(&escalation)?;
                writeln!(
                    out,
                    "{} {:<8} {} ({}) → {}  [{}]",
                    escalation.id,
                    status(&escalation),
                    escalation.account,
                    who(&escalation),
                    escalation.target,
                    escalation.policies.iter().cloned().collect::<Vec<_>>().join(" ")
                )
            };
            if wrote.and_then(|()| out.flush()).is_err() {
                return Ok(()); // The reader has seen enough.
            }
        }
        std::thread::sleep(LOOK);
    }
}
