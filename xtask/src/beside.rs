//! A part of `cargo xtask test` beside the rest: this program once more, with what it says in a file of its own. The
//! whole-system suite waits by the clock for half of its time, and nothing else has to.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{command, say, shown};
use crate::tally::Tally;
use crate::workspace;

/// A part that is running.
pub(crate) struct Beside {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Beside {
    /// Starts `cargo xtask` with these arguments. It gives way to what runs in the open, by so much (`nice`): that waits by
    /// the clock.
    pub(crate) fn begin(
        what: &'static str,
        way: u8,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        let log = workspace::target().join(format!("{}.log", what.replace(' ', "-")));
        let said = fs::File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut part = command("nice");
        part.arg("-n").arg(way.to_string()).arg(own).args(arguments);
        let line = shown(&part);
        println!("    beside what follows: {what}\n    $ {line} >{}", log.display());
        let errors = said.try_clone().context("cannot write the log twice")?;
        let child = part.stdin(Stdio::null()).stdout(said).stderr(errors).spawn();
        Ok(Self { what, child: child.with_context(|| format!("cannot run `{line}`"))?, log })
    }

    /// Waits for it, shows what it said, and counts the tests that it ran.
    pub(crate) fn end(self) -> Result<Tally> {
        let what = self.what;
        let (well, mut tally) = self.wait()?;
        if (!well && tally.failed == 0) || tally.passed == 0 {
            println!("    {what}: ended and counted no failed test");
            tally += Tally::ONE_FAILURE;
        }
        Ok(tally)
    }

    /// Waits for what runs no tests.
    pub(crate) fn done(self) -> Result<()> {
        let what = self.what;
        if !self.wait()?.0 {
            bail!("{what}: failed");
        }
        Ok(())
    }

    /// Whether it ended well, and what the last summary in what it said counts.
    fn wait(mut self) -> Result<(bool, Tally)> {
        let what = self.what;
        say(&format!("waiting for {what}"));
        let status = self.child.wait().with_context(|| format!("cannot wait for {what}"))?;
        let said = fs::read(&self.log).with_context(|| format!("cannot read `{}`", self.log.display()))?;
        let said = String::from_utf8_lossy(&said);
        println!("{said}");
        Ok((status.success(), said.lines().rev().find_map(Tally::of_summary).unwrap_or_default()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It has ended, unless something kept us from waiting for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
