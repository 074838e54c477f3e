//! `writ uninstall`: enforcement taken away. Needs no daemon, never prompts, is recorded.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::Uid;

use super::{NOT_PERMITTED, output};
use crate::configuration;
use crate::engine::{agent_alone, note_uninstalled};
use crate::kernel;

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
    let sources = configuration::read::read(config_dir).sources;
    let agent = agent_alone(&sources);
    let pins = PathBuf::from(&agent.paths.pins);
    let removed = kernel::uninstall(&pins)
        .map_err(|error| anyhow::anyhow!("removing the pins at `{}`: {error}", pins.display()))?;
    let recorded = match note_uninstalled(&agent) {
        Ok(()) => true,
        Err(why) => {
            eprintln!("warning: the removal could not be recorded here: {why}");
            false
        }
    };
    if output::is_json(args.json) {
        output::json(&serde_json::json!({ "removed": removed, "recorded": recorded }))?;
    } else if removed == 0 {
        println!("nothing was in force at {}", pins.display());
    } else {
        println!("removed {removed} pins at {}: nothing is enforced any more", pins.display());
    }
    Ok(ExitCode::SUCCESS)
}
