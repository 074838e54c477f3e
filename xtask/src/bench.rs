//! `cargo xtask bench`: measurements by name; never a test, because a shared machine's clock proves nothing.

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{self, cargo_with_object};
use crate::process::run;

/// Benchmarks that exist: the name, the binary of the `tests` crate that measures it, and what it measures.
const BENCHMARKS: &[(&str, &str, &str)] = &[];

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Name of the benchmark; without one, the list
    name: Option<String>,
    /// Arguments of the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Lists the benchmarks, or runs one on an optimised build.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let Some(name) = &options.name else {
        if BENCHMARKS.is_empty() {
            println!("there are no benchmarks yet");
        }
        for (name, _, about) in BENCHMARKS {
            println!("{name:<16}{about}");
        }
        return Ok(());
    };
    let Some((_, binary, _)) = BENCHMARKS.iter().find(|(known, ..)| known == name) else {
        bail!("there is no benchmark `{name}`; `cargo xtask bench` lists them");
    };
    build::build(&build::Options { release: true })?;
    let mut cargo = cargo_with_object();
    cargo.args(["run", "--release", "--package", "writ-tests", "--bin", binary, "--"]).args(&options.arguments);
    run(&mut cargo)
}
