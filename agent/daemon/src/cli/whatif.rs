//! `writ whatif --policies DIR`: what the recorded attempts would meet under other policies.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use writ_core::config::{Config, SourceFile};
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::record::Verdict;
use writ_core::replay::{Archived, Attempt, Memo, Unanswered};

use super::judgements::{Archive, Desk, Line, fold};
use super::{USAGE, output};
use crate::configuration::{self, read::read_policies, render};

/// Options of `whatif`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct WhatifArgs {
    /// The other policies: a directory with *.cedar
    #[arg(long, value_name = "DIR")]
    pub policies: PathBuf,
    /// The log directory; without it, the configured one
    #[arg(value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
    /// The answer as JSON (the default when not a terminal)
    #[arg(long)]
    pub json: bool,
}

/// What would change.
#[derive(Debug, Serialize)]
struct Answer {
    /// Attempts decided under both.
    compared: u64,
    /// Attempts with another verdict.
    changed: u64,
    newly_denied: u64,
    newly_allowed: u64,
    newly_escalated: u64,
    /// Attempts that policy did not decide, by reason.
    not_compared: BTreeMap<String, u64>,
    /// The changes by account and destination, the commonest first.
    changes: Vec<Change>,
}

/// One kind of change.
#[derive(Clone, Debug, Serialize)]
struct Change {
    account: String,
    destination: String,
    from: Verdict,
    to: Verdict,
    /// Attempts.
    count: u64,
    /// The policies that decided.
    policies_before: Vec<String>,
    /// The policies that would decide.
    policies_after: Vec<String>,
    /// One of the records.
    example: String,
}

type Key = (String, String, Verdict, Verdict, Vec<String>, Vec<String>);

#[derive(Default)]
struct Tally {
    compared: u64,
    not_compared: BTreeMap<String, u64>,
    changes: HashMap<Key, (u64, String)>,
    memos: HashMap<String, Memo>,
}

/// One of the log's sets under the other policies, or what is wrong with these.
type Other = Arc<Result<Archived, Vec<Diagnostic>>>;

/// The sets of the log with the other policies in them.
struct Others {
    policies: Vec<SourceFile>,
    /// The configuration as it is now, if there is one: policies may name what was declared since.
    now: Option<Config>,
    known: Mutex<HashMap<String, Other>>,
}

/// Compares; `log` is the configured directory. Exit code 1: something would change.
pub(crate) fn whatif(args: &WhatifArgs, config_dir: &Path, log: &Path) -> anyhow::Result<ExitCode> {
    let log = args.log.as_deref().unwrap_or(log);
    let files = read_policies(&args.policies);
    if refused(&files.diagnostics, &files.sources) {
        return Ok(ExitCode::from(USAGE));
    }
    let now = configuration::load_with(config_dir, Some(&args.policies)).config;
    let others = Others { policies: files.sources, now, known: Mutex::default() };
    let archive = Archive::of(log);
    let tally = fold(log, &archive, |tally: &mut Tally, desk, _, line| tally.take(&others, desk, line), Tally::merge)?;
    let known = others.known.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Where none of the log's sets can take them, it is the policies that are wrong.
    let fits = known.values().any(|set| set.is_ok());
    for findings in known.values().filter(|_| !fits).filter_map(|set| set.as_ref().as_ref().err()) {
        if refused(findings, &others.policies) {
            return Ok(ExitCode::from(USAGE));
        }
    }
    let answer = tally.answer();
    let printed = match output::is_json(args.json) {
        true => output::json(&answer),
        false => std::io::stdout().lock().write_all(answer.text().as_bytes()).map_err(Into::into),
    };
    output::found(answer.changed == 0, printed)
}

/// Shows findings; whether one is an error.
fn refused(findings: &[Diagnostic], sources: &[SourceFile]) -> bool {
    let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
    if refused {
        eprint!("{}", render::render(findings, sources, output::colours()));
    }
    refused
}

impl Others {
    fn under(&self, digest: &str, set: &Archived) -> Other {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = known.get(digest) {
            return Arc::clone(other);
        }
        let other = Arc::new(set.under(&self.policies, self.now.as_ref()));
        known.insert(digest.to_owned(), Arc::clone(&other));
        other
    }
}

impl Tally {
    fn take(&mut self, others: &Others, desk: &mut Desk<'_>, line: Line<'_>) {
        let attempt = match line {
            Line::Judged(attempt) => attempt,
            Line::Other => return,
            Line::Unreadable(_) => return self.pass("no-record", 1),
        };
        let count = u64::from(attempt.count);
        if !matches!(attempt.reason_code.as_ref(), "policy" | "policy-error" | "already-open") {
            return self.pass(&attempt.reason_code, count);
        }
        if attempt.policy_digest.is_empty() {
            return self.pass("inputs-not-recorded", count);
        }
        let Ok(set) = desk.set(&attempt.policy_digest).0 else { return self.pass("not-archived", count) };
        let other = others.under(&attempt.policy_digest, set);
        let Ok(other) = other.as_ref() else { return self.pass("not-declared-then", count) };
        let memo = self.memos.entry(attempt.policy_digest.to_string()).or_default();
        match other.evaluate(&attempt, memo) {
            Ok(found) => {
                self.compared += count;
                let to = Verdict::from(found.verdict);
                if to != attempt.verdict {
                    let after = if found.errors.is_empty() { found.policies } else { found.errors };
                    self.changed(&attempt, to, after);
                }
            }
            Err(Unanswered::NotReplayable(why)) => self.pass(why.name(), count),
            Err(Unanswered::Refused(_)) => self.pass("not-a-request", count),
        }
    }

    fn pass(&mut self, why: &str, count: u64) {
        *self.not_compared.entry(why.to_owned()).or_default() += count;
    }

    fn changed(&mut self, attempt: &Attempt<'_>, to: Verdict, after: Vec<String>) {
        let before = attempt.policies.iter().map(|policy| policy.id.to_string()).collect();
        let key = (attempt.account.to_string(), place(attempt), attempt.verdict, to, before, after);
        let entry = self.changes.entry(key).or_insert_with(|| (0, attempt.id.to_string()));
        entry.0 += u64::from(attempt.count);
    }

    fn merge(mut self, other: Self) -> Self {
        self.compared += other.compared;
        for (why, count) in other.not_compared {
            self.pass(&why, count);
        }
        for (key, (count, example)) in other.changes {
            self.changes.entry(key).or_insert((0, example)).0 += count;
        }
        self.memos.clear();
        self
    }

    fn answer(self) -> Answer {
        let mut changes: Vec<Change> = self
            .changes
            .into_iter()
            .map(|((account, destination, from, to, policies_before, policies_after), (count, example))| Change {
                account,
                destination,
                from,
                to,
                count,
                policies_before,
                policies_after,
                example,
            })
            .collect();
        changes.sort_by(|left, right| {
            right
                .count
                .cmp(&left.count)
                .then_with(|| left.account.cmp(&right.account))
                .then_with(|| (&left.destination, left.from, left.to).cmp(&(&right.destination, right.from, right.to)))
        });
        let newly = |verdict| changes.iter().filter(|change| change.to == verdict).map(|change| change.count).sum();
        Answer {
            compared: self.compared,
            changed: changes.iter().map(|change| change.count).sum(),
            newly_denied: newly(Verdict::Deny),
            newly_allowed: newly(Verdict::Allow),
            newly_escalated: newly(Verdict::Escalate),
            not_compared: self.not_compared,
            changes,
        }
    }
}

/// Where an attempt was going, as people call it.
fn place(attempt: &Attempt<'_>) -> String {
    match &attempt.destination {
        None => attempt.request.resource.to_string(),
        Some(to) if to.groups.is_empty() => format!("{}:{}/{}", to.address, to.port, to.protocol),
        Some(to) => to.groups.join(", "),
    }
}

impl Answer {
    fn text(&self) -> String {
        let mut text = format!(
            "{} attempts compared: {} would be newly denied, {} newly allowed, {} newly escalated\n",
            self.compared, self.newly_denied, self.newly_allowed, self.newly_escalated
        );
        for (why, count) in &self.not_compared {
            text.push_str(&format!("not compared  {why} ×{count}\n"));
        }
        for change in &self.changes {
            let by = |ids: &[String]| if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
            text.push_str(&format!(
                "{} → {}: {} becomes {} ×{} (by {}, then by {}; e.g. {})\n",
                change.account,
                change.destination,
                change.from.name(),
                change.to.name(),
                change.count,
                by(&change.policies_before),
                by(&change.policies_after),
                change.example
            ));
        }
        text
    }
}
