//! `writ uninstall`: enforcement taken away. Needs no daemon, never prompts, is recorded.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use writ_core::config::Agent;

use super::status::log_is_written;
use super::{CONFIG_DIR, NOT_PERMITTED, output};
use crate::client::ClientError;
use crate::engine::note_uninstalled;
use crate::kernel;

/// How long a daemon that starts is waited for.
const ON_ITS_WAY: Duration = Duration::from_secs(20);

/// What `uninstall` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Removes every pin.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    if !Uid::effective().is_root() {
        eprintln!("error: only root can remove enforcement");
        return Ok(ExitCode::from(NOT_PERMITTED));
    }
    // What is in force by default is not what was meant by a directory that is not there.
    if config_dir != Path::new(CONFIG_DIR) && !config_dir.is_dir() {
        return Err(output::usage(format!(
            "there is no configuration directory `{}` to say what is to be taken away",
            config_dir.display()
        )));
    }
    let agent = output::agent(config_dir);
    let pins = PathBuf::from(&agent.paths.pins);
    // A daemon that runs does it itself, since it holds the log; it stops then.
    let socket = PathBuf::from(&agent.paths.socket);
    let mut asked = ask(&socket);
    // One that is on its way would put everything in force again.
    let deadline = Instant::now() + ON_ITS_WAY;
    while is_unreachable(&asked) && log_is_written(Path::new(&agent.paths.log)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        asked = ask(&socket);
    }
    let (removed, recorded) = match asked {
        Ok(done) => (done.get("removed").and_then(serde_json::Value::as_u64).unwrap_or(0), true),
        // It runs, and says no: root that a workload became takes nothing away.
        Err(error) if matches!(error.downcast_ref(), Some(ClientError::Refused { status: 403, .. })) => {
            return Err(error);
        }
        Err(_) => alone(&agent, &pins)?,
    };
    if removed == 0
        && let Some(why) = output::in_doubt(config_dir)
    {
        return Err(output::refused(format!(
            "nothing is in force at `{}`, which may not be the place: {why}",
            pins.display()
        )));
    }
    if output::is_json(args.json) {
        output::json(&serde_json::json!({ "removed": removed, "recorded": recorded }))?;
    } else if removed == 0 {
        println!("nothing was in force at {}", pins.display());
    } else {
        println!("removed {removed} pins at {}: nothing is enforced any more", pins.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(socket: &Path) -> anyhow::Result<serde_json::Value> {
    output::converse_at(socket, async |client| {
        client.post::<serde_json::Value>("/v1/uninstall", &serde_json::json!({})).await
    })
}

fn is_unreachable<T>(asked: &anyhow::Result<T>) -> bool {
    let error = asked.as_ref().err();
    error.is_some_and(|error| matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. })))
}

/// Removes the pins of a host whose daemon does not run, or does not answer.
fn alone(agent: &Agent, pins: &Path) -> anyhow::Result<(u64, bool)> {
    let removed = kernel::uninstall(pins)
        .map_err(|error| anyhow::anyhow!("removing the pins at `{}`: {error}", pins.display()))?;
    let recorded = match note_uninstalled(agent) {
        Ok(()) => true,
        Err(why) => {
            eprintln!("warning: the removal could not be recorded here: {why}");
            false
        }
    };
    Ok((removed as u64, recorded))
}
