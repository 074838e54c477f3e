//! The package in a virtual machine with systemd: installed, in force, restarted, upgraded, rebooted, removed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{root, stripped, test_executables};
use crate::package;

const SCRIPT: &str = include_str!("package.sh");

/// Puts the package, the prober and the script into one directory.
pub(super) fn collect(input: &Path, release: bool) -> Result<()> {
    root::remove(input)?;
    fs::create_dir_all(input).with_context(|| format!("cannot create `{}`", input.display()))?;
    let made = package::pack(&package::Options { debug: !release })?;
    let deb = made.first().context("no .deb was made")?;
    let name = deb.file_name().context("the .deb has no name")?;
    fs::copy(deb, input.join(name)).with_context(|| format!("cannot copy `{}`", deb.display()))?;
    let executables = test_executables()?;
    let probe = executables.iter().find(|executable| !executable.test).context("the tests crate built no prober")?;
    stripped(&probe.path, &input.join("writ-probe"))?;
    fs::write(input.join("run.sh"), SCRIPT).context("cannot write the guest's script")
}
