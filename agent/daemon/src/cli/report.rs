//! `writ report`: what each account did, was refused and was given, from the log alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use writ_core::record::{Body, GrantState, Record, Verdict};

use super::find::{Filter, each, since};

/// Options of `report`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// Only records since a time, or for a duration: 15m, 2h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// How it is written
    #[arg(long, value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// Everything the report says.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Time of the first record looked at.
    from: Option<String>,
    /// Time of the last.
    to: Option<String>,
    records: u64,
    unreadable: u64,
    losses: u64,
    lost_attempts: u64,
    accounts: BTreeMap<String, Account>,
    /// Controls that the log is evidence for, with the number of records that name them.
    controls: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Serialize)]
struct Account {
    owner: Option<String>,
    allowed: u64,
    denied: u64,
    escalated: u64,
    /// Judged without being enforced.
    observed: u64,
    /// Destinations reached, with the number of attempts.
    used: BTreeMap<String, u64>,
    /// Destinations refused, with the number of attempts.
    refused: BTreeMap<String, u64>,
    /// Policies that decided, with the number of attempts.
    policies: BTreeMap<String, u64>,
    executables: BTreeSet<String>,
    highest_risk: u8,
    signals: u64,
    changes: u64,
    cuts: u64,
    escalations: u64,
    grants_created: u64,
    grants_revoked: u64,
    /// When it was last allowed something.
    last_used: Option<String>,
}

/// What every record of egress decisions is evidence for.
const CONTROLS: [&str; 4] = ["NIST CSF 2.0 DE.CM-01", "OWASP NHI5:2025", "OWASP ASI03:2026", "ATT&CK v20 TA0011"];

/// Reports on the log below `log`.
pub(crate) fn report(args: &ReportArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let filter = Filter { since: args.since.as_deref().map(since).transpose()?, ..Filter::default() };
    let mut report = Report::default();
    each(log, |_, line| {
        if filter.matches(line) {
            match Record::from_line(line) {
                Ok(record) => report.add(&record),
                Err(_) => report.unreadable += 1,
            }
        }
        Ok(())
    })?;
    let mut output = std::io::stdout().lock();
    if args.format == "json" {
        serde_json::to_writer(&mut output, &report)?;
        writeln!(output)?;
    } else {
        output.write_all(report.text().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn add(&mut self, record: &Record) {
        let time = record.time.to_string();
        self.from.get_or_insert_with(|| time.clone());
        self.to = Some(time.clone());
        self.records += 1;
        if let Body::Loss(loss) = &record.body {
            self.losses += 1;
            self.lost_attempts = self.lost_attempts.saturating_add(loss.count);
        }
        if let Some(judged) = record.body.judged() {
            for control in CONTROLS {
                *self.controls.entry(control.to_owned()).or_default() += 1;
            }
            for control in judged.policies.iter().flat_map(|policy| &policy.controls) {
                *self.controls.entry(control.clone()).or_default() += 1;
            }
        }
        if let Some(name) = record.body.account() {
            self.accounts.entry(name.to_owned()).or_default().add(record, time);
        }
    }

    fn text(&self) -> String {
        let none = || "-".to_owned();
        let mut text = format!(
            "{} records from {} to {}\n{} attempts lost in {} gaps\n",
            self.records,
            self.from.clone().unwrap_or_else(none),
            self.to.clone().unwrap_or_else(none),
            self.lost_attempts,
            self.losses
        );
        for (name, account) in &self.accounts {
            let owner = account.owner.as_ref().map(|owner| format!(" (owner {owner})")).unwrap_or_default();
            text.push_str(&format!(
                "\n{name}{owner}\n  {} allowed, {} denied, {} escalated, {} observed; highest risk {}\n",
                account.allowed, account.denied, account.escalated, account.observed, account.highest_risk
            ));
            text.push_str(&format!(
                "  {} changes, {} signals, {} cuts, {} escalations, {} grants ({} revoked)\n",
                account.changes,
                account.signals,
                account.cuts,
                account.escalations,
                account.grants_created,
                account.grants_revoked
            ));
            for (destination, count) in &account.used {
                text.push_str(&format!("  used     {destination} ×{count}\n"));
            }
            for (destination, count) in &account.refused {
                text.push_str(&format!("  refused  {destination} ×{count}\n"));
            }
        }
        text.push_str("\ncontrols this log is evidence for\n");
        for (control, count) in &self.controls {
            text.push_str(&format!("  {control}: {count} records\n"));
        }
        text
    }
}

impl Account {
    fn add(&mut self, record: &Record, time: String) {
        match &record.body {
            Body::Decision(judged) | Body::Observation(judged) => {
                let count = u64::from(judged.count);
                self.owner.clone_from(&judged.owner);
                self.highest_risk = self.highest_risk.max(judged.risk);
                let enforced = matches!(record.body, Body::Decision(_));
                let counter = match (enforced, judged.verdict) {
                    (false, _) => &mut self.observed,
                    (true, Verdict::Allow) => &mut self.allowed,
                    (true, Verdict::Deny) => &mut self.denied,
                    (true, Verdict::Escalate) => &mut self.escalated,
                };
                *counter += count;
                let place = judged.destination.as_ref().map_or_else(
                    || judged.action.clone(),
                    |to| match to.groups.as_slice() {
                        [] => format!("{}:{}/{}", to.address, to.port, to.protocol),
                        groups => groups.join(", "),
                    },
                );
                let reached = !enforced || judged.verdict == Verdict::Allow;
                let places = if reached { &mut self.used } else { &mut self.refused };
                *places.entry(place).or_default() += count;
                if reached {
                    self.last_used = Some(time);
                }
                for policy in &judged.policies {
                    *self.policies.entry(policy.id.clone()).or_default() += count;
                }
                self.executables.extend(judged.process.as_ref().and_then(|process| process.executable.clone()));
            }
            Body::Change(change) => {
                self.changes += 1;
                self.highest_risk = self.highest_risk.max(change.after.risk);
            }
            Body::Cut(_) => self.cuts += 1,
            Body::Signal(_) => self.signals += 1,
            Body::Escalation(_) => self.escalations += 1,
            Body::Grant(grant) => match grant.state {
                GrantState::Created => self.grants_created += 1,
                GrantState::Revoked => self.grants_revoked += 1,
                GrantState::Expired => {}
            },
            Body::Loss(_) | Body::Lifecycle(_) => {}
        }
    }
}
