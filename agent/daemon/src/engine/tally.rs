//! Counts of what was recorded since the start, for metrics: by account and verdict, by cause, by reason.

use std::collections::BTreeMap;

use writ_core::record::{Body, Decision, EffectiveMode, Lifecycle};

/// What was recorded since the daemon started. Accounts come from the configuration, so the number of series is bounded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    /// Records, by type.
    pub records: BTreeMap<&'static str, u64>,
    /// Attempts judged, by account, then verdict and mode in force.
    pub judged: BTreeMap<String, BTreeMap<(&'static str, &'static str), u64>>,
    /// Stance changes, by account and cause.
    pub changes: BTreeMap<(String, String), u64>,
    /// Live sessions that were ended, by account.
    pub cuts: BTreeMap<String, u64>,
    /// Attempts without a record of their own, by reason.
    pub losses: BTreeMap<String, u64>,
    /// Escalations that nobody was asked about, because too many were open, by account.
    pub unasked: BTreeMap<String, u64>,
    /// Reloads: applied, refused.
    pub reloads: [u64; 2],
}

impl Tally {
    /// Takes back the count of a judgement whose record was replaced before it was written.
    pub(super) fn uncount(&mut self, body: &Body) {
        let Some(decision) = body.judged() else { return };
        let mode = mode_of(decision);
        let of_account = self.judged.get_mut(&decision.account);
        let counted = of_account.and_then(|counts| counts.get_mut(&(decision.verdict.name(), mode)));
        for count in counted.into_iter().chain(self.records.get_mut(body.kind())) {
            *count = count.saturating_sub(1);
        }
    }

    /// Counts one record.
    pub(super) fn count(&mut self, body: &Body) {
        *self.records.entry(body.kind()).or_default() += 1;
        match body {
            Body::Decision(decision) | Body::Observation(decision) => {
                let mode = mode_of(decision);
                if !self.judged.contains_key(&decision.account) {
                    self.judged.insert(decision.account.clone(), BTreeMap::new());
                }
                let Some(of_account) = self.judged.get_mut(&decision.account) else { return };
                // A record may stand for repeats that were folded into it.
                *of_account.entry((decision.verdict.name(), mode)).or_default() += u64::from(decision.count.max(1));
            }
            Body::Change(change) => {
                *self.changes.entry((change.account.clone(), change.cause.clone())).or_default() += 1;
            }
            Body::Cut(cut) => *self.cuts.entry(cut.account.clone()).or_default() += 1,
            Body::Loss(loss) => {
                if loss.reasons.is_empty() {
                    *self.losses.entry(loss.reason.clone()).or_default() += loss.count;
                }
                for (reason, count) in &loss.reasons {
                    *self.losses.entry(reason.clone()).or_default() += count;
                }
            }
            Body::Lifecycle(lifecycle) => match **lifecycle {
                Lifecycle::Reload { .. } => self.reloads[0] += 1,
                Lifecycle::ReloadRefused { .. } => self.reloads[1] += 1,
                _ => {}
            },
            Body::Escalation(_) | Body::Grant(_) => {}
        }
    }
}

const fn mode_of(decision: &Decision) -> &'static str {
    match decision.effective_mode {
        EffectiveMode::Enforce => "enforce",
        EffectiveMode::Observe => "observe",
    }
}
