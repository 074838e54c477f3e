//! `cargo xtask fuzz-api`: schemathesis makes requests of docs/openapi.yaml, for a bounded while, against a daemon of its own.

use anyhow::Result;
use clap::Args;

use crate::build::{self, cargo_with_object};
use crate::process::{command, run, say};
use crate::workspace;

/// The release that is known to work.
const SCHEMATHESIS: &str = "4.32.5";

/// How much of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Requests of each kind and operation
    #[arg(long, default_value_t = 20)]
    examples: u32,
}

/// Builds, gets schemathesis into `target/tools`, and runs it.
pub(crate) fn fuzz_api(options: &Options) -> Result<()> {
    build::build(&build::Options { release: false })?;
    run(cargo_with_object().args(["build", "--bin", "writ-probe", "--bin", "writ-fuzz-api"]))?;
    let tools = workspace::root().join("target/tools/schemathesis");
    let program = tools.join("bin/schemathesis");
    if !program.exists() {
        say(&format!("getting schemathesis {SCHEMATHESIS}"));
        run(command("/usr/bin/python3").args(["-m", "venv"]).arg(&tools))?;
        run(command(tools.join("bin/pip")).args(["install", "--quiet", &format!("schemathesis=={SCHEMATHESIS}")]))?;
    }
    let writ = workspace::writ(false);
    let mut fuzz = command(writ.with_file_name("writ-fuzz-api"));
    fuzz.env("WRIT_BIN", &writ).env("WRIT_PROBE", writ.with_file_name("writ-probe"));
    run(fuzz.arg(program).arg(options.examples.to_string()))
}
