//! `writ replay`: is every recorded decision what its policies say, decided again from the log directory alone?

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use writ_core::replay::{Attempt, Difference, Outcome};

use super::cedar::Cedar;
use super::judgements::{Archive, Desk, Line, fold};
use super::output;

/// How many differing records are shown; all are counted.
const SHOWN: usize = 100;

/// Options of `replay`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ReplayArgs {
    /// The log directory; without it, the configured one
    #[arg(value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
    /// Ask the stock `cedar` command too
    #[arg(long)]
    pub with_cedar_cli: bool,
    /// The `cedar` command; without it, the one in PATH
    #[arg(long, value_name = "PATH", requires = "with_cedar_cli")]
    pub cedar: Option<PathBuf>,
    /// Ask the command about so many records, evenly spread, instead of each
    #[arg(long, value_name = "N", requires = "with_cedar_cli")]
    pub sample: Option<usize>,
    /// Keep the files that the command is given, in this directory
    #[arg(long, value_name = "DIR", requires = "with_cedar_cli")]
    pub cedar_files: Option<PathBuf>,
    /// The answer as JSON (the default when not a terminal)
    #[arg(long)]
    pub json: bool,
}

/// What became of a log.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Decisions and observations.
    judged: u64,
    /// Those that came out the same.
    reproduced: u64,
    /// Those that did not.
    differing: u64,
    /// Those that policy did not decide, or whose inputs are not there, by reason.
    not_replayable: BTreeMap<&'static str, u64>,
    /// Lines that are no record.
    unreadable: u64,
    /// The first that differ.
    findings: Vec<Finding>,
    /// What the stock command said.
    #[serde(skip_serializing_if = "Option::is_none")]
    cedar_cli: Option<Stock>,
    /// How long it took.
    seconds: f64,
    /// Indices of those that came out the same.
    #[serde(skip)]
    indices: Vec<u64>,
}

/// One record that differs.
#[derive(Debug, Serialize)]
struct Finding {
    index: u64,
    id: String,
    differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// What the stock command said.
#[derive(Debug, Default, Serialize)]
struct Stock {
    asked: u64,
    agreed: u64,
    differing: u64,
    /// Of those agreed: writ denied because a condition failed, where Cedar skips the policy.
    denied_on_error: u64,
    findings: Vec<Finding>,
}

/// Decides again; `log` is the configured directory. Exit code 1: something differs.
pub(crate) fn replay(args: &ReplayArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let log = args.log.as_deref().unwrap_or(log);
    let cedar = match args.with_cedar_cli {
        true => Some(Cedar::find(args.cedar.as_deref(), args.cedar_files.as_deref())?),
        false => None,
    };
    let started = Instant::now();
    let archive = Archive::of(log);
    let mut summary = fold(log, &archive, Summary::take, Summary::merge)?;
    summary.seconds = started.elapsed().as_secs_f64();
    if let Some(cedar) = &cedar {
        let chosen = spread(&summary.indices, args.sample.unwrap_or(usize::MAX));
        let ask = |stock: &mut Stock, desk: &mut Desk<'_>, index, line: Line<'_>| {
            if let (true, Line::Judged(attempt)) = (chosen.contains(&index), line) {
                stock.ask(cedar, desk, index, &attempt);
            }
        };
        summary.cedar_cli = Some(fold(log, &archive, ask, Stock::merge)?);
    }
    let printed = match output::is_json(args.json) {
        true => output::json(&summary),
        false => std::io::stdout().lock().write_all(summary.text().as_bytes()).map_err(Into::into),
    };
    output::found(summary.ok(), printed)
}

/// So many of them, evenly spread.
fn spread(indices: &[u64], most: usize) -> HashSet<u64> {
    let most = most.min(indices.len());
    (0..most).filter_map(|place| indices.get(place * indices.len() / most).copied()).collect()
}

impl Summary {
    fn take(&mut self, desk: &mut Desk<'_>, index: u64, line: Line<'_>) {
        let attempt = match line {
            Line::Judged(attempt) => attempt,
            Line::Other => return,
            Line::Unreadable(problem) => {
                self.unreadable += 1;
                return self.found(Finding {
                    index,
                    id: String::new(),
                    differences: Vec::new(),
                    problem: Some(problem),
                });
            }
        };
        self.judged += 1;
        let id = attempt.id.as_ref().to_owned();
        let outcome = if attempt.policy_digest.is_empty() {
            // No set is named: whether that may be is for the record to say.
            Ok(writ_core::replay::without_set(&attempt))
        } else {
            let (set, memo) = desk.set(&attempt.policy_digest);
            set.as_ref().map(|set| set.replay(&attempt, memo)).map_err(ToString::to_string)
        };
        match outcome {
            Ok(Outcome::Reproduced) => {
                self.reproduced += 1;
                self.indices.push(index);
            }
            Ok(Outcome::NotReplayable(why)) => *self.not_replayable.entry(why.name()).or_default() += 1,
            Ok(Outcome::Differing(differences)) => {
                self.differing += 1;
                self.found(Finding { index, id, differences, problem: None });
            }
            Err(problem) => {
                self.differing += 1;
                self.found(Finding { index, id, differences: Vec::new(), problem: Some(problem) });
            }
        }
    }

    fn found(&mut self, finding: Finding) {
        if self.findings.len() < SHOWN {
            self.findings.push(finding);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.judged += other.judged;
        self.reproduced += other.reproduced;
        self.differing += other.differing;
        self.unreadable += other.unreadable;
        for (reason, count) in other.not_replayable {
            *self.not_replayable.entry(reason).or_default() += count;
        }
        self.indices.extend(other.indices);
        self.findings.extend(other.findings);
        self.findings.truncate(SHOWN);
        self
    }

    fn ok(&self) -> bool {
        self.differing == 0 && self.unreadable == 0 && self.cedar_cli.as_ref().is_none_or(|stock| stock.differing == 0)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} decisions and observations decided again in {:.1} s: {} reproduced, {} differing, {} not replayable\n",
            self.judged,
            self.seconds,
            self.reproduced,
            self.differing,
            self.not_replayable.values().sum::<u64>()
        );
        for (reason, count) in &self.not_replayable {
            text.push_str(&format!("not replayable  {reason} ×{count}\n"));
        }
        if self.unreadable > 0 {
            text.push_str(&format!("{} lines are no record\n", self.unreadable));
        }
        text.push_str(&self.findings.iter().map(Finding::text).collect::<String>());
        if let Some(stock) = &self.cedar_cli {
            text.push_str(&format!(
                "stock cedar     {} asked, {} agreed ({} of them denied because a condition failed), {} differing\n",
                stock.asked, stock.agreed, stock.denied_on_error, stock.differing
            ));
            text.push_str(&stock.findings.iter().map(Finding::text).collect::<String>());
        }
        text.push_str(if self.ok() { "replayed\n" } else { "NOT REPRODUCED\n" });
        text
    }
}

impl Finding {
    fn text(&self) -> String {
        let mut text = format!("DIFFERS  record {} {}\n", self.index, self.id);
        for found in &self.differences {
            text.push_str(&format!(
                "  {}: recorded `{}`, decided again `{}`\n",
                found.member, found.recorded, found.replayed
            ));
        }
        if let Some(problem) = &self.problem {
            text.push_str(&format!("  {problem}\n"));
        }
        text
    }
}

impl Stock {
    fn ask(&mut self, cedar: &Cedar, desk: &mut Desk<'_>, index: u64, attempt: &Attempt<'_>) {
        let (Ok(set), _) = desk.set(&attempt.policy_digest) else { return };
        match cedar.ask(set, attempt) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                self.asked += 1;
                self.agreed += 1;
                self.denied_on_error += u64::from(answer.errs);
            }
            Err(problem) => {
                self.asked += 1;
                self.differing += 1;
                let id = attempt.id.as_ref().to_owned();
                self.findings.push(Finding { index, id, differences: Vec::new(), problem: Some(problem) });
            }
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.asked += other.asked;
        self.agreed += other.agreed;
        self.differing += other.differing;
        self.denied_on_error += other.denied_on_error;
        self.findings.extend(other.findings);
        self.findings.truncate(SHOWN);
        self
    }
}
