//! Change: why an account's access is not what it was. What the `change` record says.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Situation;
use crate::signal::Approver;

/// What made an account's situation change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Cause {
    /// A signal came in.
    Signal {
        /// The signal.
        id: String,
        /// Its kind.
        kind: String,
    },
    /// Signals ended by time.
    SignalExpired {
        /// Which.
        ids: Vec<String>,
    },
    /// A signal was cleared.
    SignalCleared {
        /// The signal.
        id: String,
        /// By whom.
        by: Approver,
        /// Why.
        reason: String,
    },
    /// A grant was made.
    Grant {
        /// The grant.
        id: String,
    },
    /// Grants ended by time.
    GrantExpired {
        /// Which.
        ids: Vec<String>,
    },
    /// A person revoked a grant.
    GrantRevoked {
        /// The grant.
        id: String,
    },
    /// An escalation was approved.
    Approved {
        /// The escalation.
        id: String,
    },
    /// An approval was taken back.
    Denied {
        /// The escalation.
        id: String,
    },
    /// Approvals ended by time.
    ApprovalExpired {
        /// Which escalations.
        ids: Vec<String>,
    },
    /// The time of day reached a boundary of a policy.
    Time {
        /// Which.
        boundary: Timestamp,
    },
    /// The wall clock was set.
    ClockSet,
    /// The account was offboarded.
    Offboarded,
    /// The account was reinstated.
    Reinstated,
    /// Glass was broken.
    BreakGlass,
    /// Break-glass is over.
    BreakGlassEnded,
    /// Configuration was applied.
    Policy {
        /// The policy set now in force.
        digest: String,
    },
    /// writ started and adopted what was in force.
    Start,
}

/// One change of one account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The account.
    pub account: String,
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: Timestamp,
    /// What held.
    pub before: Side,
    /// What holds.
    pub after: Side,
    /// What can be reached that could not; filled in by whoever compares the rows.
    #[serde(default)]
    pub opened: Vec<Reach>,
    /// What could be reached and cannot any more.
    #[serde(default)]
    pub closed: Vec<Reach>,
}

impl Change {
    /// The change from one situation to another, its reach yet to be filled in.
    pub fn new(cause: Cause, at: Timestamp, before: Side, after: Side, account: &str) -> Self {
        Self { account: account.to_owned(), cause, at, before, after, opened: Vec::new(), closed: Vec::new() }
    }
}

/// What held before, or holds after.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Side {
    /// Risk.
    pub risk: u8,
    /// Flags.
    pub signals: BTreeSet<String>,
    /// Fresh kinds.
    pub fresh: BTreeSet<String>,
    /// Live grants.
    pub grants: BTreeSet<String>,
    /// Approved escalations.
    pub approvals: BTreeSet<String>,
    /// Whether everything is refused.
    pub offboarded: bool,
    /// Until when verdicts are only observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass_until: Option<Timestamp>,
    /// Digest of the situation.
    pub state_digest: String,
    /// Digest of the row in force, if one is.
    pub stance_digest: Option<String>,
}

impl Side {
    /// One side of a change.
    pub fn of(situation: &Situation, time_class: &str, stance_digest: Option<String>) -> Self {
        Self {
            risk: situation.state.risk,
            signals: situation.state.signals.clone(),
            fresh: situation.state.fresh.clone(),
            grants: situation.grants.clone(),
            approvals: situation.approvals.clone(),
            offboarded: situation.offboarded,
            break_glass_until: situation.break_glass_until,
            state_digest: situation.digest(time_class),
            stance_digest,
        }
    }
}

/// A part of what can be reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Reach {
    /// A destination's name, or a prefix.
    pub destination: String,
    /// Inclusive range of ports; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// Protocol, by name; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Executable, by path; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
}

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
