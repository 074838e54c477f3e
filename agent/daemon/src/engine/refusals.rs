//! Refused operations on record: each of a caller's first, and then their number, so that a flood cannot fill the log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use writ_core::record::Lifecycle;

use super::{Actor, Engine};

/// How many refusals of one uid are recorded one by one within [`WINDOW`].
const ONE_BY_ONE: u64 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// How many uids are told apart; more than that many at once are one.
const MOST_CALLERS: usize = 1_024;

#[derive(Debug)]
struct Caller {
    since: Instant,
    recorded: u64,
    /// What was only counted, and the last of it.
    counted: u64,
    last: Option<Lifecycle>,
}

/// What was refused lately, by uid.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    callers: HashMap<u32, Caller>,
}

impl Refusals {
    /// Whether a refusal is recorded now; if not, it is counted into a later record.
    fn admit(&mut self, uid: u32, now: Instant, refusal: &Lifecycle) -> bool {
        let uid = if self.callers.len() < MOST_CALLERS || self.callers.contains_key(&uid) { uid } else { u32::MAX };
        let caller = self.callers.entry(uid).or_insert(Caller { since: now, recorded: 0, counted: 0, last: None });
        if caller.recorded < ONE_BY_ONE {
            caller.recorded += 1;
            return true;
        }
        caller.counted += 1;
        caller.last = Some(refusal.clone());
        false
    }

    /// What was counted in windows that are over.
    fn over(&mut self, now: Instant, all: bool) -> Vec<Lifecycle> {
        let mut counted = Vec::new();
        self.callers.retain(|_, caller| {
            if !all && now.duration_since(caller.since) < WINDOW {
                return true;
            }
            if let Some(Lifecycle::Refused { operation, by, account, reason, .. }) = caller.last.take() {
                counted.push(Lifecycle::Refused { operation, by, account, reason, count: caller.counted });
            }
            false
        });
        counted
    }
}

impl Engine {
    /// Notes who was refused what.
    pub(crate) fn note_refused(&mut self, operation: &str, actor: &Actor, account: Option<String>, reason: &str) {
        let refusal = Lifecycle::Refused {
            operation: operation.to_owned(),
            by: actor.recorded(),
            account,
            reason: reason.to_owned(),
            count: 1,
        };
        if self.refusals.admit(actor.caller.uid, Instant::now(), &refusal) {
            self.note_lifecycle(refusal);
            self.flush();
        }
    }

    /// Records what was only counted; at the end, all of it.
    pub(crate) fn note_counted_refusals(&mut self, all: bool) {
        for refusal in self.refusals.over(Instant::now(), all) {
            self.note_lifecycle(refusal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_few_records_and_a_number() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        let refusal = |number: u32| Lifecycle::Refused {
            operation: "signal".into(),
            by: Actor::default().recorded(),
            account: None,
            reason: number.to_string(),
            count: 1,
        };
        let recorded = (0..1_000).filter(|number| refusals.admit(7, begin, &refusal(*number))).count();
        assert_eq!(recorded as u64, ONE_BY_ONE);
        assert_eq!(refusals.over(begin, false), []);
        assert!(refusals.admit(8, begin, &refusal(0)), "another caller is not hushed by it");
        let counted = refusals.over(begin + WINDOW, false);
        assert!(
            matches!(counted.as_slice(), [Lifecycle::Refused { count: 980, reason, .. }] if reason == "999"),
            "{counted:?}"
        );
        assert!(refusals.admit(7, begin + WINDOW, &refusal(0)), "a new minute begins");
    }
}
