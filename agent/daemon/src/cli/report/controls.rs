//! Which controls the log is evidence for: those that hold for every record of a kind, and those that policies name.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use writ_core::record::{Body, Record, Verdict};

/// The frameworks with the version that their ids are of, by how an id or its prefix begins.
const FRAMEWORKS: [(&str, &str); 5] = [
    ("NIST CSF", "NIST CSF 2.0"),
    ("DE.", "NIST CSF 2.0"),
    ("NHI", "OWASP NHI 2025"),
    ("ASI", "OWASP Agentic 2026"),
    ("T", "ATT&CK v20.0"),
];

/// What a framework calls a control.
const TITLES: [(&str, &str); 18] = [
    ("DE.CM-01", "Networks and network services are monitored to find potentially adverse events"),
    ("NHI1", "Improper Offboarding"),
    ("NHI2", "Secret Leakage"),
    ("NHI3", "Vulnerable Third-Party NHI"),
    ("NHI4", "Insecure Authentication"),
    ("NHI5", "Overprivileged NHI"),
    ("NHI6", "Insecure Cloud Deployment Configurations"),
    ("NHI7", "Long-Lived Secrets"),
    ("NHI8", "Environment Isolation"),
    ("NHI9", "NHI Reuse"),
    ("NHI10", "Human Use of NHI"),
    ("ASI01", "Agent Goal Hijack"),
    ("ASI02", "Tool Misuse and Exploitation"),
    ("ASI03", "Identity and Privilege Abuse"),
    ("ASI05", "Unexpected Code Execution"),
    ("ASI08", "Cascading Failures"),
    ("TA0011", "Command and Control"),
    ("T1571", "Non-Standard Port"),
];

/// One row of the table.
#[derive(Debug, Serialize)]
pub(super) struct Control {
    pub(super) framework: String,
    pub(super) id: String,
    pub(super) title: Option<String>,
    /// The policies that name it; empty: it holds for the records by what they are.
    pub(super) policies: Vec<String>,
    /// The records that are evidence for it.
    pub(super) records: u64,
}

/// The evidence so far.
#[derive(Debug, Default)]
pub(super) struct Controls(BTreeMap<(String, String), (BTreeSet<String>, u64)>);

impl Controls {
    /// Counts a record.
    pub(super) fn add(&mut self, record: &Record) {
        // By what it is and by several policies it can be evidence for the same control: it is one record all the same.
        let mut evident: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for id in inherent(&record.body) {
            evident.entry(split(id)).or_default();
        }
        let judged = record.body.judged();
        for policy in judged.into_iter().flat_map(|judged| &judged.policies) {
            for control in &policy.controls {
                evident.entry(split(control)).or_default().insert(policy.id.clone());
            }
        }
        for (control, policies) in evident {
            let entry = self.0.entry(control).or_default();
            entry.0.extend(policies);
            entry.1 += 1;
        }
    }

    /// The table.
    pub(super) fn table(&self) -> Vec<Control> {
        let title = |id: &str| {
            let known = TITLES.iter().find(|(known, _)| *known == id.split(':').next().unwrap_or(id));
            known.map(|(_, title)| (*title).to_owned())
        };
        let rows = self.0.iter().map(|((framework, id), (policies, records))| Control {
            framework: framework.clone(),
            id: id.clone(),
            title: title(id),
            policies: policies.iter().cloned().collect(),
            records: *records,
        });
        rows.collect()
    }
}

/// What a record is evidence for by what it is.
fn inherent(body: &Body) -> &'static [&'static str] {
    match body {
        Body::Decision(judged) | Body::Observation(judged) => match judged.verdict {
            Verdict::Allow => &["DE.CM-01", "NHI5", "ASI03"],
            Verdict::Deny | Verdict::Escalate => &["DE.CM-01", "NHI5", "ASI03", "TA0011"],
        },
        Body::Cut(_) => &["DE.CM-01", "NHI7", "ASI03"],
        Body::Grant(_) | Body::Escalation(_) => &["NHI7", "ASI03"],
        Body::Change(change) if change.cause == "offboard" => &["NHI1"],
        _ => &[],
    }
}

/// A control as policies write it: `DE.CM-01`, `NHI5:2025`, `ATT&CK v20.0 T1571`, `Acme 7.2`. What is not known is kept
/// as it is written, under no framework.
fn split(control: &str) -> (String, String) {
    let id = control.rsplit(' ').next().unwrap_or(control);
    let id = id.split(':').next().unwrap_or(id);
    let digits = |rest: &str| rest.starts_with(|next: char| next.is_ascii_digit() || next == 'A');
    let framework = FRAMEWORKS.iter().find(|(prefix, _)| match *prefix {
        "T" => id.strip_prefix('T').is_some_and(digits),
        "NIST CSF" => control.starts_with("NIST CSF"),
        prefix => id.starts_with(prefix),
    });
    match framework {
        Some((_, framework)) => ((*framework).to_owned(), id.to_owned()),
        None => (String::new(), control.to_owned()),
    }
}
