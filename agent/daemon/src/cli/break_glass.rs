//! `writ break-glass`: verdicts only observed for a while, by an approver's order; the kernel ends it by itself.

use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;
use serde_json::Value;

use super::output;
use crate::api::BreakGlassBody;

/// What `break-glass` takes.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["account", "all"])))]
pub(super) struct Args {
    /// Only this account
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Every account
    #[arg(long)]
    all: bool,
    /// For how long (90s, 15m, 1h)
    #[arg(long, value_name = "DURATION")]
    ttl: String,
    /// Why
    #[arg(long, value_parser = output::reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Breaks it.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let body = BreakGlassBody {
        account: args.account.clone(),
        all: args.all,
        ttl: args.ttl.clone(),
        reason: args.reason.clone(),
    };
    let broken: Value = output::converse(config_dir, async |client| client.post("/v1/break-glass", &body).await)?;
    if output::is_json(args.json) {
        output::json(&broken)?;
        return Ok(ExitCode::SUCCESS);
    }
    let until = broken.get("until").and_then(Value::as_str).unwrap_or("?");
    println!(
        "{} {} only observed until {until}; the kernel ends it by itself",
        output::painted("GLASS BROKEN:", AnsiColor::Red),
        args.account.as_deref().unwrap_or("every account is")
    );
    Ok(ExitCode::SUCCESS)
}
