//! `cargo xtask run`: builds, then becomes `writ`.

use std::os::unix::process::CommandExt as _;

use anyhow::{Result, bail};
use clap::Args;

use crate::build;
use crate::process::{command, say, shown};
use crate::workspace;

/// How to build, and what to tell `writ`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Run the optimised build
    #[arg(long)]
    release: bool,
    /// Arguments of `writ`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and runs; does not return unless that fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    build::build(&build::Options { release: options.release })?;
    let mut writ = command(workspace::writ(options.release));
    writ.args(&options.arguments);
    say(&shown(&writ));
    // In place of this program, so that signals and the exit code are writ's own.
    let error = writ.exec();
    bail!("cannot run `{}`: {error}", shown(&writ))
}
