//! What an event's numbers mean: the names of its generation, and what held for its account in its epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use writ_core::config::{Config, Mode, SignalKind};
use writ_core::policy::{Bundle, PolicyInfo};
use writ_core::signal::{RiskRule, Signal};
use writ_core::stance::{AccountLive, Escalation, Grant, LiveState, Situation};
use writ_core::table::{Explanation, Generation};

/// The names of one generation.
#[derive(Clone)]
pub(crate) struct Names {
    /// The policy set, with the grants that are live.
    pub(crate) bundle: Arc<Bundle>,
    /// Every grant there was in it: an event can be older than a grant's end.
    pub(crate) grants: BTreeMap<String, PolicyInfo>,
    /// What it says without the numbers.
    pub(crate) legend: Legend,
}

impl Names {
    /// The names of a generation as it begins.
    pub(crate) fn new(bundle: Arc<Bundle>, legend: Legend) -> Self {
        let mut names = Self { bundle: Arc::clone(&bundle), grants: BTreeMap::new(), legend };
        for account in bundle.granted_accounts() {
            names.grants.extend(bundle.granted(account).map(|(id, policy)| (id.clone(), policy.clone())));
        }
        names
    }

    /// Takes up the set with another account's grants.
    pub(crate) fn granting(&mut self, account: &str, bundle: &Arc<Bundle>) {
        self.grants.extend(bundle.granted(account).map(|(id, policy)| (id.clone(), policy.clone())));
        self.bundle = Arc::clone(bundle);
    }

    /// A policy of the set, or a grant that was in it.
    pub(crate) fn policy(&self, id: &str) -> Option<&PolicyInfo> {
        self.bundle.policies().get(id).or_else(|| self.grants.get(id))
    }
}

/// The names of one generation as they are kept across restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Legend {
    /// Its number.
    pub(crate) generation: u32,
    /// Digest of the policy set.
    pub(crate) policy_digest: String,
    /// Accounts by index.
    pub(crate) accounts: Vec<String>,
    /// Explanations by index.
    pub(crate) explanations: Vec<Explanation>,
    /// Digests of rows by stance.
    pub(crate) digests: Vec<String>,
    /// Paths of executables by class.
    pub(crate) executables: BTreeMap<u32, String>,
}

impl Legend {
    /// The legend of a generation.
    pub(crate) fn of(generation: &Generation, policy_digest: &str) -> Self {
        Self {
            generation: writ_abi::Active(generation.active).generation(),
            policy_digest: policy_digest.to_owned(),
            accounts: generation.accounts.clone(),
            explanations: generation.explanations.clone(),
            digests: generation.digests.clone(),
            executables: generation.executables.iter().map(|(path, class)| (*class, path.clone())).collect(),
        }
    }
}

/// What held for an account from one change of its stance to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// The account.
    pub(crate) account: String,
    /// From when.
    pub(crate) from: Timestamp,
    /// When time alone ends it, if it does.
    pub(crate) until: Option<Timestamp>,
    /// Its live signals.
    pub(crate) signals: Vec<Signal>,
    /// Its live grants.
    pub(crate) grants: Vec<Grant>,
    /// Its approved escalations.
    pub(crate) approved: Vec<Escalation>,
    /// Whether it is offboarded.
    pub(crate) offboarded: bool,
    /// Until when its verdicts are only observed.
    pub(crate) break_glass_until: Option<Timestamp>,
    /// Whether its verdicts are enforced, as configuration says; unknown of what older versions kept.
    #[serde(default)]
    pub(crate) mode: Option<Mode>,
    /// Digest of the policy set without grants, under which approvals count.
    pub(crate) base_digest: String,
    /// How the risks of its signals add up.
    #[serde(default)]
    pub(crate) rule: RiskRule,
    /// What the policy set with the account's grants is archived as; empty: as its generation's is.
    #[serde(default)]
    pub(crate) policy_digest: String,
    /// Digest of the stance that was made for it.
    #[serde(default)]
    pub(crate) stance_digest: String,
}

impl Moment {
    /// What holds now.
    pub(crate) fn of(live: &LiveState, config: &Config, account: &str, base_digest: &str, now: Timestamp) -> Self {
        let rule = config.agent.risk;
        let view = live.account(account, now, config, rule, base_digest);
        Self {
            account: account.to_owned(),
            from: now,
            until: None,
            signals: view.signals.into_iter().cloned().collect(),
            grants: view.grants.into_iter().cloned().collect(),
            approved: view.approved.into_iter().cloned().collect(),
            offboarded: view.offboarded,
            break_glass_until: view.break_glass_until,
            mode: config.accounts.get(account).map(|account| account.effective_mode(config.agent.mode)),
            base_digest: base_digest.to_owned(),
            rule,
            policy_digest: String::new(),
            stance_digest: String::new(),
        }
    }

    /// The moment as the core sees it.
    pub(crate) fn live<'a>(&'a self, kinds: &'a BTreeMap<String, SignalKind>) -> AccountLive<'a> {
        AccountLive {
            account: &self.account,
            signals: self.signals.iter().collect(),
            grants: self.grants.iter().collect(),
            approved: self.approved.iter().collect(),
            offboarded: self.offboarded,
            break_glass_until: self.break_glass_until,
            kinds,
            rule: self.rule,
            policy_digest: &self.base_digest,
        }
    }

    /// What held at an instant of it.
    pub(crate) fn situation(&self, kinds: &BTreeMap<String, SignalKind>, at: Timestamp) -> Situation {
        self.live(kinds).situation(at)
    }

    /// Whether it is known to be enforced where the other is only observed, or the other way round.
    pub(crate) fn other_mode(&self, other: &Self) -> bool {
        self.mode.zip(other.mode).is_some_and(|(own, other)| own != other)
    }

    /// Whether nothing a row depends on differs.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.signals == other.signals
            && self.grants == other.grants
            && self.approved == other.approved
            && self.offboarded == other.offboarded
            && self.break_glass_until == other.break_glass_until
            && !self.other_mode(other)
            && self.base_digest == other.base_digest
    }
}
