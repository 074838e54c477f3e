//! One question as files for the stock `cedar` command, and how its answer is read.

use serde_json::{Value, json};

use super::archive::Archived;
use super::attempt::Attempt;
use crate::record::Verdict;

/// What `cedar authorize` is given.
#[derive(Clone, PartialEq, Debug)]
pub struct Question {
    /// `--request-json`
    pub request: Value,
    /// `--entities`
    pub entities: Value,
}

/// What `cedar authorize` said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Whether it allows.
    pub allows: bool,
    /// Whether some policy's condition failed.
    pub errs: bool,
}

impl Archived {
    /// The policies for `--policies`: with observe-mode ones the answer is the would-be verdict.
    pub fn policies(&self, with_observed: bool) -> &str {
        if with_observed { &self.policies } else { &self.enforced }
    }

    /// The schema for `--schema`, in Cedar's own syntax.
    pub fn schema(&self) -> &str {
        &self.schema_text
    }

    /// The question; `None` if the record does not have the inputs, its account is not archived, or policy is not asked.
    pub fn question(&self, attempt: &Attempt<'_>) -> Option<Question> {
        attempt.askable().ok().filter(|()| self.asks(attempt))?;
        let asked = &attempt.request;
        let entities = self.entities(attempt)?;
        let request = json!({
            "principal": asked.principal,
            "action": asked.action,
            "resource": asked.resource,
            "context": asked.context,
        });
        Some(Question { request, entities })
    }
}

/// Whether the stock answer agrees with a record that policy decided. There is one documented difference: where a condition
/// fails, Cedar skips the policy and writ denies. A deny may be an escalation: to Cedar both are DENY.
pub fn agrees(recorded: Verdict, reason_code: &str, answer: &Answer) -> bool {
    match recorded {
        Verdict::Allow => answer.allows && !answer.errs,
        Verdict::Escalate => !answer.allows && !answer.errs,
        Verdict::Deny if reason_code == "policy-error" => answer.errs,
        Verdict::Deny => !answer.allows,
    }
}
