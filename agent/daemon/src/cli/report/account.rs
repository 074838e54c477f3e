//! One account in the report.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use writ_core::policy::Permit;
use writ_core::record::{Body, Decision, EscalationState, GrantState, Lifecycle, Record, SignalState, Verdict};

/// How many points of an account's risk are kept, the newest.
const RISK_POINTS: usize = 200;
/// What a permit opens that is not tied to a destination.
const ANYWHERE: &str = "(any destination)";

/// One account.
#[derive(Debug, Default, Serialize)]
pub(super) struct Account {
    pub(super) owner: Option<String>,
    /// Destinations that the last policy set permits under some circumstances, with the policies that do.
    pub(super) permitted: BTreeMap<String, BTreeSet<String>>,
    /// Destinations reached, with the number of attempts.
    pub(super) used: BTreeMap<String, u64>,
    /// Permitted destinations that no permit let it reach.
    pub(super) never_used: Vec<String>,
    /// The share of permitted destinations that were not reached, 0 to 1; `None` where nothing is permitted.
    pub(super) over_privilege: Option<f64>,
    /// Destinations refused, with the number of attempts.
    pub(super) refused: BTreeMap<String, u64>,
    /// Destinations that enforcing would have refused, with the number of attempts.
    pub(super) would_refuse: BTreeMap<String, u64>,
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) escalated: u64,
    /// Judged without being enforced.
    pub(super) observed: u64,
    /// Grants made: id, and what for.
    pub(super) granted: BTreeMap<String, String>,
    pub(super) grants_created: u64,
    pub(super) grants_revoked: u64,
    pub(super) grants_expired: u64,
    /// Policies that decided, with the number of attempts.
    pub(super) policies: BTreeMap<String, u64>,
    pub(super) executables: BTreeSet<String>,
    pub(super) highest_risk: u8,
    /// How the risk went: each change of it.
    pub(super) risk_history: Vec<Point>,
    /// Signals received.
    pub(super) signals: u64,
    pub(super) changes: u64,
    /// Live sessions that were ended.
    pub(super) cuts: u64,
    /// Questions put to a person, and what became of them.
    pub(super) escalations: u64,
    pub(super) escalations_approved: u64,
    pub(super) escalations_denied: u64,
    /// When it was last allowed something.
    pub(super) last_used: Option<String>,
    /// By policy that permitted it, the destinations reached, each by itself: a permit is for one of them.
    #[serde(skip)]
    reached: BTreeMap<String, BTreeSet<String>>,
}

/// The risk from a moment on.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    pub(super) time: String,
    pub(super) risk: u8,
    pub(super) cause: String,
}

impl Account {
    pub(super) fn add(&mut self, record: &Record, time: String) {
        match &record.body {
            Body::Decision(judged) | Body::Observation(judged) => {
                self.judged(judged, matches!(record.body, Body::Decision(_)), time);
            }
            Body::Change(change) => {
                self.changes += 1;
                self.risk(time, change.after.risk, &change.cause);
            }
            // What had closed by itself was not cut.
            Body::Cut(cut) => self.cuts += u64::from(cut.method != "gone"),
            Body::Escalation(escalation) => match escalation.state {
                EscalationState::Opened => self.escalations += 1,
                EscalationState::Approved => self.escalations_approved += 1,
                EscalationState::Denied => self.escalations_denied += 1,
                EscalationState::Expired => {}
            },
            Body::Grant(grant) => match grant.state {
                GrantState::Created => {
                    self.grants_created += 1;
                    self.granted.insert(grant.grant.clone(), format!("{}: {}", grant.destination, grant.reason));
                }
                GrantState::Revoked => self.grants_revoked += 1,
                GrantState::Expired => self.grants_expired += 1,
            },
            Body::Lifecycle(lifecycle) => {
                if let Lifecycle::Signal(signal) = &**lifecycle {
                    self.signals += u64::from(signal.state == SignalState::Received);
                }
            }
            Body::Loss(_) => {}
        }
    }

    fn judged(&mut self, judged: &Decision, enforced: bool, time: String) {
        let count = u64::from(judged.count);
        self.owner.clone_from(&judged.owner);
        self.risk(time.clone(), judged.risk, "decision");
        let counter = match (enforced, judged.verdict) {
            (false, _) => &mut self.observed,
            (true, Verdict::Allow) => &mut self.allowed,
            (true, Verdict::Deny) => &mut self.denied,
            (true, Verdict::Escalate) => &mut self.escalated,
        };
        *counter += count;
        let place = judged.destination.as_ref().map_or_else(
            || judged.action.clone(),
            |to| match to.groups.as_slice() {
                [] => format!("{}:{}/{}", to.address, to.port, to.protocol),
                groups => groups.join(", "),
            },
        );
        if !enforced && judged.verdict != Verdict::Allow {
            *self.would_refuse.entry(place.clone()).or_default() += count;
        }
        let reached = !enforced || judged.verdict == Verdict::Allow;
        let places = if reached { &mut self.used } else { &mut self.refused };
        *places.entry(place).or_default() += count;
        if reached {
            self.last_used = Some(time);
        }
        if judged.verdict == Verdict::Allow {
            for policy in &judged.policies {
                let places = judged.destination.iter().flat_map(|to| &to.groups);
                let reached = self.reached.entry(policy.id.clone()).or_default();
                reached.extend(places.cloned());
            }
        }
        for policy in &judged.policies {
            *self.policies.entry(policy.id.clone()).or_default() += count;
        }
        self.executables.extend(judged.process.as_ref().and_then(|process| process.executable.clone()));
    }

    fn risk(&mut self, time: String, risk: u8, cause: &str) {
        self.highest_risk = self.highest_risk.max(risk);
        // A decision that waited in the ring can be written after the change that followed it: it tells nothing new.
        if self.risk_history.last().is_some_and(|last| last.risk == risk || last.time > time) {
            return;
        }
        if self.risk_history.len() >= RISK_POINTS {
            self.risk_history.remove(0);
        }
        self.risk_history.push(Point { time, risk, cause: cause.to_owned() });
    }

    /// Adds what is permitted, and with it what is permitted for nothing. Grants end by themselves and are listed apart.
    pub(super) fn permit(&mut self, permits: &[Permit], owner: Option<&str>) {
        if self.owner.is_none() {
            self.owner = owner.map(str::to_owned);
        }
        let mut used = BTreeSet::new();
        for permit in permits.iter().filter(|permit| !permit.id.starts_with("grant:")) {
            let mut places = permit.destinations.clone();
            if places.is_empty() {
                places.insert(ANYWHERE.to_owned());
            }
            for place in places {
                // What a grant let through is no use of a permit.
                let reached = self.reached.get(&permit.id);
                if reached.is_some_and(|reached| place == ANYWHERE || reached.contains(&place)) {
                    used.insert(place.clone());
                }
                self.permitted.entry(place).or_default().insert(permit.id.clone());
            }
        }
        self.never_used = self.permitted.keys().filter(|place| !used.contains(*place)).cloned().collect();
        if !self.permitted.is_empty() {
            self.over_privilege = Some(self.never_used.len() as f64 / self.permitted.len() as f64);
        }
    }
}
