//! The package in a virtual machine with systemd: installed, in force, restarted, upgraded, rebooted, removed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Executable, prober_of, root};
use crate::workspace;

const SCRIPT: &str = include_str!("package.sh");
const GUIDE: &str = include_str!("guide.py");

/// Puts the package, the prober, the guide and the script into one directory.
pub(super) fn collect(input: &Path, deb: &Path, executables: &[Executable], thorough: bool) -> Result<()> {
    root::remove(input)?;
    fs::create_dir_all(input).with_context(|| format!("cannot create `{}`", input.display()))?;
    let name = deb.file_name().context("the .deb has no name")?;
    fs::copy(deb, input.join(name)).with_context(|| format!("cannot copy `{}`", deb.display()))?;
    prober_of(executables, &input.join("writ-probe"))?;
    fs::write(input.join("guide.py"), GUIDE).context("cannot write what follows the guide")?;
    let guide = workspace::root().join("docs/first-half-hour.md");
    fs::copy(&guide, input.join("first-half-hour.md")).with_context(|| format!("cannot copy `{}`", guide.display()))?;
    if thorough {
        fs::write(input.join("thorough"), "").context("cannot ask for all claims")?;
    }
    fs::write(input.join("run.sh"), SCRIPT).context("cannot write the guest's script")
}
