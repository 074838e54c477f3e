//! What the test runners said, added up.

use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process::shown;

/// Counts of tests, as the runners printed them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Tally {
    /// One failure that no runner counted: it did not start, or ended without its closing line.
    pub(crate) const ONE_FAILURE: Self = Self { passed: 0, failed: 1, skipped: 0 };
    /// One claim that holds, made by something other than a test runner.
    pub(crate) const ONE_SUCCESS: Self = Self { passed: 1, failed: 0, skipped: 0 };

    /// The closing lines in a runner's output, added up.
    pub(crate) fn read(output: &str) -> Self {
        output.lines().filter_map(closing_line).fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }

    /// The one summary line of `cargo xtask test`.
    pub(crate) fn summary(&self) -> String {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

impl Tally {
    /// The counts of a [`Tally::summary`], if the line is one.
    pub(crate) fn of_summary(line: &str) -> Option<Self> {
        let mut parts = line.trim().split(", ");
        let mut next = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        let (passed, failed) = (next("passed")?, next("failed")?);
        Some(Self { passed, failed, skipped: next("skipped").unwrap_or(0) })
    }
}

/// The counts in libtest's closing line, `test result: ok. 3 passed; 0 failed; 1 ignored; …`, if this is one.
fn closing_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for count in counts.split("; ") {
        match count.split_once(' ') {
            Some((number, "passed")) => tally.passed = number.parse().ok()?,
            Some((number, "failed")) => tally.failed = number.parse().ok()?,
            Some((number, "ignored")) => tally.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

/// Runs a test runner in the open and counts what it says. A runner that fails without counting a failure, or that
/// succeeds without having run a test, counts as one failure: silence is not success.
pub(crate) fn counted(command: &mut Command) -> Result<Tally> {
    let line = shown(command);
    println!("    $ {line}");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read the test runner's output")?;
            println!("{line}");
            tally += closing_line(&line).unwrap_or_default();
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    if !status.success() && tally.failed == 0 {
        println!("`{line}` failed without counting a failed test: {status}");
        tally += Tally::ONE_FAILURE;
    } else if status.success() && tally.passed == 0 {
        println!("`{line}` ran no test");
        tally += Tally::ONE_FAILURE;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "running 4 tests\n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s\n\
        test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s\n";

    #[test]
    fn closing_lines_add_up() {
        assert_eq!(Tally::read(RUN), Tally { passed: 42, failed: 1, skipped: 1 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Tally::read("test a ... ok\ntest result\n3 passed; 0 failed\n"), Tally::default());
    }

    #[test]
    fn the_summary_names_skips_only_if_there_are_any() {
        assert_eq!(Tally { passed: 3, failed: 0, skipped: 0 }.summary(), "3 passed, 0 failed");
        assert_eq!(Tally { passed: 3, failed: 1, skipped: 2 }.summary(), "3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_summary_is_read_as_it_was_written_and_nothing_else_is() {
        for tally in [Tally { passed: 3, failed: 0, skipped: 0 }, Tally { passed: 3, failed: 1, skipped: 2 }] {
            assert_eq!(Tally::of_summary(&tally.summary()), Some(tally));
        }
        assert_eq!(Tally::of_summary("    Linux 6.1: 3 passed, 0 failed"), None);
    }

    #[test]
    fn a_silent_success_is_a_failure() {
        assert_eq!(counted(&mut Command::new("true")).unwrap(), Tally::ONE_FAILURE);
        assert_eq!(counted(&mut Command::new("false")).unwrap(), Tally::ONE_FAILURE);
    }
}
