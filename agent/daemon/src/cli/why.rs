//! `writ why`: for a workload that was refused: what, why, who answers for it, and what to do next.

use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;

use super::output::{self, ago};
use crate::api::WhyAnswer;

/// What `why` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks for the calling account.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let answer: WhyAnswer = output::converse(config_dir, async |client| client.get("/v1/why").await)?;
    if output::is_json(args.json) {
        output::json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let answer = output::shown(&answer)?;
    if answer.accounts.is_empty() {
        println!("you are no service account: writ refuses you nothing");
    }
    for account in &answer.accounts {
        println!("{}  owner {}", account.account, account.owner.as_deref().unwrap_or("-"));
        if account.offboarded {
            println!("  {}", output::painted("offboarded: everything is refused", AnsiColor::Red));
        }
        if account.denials.is_empty() {
            println!("  nothing was refused lately");
        }
        for denial in &account.denials {
            let repeats = if denial.count > 1 { format!(" ×{}", denial.count) } else { String::new() };
            println!(
                "  {} {} {} {}{repeats}  {}",
                ago(denial.time),
                output::painted(&denial.verdict, AnsiColor::Red),
                denial.executable.as_deref().unwrap_or("?"),
                denial.to,
                denial.record
            );
            for policy in &denial.policies {
                let reason = policy.reason.as_deref().unwrap_or("no reason is given");
                println!("      {}: {reason} (owner {})", policy.id, policy.owner.as_deref().unwrap_or("-"));
            }
            println!("      next: {}", denial.next);
        }
    }
    Ok(ExitCode::SUCCESS)
}
