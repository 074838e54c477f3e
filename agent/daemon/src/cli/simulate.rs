//! `writ simulate`: what a connect would meet, from live state if a daemon runs, else from configuration alone.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;
use jiff::Timestamp;
use writ_core::policy::{AccountState, Bundle};

use super::output;
use crate::api::{SimulateBody, Simulated};
use crate::client::ClientError;
use crate::configuration;
use crate::engine::simulate;

/// What `simulate` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The service account
    #[arg(long)]
    account: String,
    /// Where to: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// tcp or udp
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"], ignore_case = true)]
    protocol: String,
    /// Risk instead of the account's own
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    risk: Option<u8>,
    /// The moment instead of now (RFC 3339)
    #[arg(long)]
    at: Option<Timestamp>,
    /// The executable, by path
    #[arg(long)]
    executable: Option<String>,
    /// As if the destination were new to the account, or (=false) not; by itself, what its baseline says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    new_destination: Option<bool>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tells; exit code 2 for deny, 3 for escalate.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let (address, port) = destination(&args.to)?;
    let asked = SimulateBody {
        account: args.account.clone(),
        address,
        port,
        protocol: args.protocol.to_ascii_lowercase(),
        executable: args.executable.clone(),
        risk: args.risk,
        at: args.at,
        new_destination: args.new_destination,
    };
    let live = output::converse(config_dir, async |client| client.post::<Simulated>("/v1/simulate", &asked).await);
    let simulated = match live {
        Ok(simulated) => simulated,
        Err(error) => match error.downcast_ref::<ClientError>() {
            // No daemon, or not for us to ask: the configuration answers.
            Some(ClientError::Unreachable { .. }) => alone(config_dir, &asked)?,
            Some(ClientError::Silent { .. } | ClientError::Refused { status: 403 | 503, .. }) => {
                eprintln!("warning: not from live state, but from the configuration alone: {error:#}");
                alone(config_dir, &asked)?
            }
            _ => return Err(error),
        },
    };
    if output::is_json(args.json) {
        output::json(&simulated)?;
    } else {
        show(&asked, &simulated);
    }
    Ok(match simulated.verdict.as_str() {
        "allow" => ExitCode::SUCCESS,
        "escalate" => ExitCode::from(3),
        _ => ExitCode::from(2),
    })
}

fn destination(text: &str) -> anyhow::Result<(IpAddr, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip(), address.port()));
    }
    let found = text.to_socket_addrs();
    let found =
        found.map_err(|error| output::usage(format!("`{text}` is not HOST:PORT of a host that resolves: {error}")))?;
    let Some(first) = found.into_iter().next() else { return Err(output::usage(format!("`{text}` has no address"))) };
    Ok((first.ip(), first.port()))
}

fn alone(config_dir: &Path, asked: &SimulateBody) -> anyhow::Result<Simulated> {
    let loaded = configuration::load(config_dir);
    let Some(config) = loaded.config else {
        return Err(output::refused("the configuration has errors: see `writ check`"));
    };
    let (Some(bundle), _) = Bundle::compile(&config) else {
        return Err(output::refused("the policies have errors: see `writ check`"));
    };
    let mut state = AccountState::quiet(asked.at.unwrap_or_else(Timestamp::now));
    state.risk = asked.risk.unwrap_or(0);
    // Nobody has seen it go anywhere: everything is new, unless that is being learnt.
    let new = || config.accounts.get(&asked.account).is_none_or(|account| account.learning.is_none());
    simulate(&config, &bundle, asked, &state, new).map_err(|refusal| output::refused(refusal.to_string()))
}

fn show(asked: &SimulateBody, simulated: &Simulated) {
    let colour = match simulated.verdict.as_str() {
        "allow" => AnsiColor::Green,
        "escalate" => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    println!(
        "{}  {} to {}:{}/{}  ({}, {})",
        output::painted(&simulated.verdict, colour),
        asked.account,
        asked.address,
        asked.port,
        asked.protocol,
        simulated.effective_mode,
        if simulated.live { "live state" } else { "configuration alone" }
    );
    if !simulated.groups.is_empty() {
        println!("  in {}", simulated.groups.join(", "));
    }
    for policy in &simulated.policies {
        println!(
            "  by {}{}",
            policy.id,
            policy.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"))
        );
    }
    if simulated.policies.is_empty() {
        println!("  nothing permits it");
    }
    if simulated.would != simulated.verdict {
        println!("  with observe-mode policies: {}", simulated.would);
    }
}
