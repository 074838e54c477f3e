//! `cargo xtask fuzz`: every parser driven with mutations of real inputs, for as long as asked.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

use crate::build::cargo_with_object;
use crate::tally::counted;

/// For how long, from which seed.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The seed of a run that is to be repeated; without it, another one each time
    #[arg(long)]
    seed: Option<u64>,
}

/// Drives every target. The same targets run for a second or two each in `cargo xtask test`, from a fixed seed.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = options.seed.unwrap_or(clock);
    println!("    seed {seed}: `--seed {seed}` repeats this run");
    let mut cargo = cargo_with_object();
    cargo.env("WRIT_FUZZ_MS", (options.seconds * 1_000).to_string()).env("WRIT_FUZZ_SEED", seed.to_string());
    let tally = counted(cargo.args(["test", "--no-fail-fast", "fuzz", "--", "--nocapture"]))?;
    if tally.failed > 0 {
        bail!("{} targets panicked; each printed its input", tally.failed);
    }
    println!("\n{}", tally.summary());
    Ok(())
}
