//! `writ reload`: the configuration applied; returns when the kernel holds it.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::output;
use crate::api::Reloaded;
use crate::client::ClientError;

/// What `reload` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Reloads; exit code 1 if the configuration is refused.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let done = output::converse(config_dir, async |client| client.post::<Reloaded>("/v1/reload", &json!({})).await);
    match done {
        Ok(reloaded) if output::is_json(args.json) => {
            warn(&reloaded);
            output::json(&reloaded)?;
        }
        Ok(reloaded) if reloaded.before == reloaded.after => {
            println!("in force: generation {}, policies unchanged ({})", reloaded.generation, reloaded.after);
            warn(&reloaded);
        }
        Ok(reloaded) => {
            println!(
                "in force: generation {}\n  before {}\n  after  {}",
                reloaded.generation, reloaded.before, reloaded.after
            );
            warn(&reloaded);
        }
        Err(error) => {
            if let Some(ClientError::Refused { status: 422, problem }) = error.downcast_ref::<ClientError>() {
                eprintln!("error: the configuration is refused; the one before is still in force");
                for finding in &problem.findings {
                    let text = |member: &str| {
                        finding.get(member).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
                    };
                    let at = finding.get("at").map_or_else(String::new, |at| {
                        let number = |member: &str| at.get(member).and_then(serde_json::Value::as_u64).unwrap_or(0);
                        let file = at.get("file").and_then(|file| file.as_str()).unwrap_or_default();
                        format!("{file}:{}:{}: ", number("line"), number("column"))
                    });
                    eprintln!("  {at}{}: {}", text("severity"), text("message"));
                    let help = text("help");
                    if !help.is_empty() {
                        eprintln!("    help: {help}");
                    }
                }
                return Ok(ExitCode::FAILURE);
            }
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever takes an account out of the configuration must not miss what that means.
fn warn(reloaded: &Reloaded) {
    for account in &reloaded.undeclared {
        eprintln!(
            "warning: service account `{account}` is no longer declared: its processes are not judged any more, and may \
             reach everything"
        );
        eprintln!(
            "    help: if that is a mistake, declare it again and reload; to end its access, keep it declared and run `writ \
             account offboard {account} --reason …`"
        );
    }
}
