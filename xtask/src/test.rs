//! `cargo xtask test`: everything CI runs, each step printed, with one summary line at the end.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::beside::Beside;
use crate::build::{self, cargo_with_object};
use crate::process::{command, say};
use crate::tally::{Tally, counted, counted_by_name, once_more};
use crate::{demo, lint, package, rollout, setup, vm, workspace};

/// The whole-system tests' executable.
const CASES: &str = "cases";
/// How much way lint and unit tests give to everything else: they are done long before it.
const MUCH: u8 = 10;

/// What to leave out.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Leave out the virtual machines
    #[arg(long)]
    no_vm: bool,
    /// A test that fails and then passes alone has failed
    #[arg(long)]
    strict: bool,
    /// Only lint and unit tests, of what is set up and built
    #[arg(long, hide = true)]
    checks: bool,
}

/// Runs every step whatever the others do, except that nothing can run without the build.
pub(crate) fn test(options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    if options.checks {
        report.step("lint", || lint::lint().map(|()| Tally::default()));
        report.step("unit tests", || unit(options));
    } else if options.no_vm && std::env::var_os("CI").is_some() {
        bail!("CI leaves nothing out: `--no-vm` is for developers");
    } else {
        everything(options, &mut report);
    }
    Ok(report.close())
}

fn everything(options: &Options, report: &mut Report) {
    let (mut needed, mut built) = (None, None);
    let prepared = report.step("setup", || {
        setup::setup(&setup::Options { build: true, test: options.no_vm, ..Default::default() })?;
        Ok(Tally::default())
    });
    // Not in the middle of what takes half an hour: it is the slip that is made most.
    report.step("house rules and formatting", || lint::rules().map(|()| Tally::default()));
    let prepared = prepared
        && report.step("build", || {
            if !options.no_vm {
                needed = Some(vm::prepare()?);
            }
            build::with_cases()?;
            built = Some(vm::test_executables()?);
            Ok(Tally::default())
        });
    let Some(built) = built.filter(|_| prepared) else { return };
    let cases = built.iter().find(|built| built.name == CASES).map(|cases| cases.path.clone());
    let (mut machines, mut checks, mut packed) = (None, None, None);
    if let Some(needed) = needed {
        if !report.step("what the tests need", || needed.done().map(|()| Tally::default())) {
            return;
        }
        report.step("package", || {
            let deb = packed.insert(package::deb(false)?);
            machines = Some(vm::beside(built, deb.clone(), options.strict)?);
            Ok(Tally::default())
        });
    } else {
        println!("==> in virtual machines and on three hosts: left out (--no-vm)");
    }
    report.step("lint and unit tests, begun", || {
        let strict = options.strict.then_some("--strict");
        checks = Some(Beside::begin("lint and unit tests", MUCH, ["test", "--checks"].into_iter().chain(strict))?);
        Ok(Tally::default())
    });
    report.step("whole-system tests, on this kernel", || {
        whole_system(options, &cases.context("the tests crate built no whole-system tests")?)
    });
    if let Some(checks) = checks {
        report.step("lint and unit tests", || checks.end());
    }
    report.step("demo", || demo::demo(&demo::Options::default()).map(|()| Tally::ONE_SUCCESS));
    if let Some(deb) = packed {
        report.step("what fleets are given", rollout::fleet);
        report.step("rollout to three hosts", || rollout::claims(&deb));
    }
    if let Some(machines) = machines {
        report.step("whole-system tests and the package, in virtual machines", || machines.end());
    }
}

/// The tests that need no kernel and no root, of every crate: all but [`whole_system`]'s, which are run only by name.
fn unit(options: &Options) -> Result<Tally> {
    suite(options, || {
        let mut cargo = cargo_with_object();
        cargo.args(["test", "--no-fail-fast", "--"]);
        cargo
    })
}

/// The built `writ` on the kernel that runs here, confined to cgroups of the tests' own. Not by way of cargo, which lets nobody
/// else build until it has begun.
fn whole_system(options: &Options, cases: &Path) -> Result<Tally> {
    suite(options, || {
        let mut suite = command(cases);
        suite.current_dir(workspace::root().join("tests")).env("WRIT_BIN", workspace::writ(false));
        // One at a time: each test asks the kernel for maps and programs of its own, and waits by the clock.
        suite.arg("--test-threads=1");
        suite
    })
}

/// Runs a suite, and what failed of it alone.
fn suite(options: &Options, runner: impl Fn() -> Command) -> Result<Tally> {
    let (tally, failed) = counted_by_name(&mut runner())?;
    if options.strict {
        return Ok(tally);
    }
    once_more(tally, &failed, |names| counted(runner().arg("--exact").args(names)))
}

/// What the steps did.
#[derive(Default)]
struct Report {
    tally: Tally,
    failed: Vec<&'static str>,
}

impl Report {
    /// Runs one step; whether it went well.
    fn step(&mut self, name: &'static str, run: impl FnOnce() -> Result<Tally>) -> bool {
        say(&format!("step: {name}"));
        let started = Instant::now();
        let tally = run().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::ONE_FAILURE
        });
        let well = tally.failed == 0;
        if !well {
            self.failed.push(name);
        }
        self.tally += tally;
        let word = if well { "done" } else { "FAILED" };
        println!("==> step: {name}: {word} after {} s", started.elapsed().as_secs());
        well
    }

    /// Prints the summary, as the last line there is.
    fn close(self) -> ExitCode {
        if !self.failed.is_empty() {
            println!("==> failed: {}", self.failed.join(", "));
        }
        println!("\n{}", self.tally.summary());
        if self.failed.is_empty() && self.tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_is_counted_and_named() {
        let mut report = Report::default();
        assert!(report.step("good", || Ok(Tally { passed: 2, ..Tally::default() })));
        assert!(!report.step("bad", || bail!("no")));
        assert!(!report.step("worse", || Ok(Tally { passed: 1, failed: 1, ..Tally::default() })));
        assert_eq!(report.failed, ["bad", "worse"]);
        assert_eq!(report.tally.summary(), "3 passed, 2 failed");
        assert_eq!(report.close(), ExitCode::FAILURE);
    }

    #[test]
    fn no_test_at_all_is_no_success() {
        assert_eq!(Report::default().close(), ExitCode::FAILURE);
    }
}
