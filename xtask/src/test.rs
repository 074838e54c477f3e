//! `cargo xtask test`: everything CI runs, each step printed, with one summary line at the end.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{self, cargo_with_object};
use crate::process::say;
use crate::tally::{Tally, counted, counted_by_name, once_more};
use crate::{demo, lint, package, rollout, setup, vm, workspace};

/// What to leave out.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Leave out the virtual machines
    #[arg(long)]
    no_vm: bool,
    /// A test that fails and then passes alone has failed
    #[arg(long)]
    strict: bool,
}

/// Runs every step whatever the others do, except that nothing can run without the build.
pub(crate) fn test(options: &Options) -> Result<ExitCode> {
    if options.no_vm && std::env::var_os("CI").is_some() {
        bail!("CI leaves nothing out: `--no-vm` is for developers");
    }
    let mut report = Report::default();
    let prepared = report.step("setup", || {
        setup::setup(&setup::Options {
            build: true,
            test: true,
            vm: !options.no_vm,
            deb: !options.no_vm,
            rollout: !options.no_vm,
            ..Default::default()
        })?;
        Ok(Tally::default())
    }) && report.step("build", || build::build(&build::Options::default()).map(|()| Tally::default()));
    if prepared {
        let (mut machines, mut packed) = (None, None);
        if options.no_vm {
            println!("==> in virtual machines and on three hosts: left out (--no-vm)");
        } else {
            report.step("package, and virtual machines beside what follows", || {
                let deb = packed.insert(package::deb(false)?);
                machines = Some(vm::Beside::begin(deb.clone(), options.strict)?);
                Ok(Tally::default())
            });
        }
        report.step("lint", || lint::lint().map(|()| Tally::default()));
        report.step("unit tests", || unit(options));
        report.step("whole-system tests, on this kernel", || whole_system(options));
        report.step("demo", || demo::demo(&demo::Options::default()).map(|()| Tally::ONE_SUCCESS));
        if let Some(deb) = packed {
            report.step("what fleets are given", rollout::fleet);
            report.step("rollout to three hosts", || rollout::claims(&deb));
        }
        if let Some(machines) = machines {
            report.step("whole-system tests and the package, in virtual machines", || machines.end());
        }
    }
    Ok(report.close())
}

/// The tests that need no kernel and no root, of every crate: all but [`whole_system`]'s, which are run only by name.
fn unit(options: &Options) -> Result<Tally> {
    suite(options, &[], &[])
}

/// The built `writ` on the kernel that runs here, confined to cgroups of the tests' own.
fn whole_system(options: &Options) -> Result<Tally> {
    // One at a time: each test asks the kernel for maps and programs of its own, and waits by the clock.
    suite(options, &["--test", "cases"], &["--test-threads=1"])
}

fn suite(options: &Options, what: &[&str], how: &[&str]) -> Result<Tally> {
    let cargo = || {
        let mut cargo = cargo_with_object();
        cargo.env("WRIT_BIN", workspace::writ(false)).arg("test").args(what).arg("--no-fail-fast").arg("--").args(how);
        cargo
    };
    let (tally, failed) = counted_by_name(&mut cargo())?;
    if options.strict {
        return Ok(tally);
    }
    once_more(tally, &failed, |names| counted(cargo().arg("--exact").args(names)))
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
