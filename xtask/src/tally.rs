//! What the test runners said, added up.

use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process::{say, shown};

/// Counts of tests, as the runners printed them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Of those that passed: the ones that had failed before, and passed alone.
    pub(crate) unsteady: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.unsteady += other.unsteady;
    }
}

impl Tally {
    /// One failure that no runner counted: it did not start, or ended without its closing line.
    pub(crate) const ONE_FAILURE: Self = Self { passed: 0, failed: 1, skipped: 0, unsteady: 0 };
    /// One claim that holds, made by something other than a test runner.
    pub(crate) const ONE_SUCCESS: Self = Self { passed: 1, failed: 0, skipped: 0, unsteady: 0 };

    /// The one summary line of `cargo xtask test`.
    pub(crate) fn summary(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed);
        for (count, word) in [(self.skipped, "skipped"), (self.unsteady, "unsteady")] {
            if count > 0 {
                line.push_str(&format!(", {count} {word}"));
            }
        }
        line
    }

    /// The counts of a [`Tally::summary`], if the line is one.
    pub(crate) fn of_summary(line: &str) -> Option<Self> {
        let mut parts = line.trim().split(", ").peekable();
        let mut next = |word: &str| {
            let number = parts.peek()?.strip_suffix(word)?.trim_end().parse().ok()?;
            parts.next();
            Some(number)
        };
        let (passed, failed) = (next("passed")?, next("failed")?);
        let (skipped, unsteady) = (next("skipped").unwrap_or(0), next("unsteady").unwrap_or(0));
        Some(Self { passed, failed, skipped, unsteady })
    }
}

/// The counts in libtest's closing line, `test result: ok. 3 passed; 0 failed; 1 ignored; …`, if this is one.
fn closing_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
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

/// How many tests may fail once in a run. One more, and it is the product or the machine that is unsteady.
const MOST_UNSTEADY: usize = 2;

/// What runners said, line by line.
#[derive(Debug, Default)]
pub(crate) struct Said {
    tally: Tally,
    /// How many of them began, and how many came to their closing line.
    begun: u64,
    closed: u64,
    failed: Vec<String>,
}

impl Said {
    /// A whole output.
    pub(crate) fn of(output: &str) -> Self {
        let mut said = Self::default();
        output.lines().for_each(|line| said.take(line));
        said
    }

    fn take(&mut self, line: &str) {
        let line = line.trim();
        self.begun += u64::from(is_opening_line(line));
        if let Some(counts) = closing_line(line) {
            self.tally += counts;
            self.closed += 1;
        }
        self.failed.extend(failed_test(line).map(str::to_owned));
    }

    /// The counts, and the tests that failed by name. A runner that began and was not heard of again is a failure.
    pub(crate) fn counted(mut self) -> (Tally, Vec<String>) {
        let unheard = self.begun.saturating_sub(self.closed);
        if unheard > 0 {
            println!("    {unheard} test runners ended without saying what they had run");
        }
        self.tally.failed += unheard;
        (self.tally, self.failed)
    }
}

/// Whether this is libtest's `running 3 tests`.
fn is_opening_line(line: &str) -> bool {
    let count = line.strip_prefix("running ").and_then(|rest| rest.split_once(" test"));
    count.is_some_and(|(count, rest)| count.parse::<u64>().is_ok() && matches!(rest, "" | "s"))
}

/// The test that libtest's line `test NAME ... FAILED` names, if this is one.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// The counts of a run whose few failed tests were run alone once more. What passes then counts as passed, and as
/// unsteady: a chance failure among a thousand tests must not hide what the other 999 say, and is a defect to be found
/// all the same. `alone` runs tests by name.
pub(crate) fn once_more(
    first: Tally,
    failed: &[String],
    alone: impl FnOnce(&[String]) -> Result<Tally>,
) -> Result<Tally> {
    let count = failed.len() as u64;
    if count == 0 || first.failed != count || failed.len() > MOST_UNSTEADY {
        return Ok(first);
    }
    say(&format!("failed, and run alone once more: {}", failed.join(", ")));
    let again = alone(failed)?;
    if again.failed > 0 || again.passed != count {
        println!("    failed again: {}", failed.join(", "));
        return Ok(first);
    }
    println!("    UNSTEADY, a defect of the test or of what it tests: {}", failed.join(", "));
    Ok(Tally { passed: first.passed + count, failed: 0, unsteady: count, ..first })
}

/// Runs a test runner in the open and counts what it says. A runner that fails without counting a failure, or that
/// succeeds without having run a test, counts as one failure: silence is not success.
pub(crate) fn counted(command: &mut Command) -> Result<Tally> {
    Ok(counted_by_name(command)?.0)
}

/// As [`counted`]; and the tests that failed.
pub(crate) fn counted_by_name(command: &mut Command) -> Result<(Tally, Vec<String>)> {
    let line = shown(command);
    println!("    $ {line}");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let mut said = Said::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read the test runner's output")?;
            println!("{line}");
            said.take(&line);
        }
    }
    let (mut tally, failed) = said.counted();
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    if !status.success() && tally.failed == 0 {
        println!("`{line}` failed without counting a failed test: {status}");
        tally += Tally::ONE_FAILURE;
    } else if status.success() && tally.passed == 0 {
        println!("`{line}` ran no test");
        tally += Tally::ONE_FAILURE;
    }
    Ok((tally, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "running 4 tests\n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s\n\nrunning 45 tests\n\
        test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s\n";

    #[test]
    fn closing_lines_add_up() {
        assert_eq!(Said::of(RUN).counted().0, tally(42, 1, 1));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Said::of("test a ... ok\ntest result\n3 passed; 0 failed\n").counted().0, Tally::default());
    }

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally { passed, failed, skipped, unsteady: 0 }
    }

    #[test]
    fn the_summary_names_skips_and_unsteady_tests_only_if_there_are_any() {
        assert_eq!(tally(3, 0, 0).summary(), "3 passed, 0 failed");
        assert_eq!(tally(3, 1, 2).summary(), "3 passed, 1 failed, 2 skipped");
        assert_eq!(Tally { unsteady: 1, ..tally(3, 0, 0) }.summary(), "3 passed, 0 failed, 1 unsteady");
    }

    #[test]
    fn a_summary_is_read_as_it_was_written_and_nothing_else_is() {
        for skipped in [0, 2] {
            for unsteady in [0, 1] {
                let tally = Tally { unsteady, ..tally(3, 1, skipped) };
                assert_eq!(Tally::of_summary(&tally.summary()), Some(tally));
            }
        }
        assert_eq!(Tally::of_summary("    Linux 6.1: 3 passed, 0 failed"), None);
    }

    #[test]
    fn failed_tests_are_read_by_name() {
        let said = Said::of("test a::b ... ok\ntest a::c ... FAILED\ntest result: FAILED. 1 passed; 1 failed");
        assert_eq!(said.counted(), (tally(1, 1, 0), vec!["a::c".to_owned()]));
    }

    #[test]
    fn a_runner_that_dies_is_a_failure_and_its_failed_test_is_not_run_again() {
        let died = format!("{RUN}running 1 test\ntest a ... FAILED\n");
        let (counts, failed) = Said::of(&died).counted();
        assert_eq!((counts, failed.len()), (tally(42, 2, 1), 1));
        assert_eq!(once_more(counts, &failed, |_| panic!("not all that failed has a name")).unwrap(), counts);
        assert_eq!(Said::of("running 3 tests of patience\n").counted().0, Tally::default());
    }

    #[test]
    fn a_test_that_fails_once_is_unsteady_and_one_that_fails_twice_has_failed() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let first = tally(7, 2, 1);
        let unsteady = once_more(first, &names[..2], |_| Ok(tally(2, 0, 0))).unwrap();
        assert_eq!(unsteady, Tally { unsteady: 2, ..tally(9, 0, 1) });
        assert_eq!(once_more(first, &names[..2], |_| Ok(tally(1, 1, 0))).unwrap(), first);
        // Not all of them were there to be run again.
        assert_eq!(once_more(first, &names[..2], |_| Ok(tally(1, 0, 0))).unwrap(), first);
        // Something failed that has no name, or too much did.
        assert_eq!(once_more(first, &names[..1], |_| Ok(tally(1, 0, 0))).unwrap(), first);
        assert_eq!(once_more(tally(7, 3, 0), &names, |_| Ok(tally(3, 0, 0))).unwrap(), tally(7, 3, 0));
    }

    #[test]
    fn a_silent_success_is_a_failure() {
        assert_eq!(counted(&mut Command::new("true")).unwrap(), Tally::ONE_FAILURE);
        assert_eq!(counted(&mut Command::new("false")).unwrap(), Tally::ONE_FAILURE);
    }
}
