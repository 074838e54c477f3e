//! Situation: what holds for an account at one moment, by value, and the digest that names it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::policy::{AccountState, Approval};

/// What holds for an account at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Situation {
    /// The account.
    pub account: String,
    /// What policy is told.
    pub state: AccountState,
    /// Ids of live grants, whose policies belong to the account's set.
    pub grants: BTreeSet<String>,
    /// Ids of the escalations whose approvals are in `state`.
    pub approvals: BTreeSet<String>,
    /// Whether everything is refused.
    pub offboarded: bool,
    /// Until when verdicts are only observed.
    pub break_glass_until: Option<Timestamp>,
}

impl Situation {
    /// Whether a row made for one would be a row for the other, but for the time of day: break-glass does not change
    /// verdicts, only whether they are enforced.
    pub fn same_but_for_time(&self, other: &Self) -> bool {
        self.grants == other.grants
            && self.offboarded == other.offboarded
            && self.state.risk == other.state.risk
            && self.state.signals == other.state.signals
            && self.state.fresh == other.state.fresh
            && self.state.approvals == other.state.approvals
    }

    /// `sha256-HEX` over everything a row depends on, as canonical JSON. `time_class` names the class of `now` that
    /// the policies distinguish (see [`super::TimeClasses::class`]): two moments of one class share their digest.
    pub fn digest(&self, time_class: &str) -> String {
        #[derive(Serialize)]
        struct Canonical<'a> {
            // In alphabetical order, sets sorted, no map: one text for one situation.
            account: &'a str,
            approvals: &'a [Approval],
            fresh: &'a BTreeSet<String>,
            grants: &'a BTreeSet<String>,
            offboarded: bool,
            risk: u8,
            signals: &'a BTreeSet<String>,
            time_class: &'a str,
        }
        let canonical = Canonical {
            account: &self.account,
            approvals: &self.state.approvals,
            fresh: &self.state.fresh,
            grants: &self.grants,
            offboarded: self.offboarded,
            risk: self.state.risk,
            signals: &self.state.signals,
            time_class,
        };
        // Strings, numbers and sequences of them always serialize.
        let text = serde_json::to_vec(&canonical).unwrap_or_default();
        Sha256::digest(&text).iter().fold("sha256-".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}
