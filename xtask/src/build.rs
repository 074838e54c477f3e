//! `cargo xtask build`: the BPF object first, then `writ` with the object inside.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{self, exists, run, say};
use crate::workspace;

/// Names the BPF object to the daemon's build script.
const OBJECT_VARIABLE: &str = "WRIT_BPF_OBJECT";
/// What every cargo call for the BPF target has in common.
const BPF_ARGUMENTS: &[&str] = &[
    "--package",
    "writ-programs",
    "--profile",
    "bpf",
    "--target",
    "bpfel-unknown-none",
    "-Z",
    "build-std=core",
    "--target-dir",
    "target/bpf",
];

/// What to build.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Optimised, at `target/release/writ`
    #[arg(long)]
    pub(crate) release: bool,
}

/// Builds the object and the binary.
pub(crate) fn build(options: &Options) -> Result<()> {
    bpf_object()?;
    say("building writ");
    let mut cargo = cargo_with_object();
    cargo.args(["build", "--bin", "writ"]);
    if options.release {
        // What is shipped has the features that it asks for itself, and no others.
        cargo.args(["--package", "writ", "--release"]);
    }
    run(&mut cargo)?;
    println!("    built {}", workspace::writ(options.release).display());
    Ok(())
}

/// Builds the object, the binary and the whole-system tests, which are compiled beside each other.
pub(crate) fn with_cases() -> Result<()> {
    bpf_object()?;
    say("building writ and the whole-system tests");
    run(cargo_with_object().args(["build", "--bin", "writ", "--test", "cases"]))
}

/// Builds the BPF object.
pub(crate) fn bpf_object() -> Result<()> {
    if !exists("bpf-linker") {
        bail!("`bpf-linker` is not installed; `cargo xtask setup --build` gets it");
    }
    say("building the BPF object");
    run(&mut bpf_cargo("build"))?;
    let object = workspace::bpf_object();
    if !object.is_file() {
        bail!("the build left no object at `{}`", object.display());
    }
    Ok(())
}

/// Cargo for the BPF target: `cargo SUBCOMMAND` on the kernel programs.
pub(crate) fn bpf_cargo(subcommand: &str) -> Command {
    let mut cargo = process::cargo();
    // `-Z build-std` on the pinned stable compiler: without it the kernel side would need a nightly, a second toolchain.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // Flags from the environment would replace those of .cargo/config.toml, and the object would have no BTF.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.arg(subcommand).args(BPF_ARGUMENTS);
    cargo
}

/// Cargo for the host, with the object (if there is one) named to the daemon's build script: always the same way, so
/// that building, linting and testing share what they compile. For the same reason debug builds choose targets and no packages:
/// cargo would compile Cedar and half of the rest anew, with the features that another choice of packages asks for.
pub(crate) fn cargo_with_object() -> Command {
    let mut cargo = process::cargo();
    let object = workspace::bpf_object();
    if object.is_file() {
        cargo.env(OBJECT_VARIABLE, object);
    }
    cargo
}
