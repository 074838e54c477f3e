//! `cargo xtask rollout`: the Ansible role against three hosts of its own, with their probers running.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process::{command, run, say};
use crate::tally::{Tally, counted};
use crate::{build, package, setup, vm, workspace};

const SCRIPT: &str = include_str!("rollout/rollout.sh");
/// What answers for systemd on hosts that are not booted.
const STAND_IN: &str = include_str!("rollout/systemctl.sh");

/// What to roll out.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// The optimised build
    #[arg(long)]
    release: bool,
}

/// Runs it, and fails if a claim failed.
pub(crate) fn rollout(options: &Options) -> Result<()> {
    setup::setup(&setup::Options { build: true, vm: true, deb: true, rollout: true, ..Default::default() })?;
    build::build(&build::Options { release: options.release })?;
    fleet()?;
    let tally = claims(&package::deb(options.release)?)?;
    println!("\n{}", tally.summary());
    if tally.failed > 0 {
        bail!("a claim about the rollout failed");
    }
    Ok(())
}

/// What fleets are given beside the package: the role is linted, and the alert rules do what they say.
pub(crate) fn fleet() -> Result<Tally> {
    say("ansible-lint, production profile");
    let mut lint = command("ansible-lint");
    run(lint
        .args(["--offline", "--profile", "production", "-q"])
        .current_dir(workspace::root().join("fleet/ansible")))?;
    say("promtool");
    let rules = workspace::root().join("fleet/prometheus");
    run(command(workspace::promtool()).args(["check", "rules", "writ.rules.yml"]).current_dir(&rules))?;
    run(command(workspace::promtool()).args(["test", "rules", "writ.rules.test.yml"]).current_dir(&rules))?;
    Ok(Tally::ONE_SUCCESS)
}

/// Three hosts are made, the role is run against them, and they are gone.
pub(crate) fn claims(deb: &Path) -> Result<Tally> {
    let work = workspace::target().join("rollout");
    vm::remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot create `{}`", work.display()))?;
    let (script, stand_in, probe) = (work.join("rollout.sh"), work.join("systemctl"), work.join("writ-probe"));
    fs::write(&script, SCRIPT).context("cannot write the script")?;
    fs::write(&stand_in, STAND_IN).context("cannot write the stand-in for systemctl")?;
    vm::prober(&probe)?;
    let mut unshare = command("unshare");
    unshare.args(["--net", "--mount", "--propagation", "private", "bash"]).arg(&script);
    unshare.arg(vm::guest_root()?).arg(deb).arg(&probe).arg(workspace::root().join("fleet/ansible"));
    let tally = counted(unshare.arg(&stand_in).arg(&work))?;
    vm::remove(&work)?;
    Ok(tally)
}
