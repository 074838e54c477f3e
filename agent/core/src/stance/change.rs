//! What differs between two situations of one account.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::Situation;

/// What differs between two situations.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Difference {
    /// Risk before and after.
    pub risk: Option<(u8, u8)>,
    /// Flags.
    pub signals: Delta,
    /// Fresh kinds.
    pub fresh: Delta,
    /// Grants.
    pub grants: Delta,
    /// Approved escalations.
    pub approvals: Delta,
    /// Offboarded (true) or reinstated (false).
    pub offboarded: Option<bool>,
    /// Break-glass began or was prolonged (its end), or is over (`None` within).
    pub break_glass: Option<Option<Timestamp>>,
}

impl Difference {
    /// Whether nothing differs but the time.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a set gained and lost.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Delta {
    /// Gained.
    pub added: BTreeSet<String>,
    /// Lost.
    pub removed: BTreeSet<String>,
}

impl Delta {
    fn of(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Self {
        Self {
            added: after.difference(before).cloned().collect(),
            removed: before.difference(after).cloned().collect(),
        }
    }
}

/// What differs between two situations of one account.
pub fn difference(before: &Situation, after: &Situation) -> Difference {
    let (old, new) = (&before.state, &after.state);
    Difference {
        risk: (old.risk != new.risk).then_some((old.risk, new.risk)),
        signals: Delta::of(&old.signals, &new.signals),
        fresh: Delta::of(&old.fresh, &new.fresh),
        grants: Delta::of(&before.grants, &after.grants),
        approvals: Delta::of(&before.approvals, &after.approvals),
        offboarded: (before.offboarded != after.offboarded).then_some(after.offboarded),
        break_glass: (before.break_glass_until != after.break_glass_until).then_some(after.break_glass_until),
    }
}
