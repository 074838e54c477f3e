//! What would have made a refused attempt allowed: Cedar asked again with one thing changed at a time.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use writ_abi::Verdict;

use super::archive::{Archived, Memo};
use super::attempt::Attempt;
use crate::config::SourceFile;
use crate::policy::statements;

impl Archived {
    /// Changes of the moment that, each by itself, would have made the attempt allowed; in words. Empty if no single one
    /// would, or the attempt was allowed.
    pub fn remedies(&self, attempt: &Attempt<'_>) -> Vec<String> {
        let mut memo = Memo::default();
        let mut allows = |changes: &[(&str, Value)]| {
            let mut changed = attempt.clone();
            for (name, value) in changes {
                changed.request.context.insert((*name).to_owned(), value.clone());
            }
            self.evaluate(&changed, &mut memo).is_ok_and(|found| found.verdict == Verdict::Allow)
        };
        if allows(&[]) {
            return Vec::new();
        }
        let context = &attempt.request.context;
        let texts = |name: &str| -> BTreeSet<String> {
            let items = context.get(name).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut found = Vec::new();
        // Policies need not be monotonous: the highest risk below the present one is what is told.
        if let Some(risk) = (0..attempt.risk).rev().find(|risk| allows(&[("risk", json!(risk))])) {
            found.push(format!("a risk of {risk} or so instead of {}", attempt.risk));
        }
        let signals = texts("signals");
        for signal in &signals {
            let rest: Vec<&String> = signals.iter().filter(|other| *other != signal).collect();
            if allows(&[("signals", json!(rest))]) {
                found.push(format!("signal `{signal}` cleared"));
            }
        }
        if signals.len() > 1 && found.is_empty() && allows(&[("signals", json!([]))]) {
            found.push("all signals cleared".to_owned());
        }
        let fresh = texts("fresh");
        for kind in self.literals().difference(&fresh) {
            let with: Vec<&String> = fresh.iter().chain([kind]).collect();
            if allows(&[("fresh", json!(with))]) {
                found.push(format!("signal `{kind}` fresh"));
            }
        }
        if context.get("new_destination") == Some(&json!(true)) && allows(&[("new_destination", json!(false))]) {
            found.push("the destination known from before".to_owned());
        }
        for path in self.executables(&attempt.account) {
            if context.get("executable").and_then(Value::as_str) != Some(path) && allows(&[("executable", json!(path))])
            {
                found.push(format!("executable {path}"));
            }
        }
        let approvals = texts("approvals");
        let lifted: Vec<&String> = approvals.iter().chain(self.escalating()).collect();
        if !self.escalating().is_empty() && allows(&[("approvals", json!(lifted))]) {
            found.push("an approver's yes to the escalation".to_owned());
        }
        let hours: Vec<String> =
            (0..24).filter(|hour| allows(&[("hour", json!(hour))])).map(|hour| hour.to_string()).collect();
        if !hours.is_empty() {
            found.push(format!("the same day at hour {}", hours.join(", ")));
        }
        let days: Vec<&str> = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
            .into_iter()
            .zip(1..)
            .filter(|(_, day)| allows(&[("weekday", json!(day))]))
            .map(|(name, _)| name)
            .collect();
        if !days.is_empty() {
            found.push(format!("the same hour on {}", days.join(", ")));
        }
        found
    }

    /// Every string that a policy compares something with.
    fn literals(&self) -> BTreeSet<String> {
        let file = SourceFile { name: "archive".into(), text: self.policies.clone() };
        statements(&file).iter().flat_map(crate::policy::Statement::strings).collect()
    }
}
