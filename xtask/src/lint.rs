//! `cargo xtask lint`: formatting, clippy for the host and for the BPF target, and the house rules.

use anyhow::Result;

use crate::build::{bpf_cargo, cargo_with_object};
use crate::process::{self, run, say};
use crate::tidy;

/// What is known of a change within a second.
pub(crate) fn rules() -> Result<()> {
    say("house rules");
    tidy::tidy()?;
    say("formatting");
    run(process::cargo().args(["fmt", "--all", "--check"]))
}

/// Everything a change is checked for without running it.
pub(crate) fn lint() -> Result<()> {
    rules()?;
    say("clippy, host");
    // The default members, which leave out what builds only for the BPF target.
    run(cargo_with_object().args(["clippy", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    say("clippy, BPF target");
    run(bpf_cargo("clippy").args(["--quiet", "--", "-D", "warnings"]))
}
