//! Attempts that are the same but for when they were made: what their records say is worked out once, and holds for as long
//! as nothing does change that it was worked out from.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use jiff::{SignedDuration, Timestamp};
use writ_abi::DecisionEvent;
use writ_core::config::Config;
use writ_core::policy::Attempt;
use writ_core::record::Record;

use super::explain::{Moment, Names};

/// How many different attempts are remembered; then all are forgotten.
const MOST: usize = 1024;

/// What the words of a record were taken from. Weak, so that nothing of it is kept or copied because of this.
#[derive(Clone, Debug, Default)]
pub(super) struct Basis {
    names: Weak<Names>,
    moment: Weak<Moment>,
    config: Weak<Config>,
    /// See [`crate::process::ProcessTable::renamed`].
    renamed: u64,
}

impl Basis {
    pub(super) fn of(names: &Arc<Names>, moment: &Arc<Moment>, config: &Arc<Config>, renamed: u64) -> Self {
        let (names, moment, config) = (Arc::downgrade(names), Arc::downgrade(moment), Arc::downgrade(config));
        Self { names, moment, config, renamed }
    }

    /// Whether both are the same objects, as long as these are not changed in place: what is not shared with anything but
    /// weak references is moved by `Arc::make_mut`, never changed under them.
    fn is(&self, other: &Self) -> bool {
        self.names.ptr_eq(&other.names)
            && self.moment.ptr_eq(&other.moment)
            && self.config.ptr_eq(&other.config)
            && self.renamed == other.renamed
    }
}

/// The record of an attempt, and until when another one like it would say the same.
#[derive(Debug)]
pub(super) struct Repeat {
    pub(super) record: Record,
    pub(super) attempt: Attempt,
    basis: Basis,
    from: Timestamp,
    until: Timestamp,
}

impl Repeat {
    /// A record worked out for this moment.
    pub(super) fn new(record: Record, attempt: Attempt, basis: Basis, moment: Option<&Moment>, at: Timestamp) -> Self {
        let until = moment.map_or(at, |moment| holds_until(moment, at));
        Self { record, attempt, basis, from: at, until }
    }
}

/// Until when nothing that a record says of an account's situation changes by time alone, `context.now` apart: hours, minutes
/// and weekdays begin with a second, whatever the time zone; signals have ages in seconds, and end.
fn holds_until(moment: &Moment, at: Timestamp) -> Timestamp {
    let second = SignedDuration::from_secs(1);
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    // Before 1970 a whole second lies after its moment; nothing repeats then.
    let next = if whole <= at { whole.checked_add(second).unwrap_or(at) } else { at };
    let ages = moment.signals.iter().map(|signal| {
        let age = at.duration_since(signal.at).as_secs();
        let older = SignedDuration::from_secs(age.saturating_add(1));
        // One from the future has no age yet.
        if age < 0 || signal.at > at { at } else { signal.at.checked_add(older).unwrap_or(at) }
    });
    let ends = moment.signals.iter().map(|signal| signal.expires);
    let ends = ends.chain(moment.grants.iter().map(|grant| grant.expires));
    let ends = ends.chain(moment.approved.iter().map(|approved| approved.expires)).chain(moment.break_glass_until);
    ages.chain(ends.filter(|end| *end > at)).fold(next, Timestamp::min)
}

/// What was worked out.
#[derive(Debug, Default)]
pub(crate) struct Repeats(HashMap<DecisionEvent, Box<Repeat>>);

impl Repeats {
    /// Takes out the record of an attempt like this, if it still holds on this basis at this moment.
    pub(super) fn take(&mut self, alike: &DecisionEvent, basis: &Basis, at: Timestamp) -> Option<Box<Repeat>> {
        let found = self.0.remove(alike)?;
        (found.from <= at && at < found.until && found.basis.is(basis)).then_some(found)
    }

    /// Keeps it for the next.
    pub(super) fn keep(&mut self, alike: DecisionEvent, repeat: Box<Repeat>) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(alike, repeat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn moment() -> Moment {
        Moment {
            account: "a".into(),
            from: at("2026-01-01T00:00:00Z"),
            until: None,
            signals: Vec::new(),
            grants: Vec::new(),
            approved: Vec::new(),
            offboarded: false,
            break_glass_until: None,
            mode: None,
            base_digest: String::new(),
            rule: writ_core::signal::RiskRule::default(),
            policy_digest: String::new(),
            stance_digest: String::new(),
        }
    }

    #[test]
    fn a_record_holds_within_its_second_and_until_something_ends() {
        let now = at("2026-01-01T00:00:59.25Z");
        assert_eq!(holds_until(&moment(), now), at("2026-01-01T00:01:00Z"));
        let broken = Moment { break_glass_until: Some(at("2026-01-01T00:00:59.5Z")), ..moment() };
        assert_eq!(holds_until(&broken, now), at("2026-01-01T00:00:59.5Z"));
        let over = Moment { break_glass_until: Some(at("2026-01-01T00:00:59.2Z")), ..moment() };
        assert_eq!(holds_until(&over, now), at("2026-01-01T00:01:00Z"));
    }

    #[test]
    fn another_moment_is_another_basis_and_one_that_was_changed_too() {
        let (mut one, other) = (Arc::new(moment()), Arc::new(moment()));
        let on = |moment: &Arc<Moment>, renamed| Basis {
            names: Weak::new(),
            moment: Arc::downgrade(moment),
            config: Weak::new(),
            renamed,
        };
        let basis = on(&one, 0);
        assert!(basis.is(&on(&one, 0)));
        assert!(!basis.is(&on(&other, 0)));
        assert!(!basis.is(&on(&one, 1)));
        Arc::make_mut(&mut one).offboarded = true;
        assert!(!basis.is(&on(&one, 0)));
    }
}
