//! `writ grant`: just-in-time permission made, listed and taken back.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use writ_core::stance::Grant;

use super::output::{self, ahead};
use crate::api::{GrantBody, ReasonBody};
use crate::client::segment;

/// What `grant` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Permit an account a destination for a while; returns when the kernel permits it
    Create(CreateArgs),
    /// List live grants
    List {
        /// Only grants of this account
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Take a grant back; returns when the kernel no longer permits it
    Revoke {
        /// The grant's id
        id: String,
        /// Why
        #[arg(long, default_value = "revoked by hand", value_parser = output::reason)]
        reason: String,
        /// Print the grant as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// The account
    #[arg(long, value_name = "NAME")]
    account: String,
    /// A destination's name, or ADDRESS[/LEN]:PORT[/PROTOCOL]
    #[arg(long, value_name = "DEST")]
    to: String,
    /// For how long (90s, 15m, 1h); at most `grant-max-ttl`
    #[arg(long, value_name = "DURATION")]
    ttl: String,
    /// Why
    #[arg(long, value_parser = output::reason)]
    reason: String,
    /// For this executable only, by path
    #[arg(long, value_name = "PATH")]
    executable: Option<String>,
    /// A reference into your own system
    #[arg(long)]
    ticket: Option<String>,
    /// Print the grant as JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Create(asked) => {
            let body = GrantBody {
                account: asked.account.clone(),
                to: asked.to.clone(),
                ttl: asked.ttl.clone(),
                reason: asked.reason.clone(),
                executable: asked.executable.clone(),
                ticket: asked.ticket.clone(),
            };
            let grant: Grant = output::converse(config_dir, async |client| client.post("/v1/grants", &body).await)?;
            if output::is_json(asked.json) {
                output::json(&grant)?;
            } else {
                let grant = output::shown(&grant)?;
                println!(
                    "in force: {} {} → {} for {}",
                    grant.id,
                    grant.account,
                    grant.destination,
                    ahead(grant.expires)
                );
            }
        }
        Command::List { account, json } => list(config_dir, account.as_deref(), *json)?,
        Command::Revoke { id, reason, json } => {
            let body = ReasonBody { reason: reason.clone() };
            let path = format!("/v1/grants/{}/revoke", segment(id));
            let grant: Grant = output::converse(config_dir, async |client| client.post(&path, &body).await)?;
            if output::is_json(*json) {
                output::json(&grant)?;
            } else {
                let grant = output::shown(&grant)?;
                println!("revoked: {} {} → {}", grant.id, grant.account, grant.destination);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config_dir: &Path, account: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut grants: Vec<Grant> = output::converse(config_dir, async |client| client.get("/v1/grants").await)?;
    grants.retain(|grant| account.is_none_or(|account| grant.account == account));
    if output::is_json(json) {
        return output::json(&grants);
    }
    if grants.is_empty() {
        println!("no live grants");
        return Ok(());
    }
    let mut table = output::table(&["id", "account", "to", "executable", "ends in", "approver", "reason"]);
    for grant in output::shown(&grants)? {
        table.add_row([
            grant.id,
            grant.account,
            grant.destination.to_string(),
            grant.executable.unwrap_or_else(|| "any".into()),
            ahead(grant.expires),
            grant.approver.name.unwrap_or_else(|| grant.approver.uid.to_string()),
            grant.reason,
        ]);
    }
    println!("{table}");
    Ok(())
}
