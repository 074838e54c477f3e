//! Risk: one number per account, from its live signals, by a stated rule.
//!
//! The daemon, the replayer and the tests call the same function: the same signals always give the same number,
//! whatever order they came in.

use serde::{Deserialize, Serialize};

use super::Signal;

/// How contributions combine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RiskRule {
    /// The greatest contribution: many small worries never add up to a large one, so every value can be traced to one
    /// signal.
    #[default]
    Maximum,
    /// The sum, at most 100.
    CappedSum,
}

/// One signal's part in the risk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Contribution {
    /// The signal.
    pub signal: String,
    /// Its kind.
    pub kind: String,
    /// What it contributes.
    pub risk: u8,
    /// Whether the value rests on it: without this signal and its equals it would be lower.
    pub decisive: bool,
}

/// A risk value and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Risk {
    /// 0–100.
    pub value: u8,
    /// The rule that made it.
    pub rule: RiskRule,
    /// Every live signal's part, greatest first.
    pub contributions: Vec<Contribution>,
}

/// The risk of an account with these live signals.
pub fn risk<'a>(rule: RiskRule, live: impl IntoIterator<Item = &'a Signal>) -> u8 {
    let contributions = live.into_iter().map(|signal| signal.risk);
    match rule {
        RiskRule::Maximum => contributions.max().unwrap_or(0).min(100),
        RiskRule::CappedSum => contributions.fold(0u8, |sum, risk| sum.saturating_add(risk).min(100)),
    }
}

/// The risk of an account with these live signals, explained.
pub fn assess<'a>(rule: RiskRule, live: impl IntoIterator<Item = &'a Signal> + Clone) -> Risk {
    let value = risk(rule, live.clone());
    let mut contributions: Vec<_> = live
        .into_iter()
        .map(|signal| Contribution {
            signal: signal.id.clone(),
            kind: signal.kind.clone(),
            risk: signal.risk,
            decisive: signal.risk > 0 && (rule == RiskRule::CappedSum || signal.risk >= value),
        })
        .collect();
    contributions.sort_by(|a, b| b.risk.cmp(&a.risk).then_with(|| (&a.kind, &a.signal).cmp(&(&b.kind, &b.signal))));
    Risk { value, rule, contributions }
}
