//! `cargo xtask bench`: measurements by name; never a test, because a shared machine's clock proves nothing.

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{self, cargo_with_object};
use crate::process::run;
use crate::workspace;

/// Benchmarks that exist: the name, the binary of the `tests` crate that measures it, and what it measures.
const BENCHMARKS: &[(&str, &str, &str)] = &[
    ("connect", "writ-bench-connect", "one UDP connect: bare, no-op program, unmanaged, managed with a record"),
    ("live", "writ-bench-live", "a signal: receipt to refusal, to sessions cut, and how many in a second; grants"),
    ("scale", "writ-bench-scale", "a thousand accounts: start, reload, memory of the daemon and of the maps"),
    (
        "evidence",
        "writ-bench-evidence",
        "records a second and their cost; verify, replay and explain on the log they make",
    ),
    (
        "decision",
        "writ-bench-decision",
        "one question to the decision point: rate and latency at 1, 32 and 256 clients",
    ),
];

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
        for (name, _, about) in BENCHMARKS {
            println!("{name:<16}{about}");
        }
        return Ok(());
    };
    let Some((_, binary, _)) = BENCHMARKS.iter().find(|(known, ..)| known == name) else {
        bail!("there is no benchmark `{name}`; `cargo xtask bench` lists them");
    };
    build::build(&build::Options { release: true })?;
    // Another engine beside writ's: nothing else is measured with it.
    let features: &[&str] = if name == "decision" { &["--features", "beside"] } else { &[] };
    run(cargo_with_object().args(["build", "--release", "--package", "writ-tests"]).args(features))?;
    let mut cargo = cargo_with_object();
    cargo.env("WRIT_BIN", workspace::writ(true)).env("WRIT_PROBE", workspace::writ(true).with_file_name("writ-probe"));
    cargo.args(["run", "--release", "--package", "writ-tests"]).args(features);
    cargo.args(["--bin", binary, "--"]).args(&options.arguments);
    run(&mut cargo)
}
