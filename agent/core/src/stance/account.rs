//! One account's live statements and permissions, put together.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Escalation, Grant, Situation};
use crate::config::SignalKind;
use crate::policy::AccountState;
use crate::signal::{Risk, RiskRule, Signal, assess, risk};

/// Everything live about one account at the moment it was taken from the stores.
#[derive(Clone, Debug)]
pub struct AccountLive<'a> {
    /// The account.
    pub account: &'a str,
    /// Its signals.
    pub signals: Vec<&'a Signal>,
    /// Its grants.
    pub grants: Vec<&'a Grant>,
    /// Its approved escalations.
    pub approved: Vec<&'a Escalation>,
    /// Whether it is offboarded.
    pub offboarded: bool,
    /// Until when its verdicts are only observed.
    pub break_glass_until: Option<Timestamp>,
    /// The declared kinds: whether a signal is a flag or a freshness is what they say now, so that a reload applies to
    /// signals already received. Risk is what it was at receipt.
    pub kinds: &'a BTreeMap<String, SignalKind>,
    /// How risk combines.
    pub rule: RiskRule,
    /// Digest of the policy set in force: approvals given under another do not count.
    pub policy_digest: &'a str,
}

impl AccountLive<'_> {
    /// What holds at a moment, now or later, if nothing happens but time.
    pub fn situation(&self, at: Timestamp) -> Situation {
        let live = self.signals.iter().copied().filter(|signal| signal.is_live(at));
        let declared = |signal: &&Signal, is: fn(&SignalKind) -> bool| self.kinds.get(&signal.kind).is_some_and(is);
        let kinds_of = |is: fn(&SignalKind) -> bool| -> BTreeSet<String> {
            live.clone().filter(|signal| declared(signal, is)).map(|signal| signal.kind.clone()).collect()
        };
        let approved: BTreeMap<_, _> = (self.approved.iter())
            .filter_map(|known| Some((known.id.clone(), known.approval(self.policy_digest, at)?)))
            .collect();
        let mut approvals: Vec<_> = approved.values().cloned().collect();
        approvals.sort();
        approvals.dedup();
        Situation {
            account: self.account.to_owned(),
            state: AccountState {
                risk: risk(self.rule, live.clone()),
                signals: kinds_of(|kind| kind.flag),
                fresh: kinds_of(|kind| kind.freshness),
                approvals,
                now: at,
            },
            grants: self.grants.iter().filter(|grant| grant.is_live(at)).map(|grant| grant.id.clone()).collect(),
            approvals: approved.into_keys().collect(),
            offboarded: self.offboarded,
            break_glass_until: self.break_glass_until.filter(|until| at < *until),
        }
    }

    /// The risk now, explained by the live signals.
    pub fn risk(&self, now: Timestamp) -> Risk {
        assess(self.rule, self.signals.iter().copied().filter(|signal| signal.is_live(now)))
    }

    /// Until when each of these kinds is fresh; `None`: it is stale.
    pub fn freshness(&self, required: &[String], now: Timestamp) -> BTreeMap<String, Option<Timestamp>> {
        let until = |kind: &String| {
            let declared = self.kinds.get(kind).is_some_and(|kind| kind.freshness);
            let live = self.signals.iter().filter(|signal| declared && signal.kind == *kind && signal.is_live(now));
            live.map(|signal| signal.expires).max()
        };
        required.iter().map(|kind| (kind.clone(), until(kind))).collect()
    }

    /// Every instant after `now` at which something of it ends.
    pub fn expiries(&self, now: Timestamp) -> BTreeSet<Timestamp> {
        let signals = self.signals.iter().map(|signal| signal.expires);
        let grants = self.grants.iter().map(|grant| grant.expires);
        let approved = self.approved.iter().map(|known| known.expires);
        signals.chain(grants).chain(approved).filter(|end| *end > now).collect()
    }
}
