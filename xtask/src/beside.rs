//! The suite in virtual machines beside everything else that `cargo xtask test` does: an emulated machine is busy for a quarter
//! of an hour, and so is the suite on this kernel, neither with all of the processors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};

use super::Built;
use crate::process::{command, say, shown};
use crate::tally::Tally;

/// A suite that is running.
pub(crate) struct Beside {
    child: Child,
    log: PathBuf,
}

impl Beside {
    /// Starts the suite and then the package's claims, of what is built now: what is built later does not change it.
    ///
    /// It gives way to everything else (`nice`): what runs beside it on this kernel waits by the clock.
    pub(crate) fn begin(deb: PathBuf, strict: bool) -> Result<Self> {
        let cache = super::cache()?;
        let (list, log) = (cache.join("built.json"), cache.join("suite.log"));
        let built = Built { executables: super::test_executables()?, package: Some(deb) };
        let text = serde_json::to_vec(&built).context("cannot list what was built")?;
        fs::write(&list, text).with_context(|| format!("cannot write `{}`", list.display()))?;
        let said = fs::File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut suite = command("nice");
        suite.args(["-n", "5"]).arg(own).args(["vm", "--built"]).arg(&list);
        if strict {
            suite.arg("--strict");
        }
        let line = shown(&suite);
        println!("    $ {line} >{}", log.display());
        let errors = said.try_clone().context("cannot write the log twice")?;
        let child = suite.stdin(Stdio::null()).stdout(said).stderr(errors).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot run `{line}`"))?, log })
    }

    /// Waits for it, shows what it said, and counts it.
    pub(crate) fn end(mut self) -> Result<Tally> {
        say("waiting for the virtual machines");
        let status = self.child.wait().context("cannot wait for the virtual machines")?;
        let said = fs::read(&self.log).with_context(|| format!("cannot read `{}`", self.log.display()))?;
        let said = String::from_utf8_lossy(&said);
        println!("{said}");
        let mut tally = said.lines().rev().find_map(Tally::of_summary).unwrap_or_default();
        if (!status.success() && tally.failed == 0) || tally.passed == 0 {
            println!("    the machines ended with {status} and counted no failed test");
            tally += Tally::ONE_FAILURE;
        }
        Ok(tally)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It has ended, unless something kept us from waiting for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was built, as [`Beside::begin`] wrote it down.
pub(super) fn read(list: &Path) -> Result<Built> {
    let text = fs::read(list).with_context(|| format!("cannot read `{}`", list.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is no list of what was built", list.display()))
}
