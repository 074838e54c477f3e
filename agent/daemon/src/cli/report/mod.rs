//! `writ report`: what each account may do, did, never does, was refused and was given, from the log alone.

mod account;
mod controls;
mod html;
mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use writ_core::printable::printable_lines;
use writ_core::record::{Body, Lifecycle, Record};

use self::account::Account;
use self::controls::{Control, Controls};
use super::find::{Filter, each, since};
use super::judgements::Archive;
use super::output::{a_log, shown_line};

/// Options of `report`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// Only records since a time, or for a duration: 15m, 2h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// How it is written
    #[arg(long, value_parser = ["text", "json", "html"], default_value = "text")]
    pub format: String,
    /// As `--format json`
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// The log directory, such as a copy; without it, the configured one
    #[arg(long, value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
}

/// Everything the report says.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Time of the first record looked at.
    from: Option<String>,
    /// Time of the last.
    to: Option<String>,
    records: u64,
    unreadable: u64,
    losses: u64,
    lost_attempts: u64,
    /// Records of the agent's own that were lost.
    lost_notes: u64,
    /// The policy set that says what is permitted: the last one in force.
    policy_digest: Option<String>,
    /// Why what is permitted could not be told, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    permitted_unknown: Option<String>,
    accounts: BTreeMap<String, Account>,
    /// Whom the decision point was asked about who is no service account.
    subjects: BTreeMap<String, Account>,
    /// Requests that were refused, and questions that could not be judged: what they name need not exist.
    refused_requests: u64,
    /// Controls that the log is evidence for.
    controls: Vec<Control>,
    #[serde(skip)]
    policy_since: Option<String>,
    #[serde(skip)]
    evidence: Controls,
}

/// Reports on the log below `log`.
pub(crate) fn report(args: &ReportArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let since = args.since.as_deref().map(since).transpose()?;
    let format = if args.json { "json" } else { args.format.as_str() };
    let log = args.log.as_deref().unwrap_or(log);
    a_log(log)?;
    let report = if format == "text" { gather_shown(log, since)? } else { gather(log, since)? };
    let mut output = std::io::stdout().lock();
    match format {
        "json" => {
            serde_json::to_writer(&mut output, &report)?;
            writeln!(output)?;
        }
        "html" => output.write_all(html::page(&report).as_bytes())?,
        // What did not come by records, such as what policies permit, is written out here.
        _ => output.write_all(printable_lines(&text::page(&report)).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the log.
pub(super) fn gather(log: &Path, since: Option<String>) -> anyhow::Result<Report> {
    gather_as(log, since, |line| Cow::Borrowed(line))
}

/// Reads the log for a terminal (see [`shown_line`]).
fn gather_shown(log: &Path, since: Option<String>) -> anyhow::Result<Report> {
    gather_as(log, since, shown_line)
}

fn gather_as(
    log: &Path,
    since: Option<String>,
    form: impl for<'a> Fn(&'a [u8]) -> Cow<'a, [u8]>,
) -> anyhow::Result<Report> {
    let filter = Filter { since, ..Filter::default() };
    let mut report = Report::default();
    each(log, |_, line| {
        if filter.matches(line) {
            match Record::from_line(&form(line)) {
                Ok(record) => report.add(&record),
                Err(_) => report.unreadable += 1,
            }
        }
        Ok(())
    })?;
    report.permit(&Archive::of(log));
    report.controls = report.evidence.table();
    Ok(report)
}

impl Report {
    fn add(&mut self, record: &Record) {
        let time = record.time.to_string();
        self.from.get_or_insert_with(|| time.clone());
        self.to = Some(time.clone());
        self.records += 1;
        if let Body::Loss(loss) = &record.body {
            self.losses += 1;
            // Without a processor it is the agent's own records that found no place: no attempts.
            let lost = if loss.cpu.is_some() { &mut self.lost_attempts } else { &mut self.lost_notes };
            *lost = lost.saturating_add(loss.count);
        }
        // By time: a decision can be read from the ring, and written, after the reload that followed it.
        let digest =
            policy_digest(&record.body).filter(|_| self.policy_since.as_ref().is_none_or(|since| *since <= time));
        if let Some(digest) = digest {
            self.policy_digest = Some(digest.to_owned());
            self.policy_since = Some(time.clone());
        }
        self.evidence.add(record);
        match about(&record.body) {
            About::Account(name) => self.accounts.entry(name.to_owned()).or_default().add(record, time),
            About::Subject(name) => self.subjects.entry(name.to_owned()).or_default().add(record, time),
            About::Nobody(refused) => self.refused_requests += refused,
        }
    }

    /// Adds what the last policy set permits.
    fn permit(&mut self, archive: &Archive) {
        let Some(digest) = &self.policy_digest else { return };
        match archive.get(digest).as_ref() {
            Ok(set) => {
                for (name, owner) in set.accounts() {
                    let account = self.accounts.entry(name.to_owned()).or_default();
                    account.permit(set.permits(name), owner);
                }
            }
            Err(error) => self.permitted_unknown = Some(error.to_string()),
        }
    }
}

/// Whom a record is about.
enum About<'a> {
    /// A service account that there is, or was.
    Account(&'a str),
    /// An entity of the operator's own.
    Subject(&'a str),
    /// Nobody; or somebody named by whoever asked, which makes nobody an account: so many such requests.
    Nobody(u64),
}

fn about(body: &Body) -> About<'_> {
    match body {
        Body::Lifecycle(lifecycle) => {
            if let Lifecycle::Refused { count, .. } = &**lifecycle {
                return About::Nobody(*count);
            }
        }
        Body::Decision(judged) | Body::Observation(judged) if judged.kernel.is_none() => {
            if judged.reason_code == "invalid-request" {
                return About::Nobody(u64::from(judged.count));
            }
            let asked_about = &judged.request.principal;
            if !asked_about.is_empty() && !asked_about.starts_with("ServiceAccount::") {
                return About::Subject(&judged.account);
            }
        }
        _ => {}
    }
    body.account().map_or(About::Nobody(0), About::Account)
}

/// The policy set that a record shows to be in force.
fn policy_digest(body: &Body) -> Option<&str> {
    let digest = match body {
        Body::Decision(judged) | Body::Observation(judged) => &judged.policy_digest,
        Body::Change(change) => &change.policy_digest,
        Body::Lifecycle(lifecycle) => match &**lifecycle {
            Lifecycle::Start { policy_digest, .. } | Lifecycle::Adopt { policy_digest, .. } => policy_digest,
            Lifecycle::Reload { after, .. } => after,
            _ => return None,
        },
        _ => return None,
    };
    (!digest.is_empty()).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::Log;
    use crate::log::verify::tests::records;

    #[test]
    fn what_a_record_says_is_text_in_the_page_and_never_markup() {
        let hostile = "<script>alert('1')</script>";
        let lines: Vec<Vec<u8>> = records(0..30)
            .into_iter()
            .map(|line| String::from_utf8(line).unwrap().replace("\"billing\"", &format!("\"{hostile}\"")).into_bytes())
            .collect();
        let log = Log::with(&lines, 50_000);
        let report = gather(&log.dir(), None).unwrap();
        assert!(report.accounts.contains_key(hostile));
        let page = html::page(&report);
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;") && !page.contains("<script"));
        for elsewhere in ["http:", "https:", "src=", "url("] {
            assert!(!page.contains(elsewhere), "the page asks for {elsewhere}");
        }
    }

    #[test]
    fn every_control_says_which_framework_and_version_it_is_of() {
        let log = Log::with(&records(0..30), 50_000);
        let report = gather(&log.dir(), None).unwrap();
        let frameworks: Vec<&str> = report.controls.iter().map(|control| control.framework.as_str()).collect();
        for framework in ["NIST CSF 2.0", "OWASP NHI 2025", "OWASP Agentic 2026", "ATT&CK v20.0"] {
            assert!(frameworks.contains(&framework), "{frameworks:?}");
        }
    }
}
