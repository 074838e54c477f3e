//! `cargo xtask soak`: what takes too long for every run of the tests: a daemon killed again and again under load.

use anyhow::Result;
use clap::Args;

use crate::build::{self, cargo_with_object};
use crate::{process, workspace};

/// How long.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How often the daemon is killed
    #[arg(long, default_value_t = 200)]
    rounds: u32,
}

/// Builds, then kills: after it all the log must verify, replay, and account for every attempt.
pub(crate) fn soak(options: &Options) -> Result<()> {
    build::build(&build::Options::default())?;
    let mut cargo = cargo_with_object();
    cargo.env("WRIT_BIN", workspace::writ(false)).env("WRIT_KILL_ROUNDS", options.rounds.to_string());
    cargo.args(["test", "--test", "cases", "--", "--test-threads=1", "--nocapture", "crash::"]);
    process::run(&mut cargo)
}
