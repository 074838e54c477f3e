//! Everything live on this host: one value that changes as a whole, is written as a whole and comes back as a whole.
//!
//! The stores are read freely and changed only here, where a change in one has its consequences in the others: a
//! signal may end grants and approvals, offboarding ends both.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use thiserror::Error;

use super::{
    AccountLive, AnswerRefusal, Attempt, Attempted, BreakGlass, BreakGlassRefusal, BreakGlassRequest, BreakGlassStore,
    Escalation, EscalationStatus, EscalationStore, Grant, GrantRefusal, GrantRequest, GrantStore, Offboarded,
    OffboardingRefusal, OffboardingStore, Revocation, RevocationCause, RevokeRefusal,
};
use crate::config::Config;
use crate::signal::{Accepted, Caller, ClockReading, Incoming, Outcome, RiskRule, Signal, SignalStore};

/// All live state. See the `restore` module for how it is written and read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveState {
    pub(super) signals: SignalStore,
    pub(super) grants: GrantStore,
    pub(super) escalations: EscalationStore,
    pub(super) offboardings: OffboardingStore,
    pub(super) break_glass: BreakGlassStore,
    pub(super) clock: Option<ClockReading>,
}

/// What a signal did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Received {
    /// Id of the signal that is live by it, or was before it: what `signal clear` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Grants it ended for good.
    pub grants: Vec<Grant>,
    /// Approvals it ended for good.
    pub approvals: Vec<Escalation>,
}

/// What was over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Ended {
    /// Signals.
    pub signals: Vec<Signal>,
    /// Grants.
    pub grants: Vec<Grant>,
    /// Requests, approvals and denials.
    pub escalations: Vec<Escalation>,
    /// Emergencies.
    pub break_glass: Vec<BreakGlass>,
}

/// Why a signal was not cleared.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ClearRefusal {
    /// There is none.
    #[error("no live signal `{0}`")]
    Unknown(String),
    /// Clearing is for root, operators and the signal's own sender, and never for the account it is about. Who may not is not
    /// told whether there is such a signal.
    #[error(
        "no live signal `{0}` that the caller may clear: its sender, root and operators may, and never the account it is about"
    )]
    NotPermitted(String),
    /// No reason.
    #[error("a reason is needed")]
    NoReason,
}

impl LiveState {
    /// The signals.
    pub fn signals(&self) -> &SignalStore {
        &self.signals
    }

    /// The grants.
    pub fn grants(&self) -> &GrantStore {
        &self.grants
    }

    /// The escalations.
    pub fn escalations(&self) -> &EscalationStore {
        &self.escalations
    }

    /// The offboarded accounts.
    pub fn offboardings(&self) -> &OffboardingStore {
        &self.offboardings
    }

    /// What glass is broken.
    pub fn broken_glass(&self) -> &BreakGlassStore {
        &self.break_glass
    }

    /// Takes or refuses a signal; one that `revoke-grants-on` selects ends the account's grants and approvals for
    /// good.
    pub fn receive(&mut self, incoming: &Incoming, caller: &Caller, now: Timestamp, config: &Config) -> Received {
        let outcome = self.signals.receive(incoming, caller, now, config);
        let id = match &outcome {
            Outcome::Accepted(accepted) => Some(accepted.signal.id.clone()),
            // Where another sender has the event's id, its signal has one that was assigned.
            Outcome::Duplicate { id } => {
                let own = |live: &&Signal| live.source.same(&caller.source());
                let mut live = self.signals.live(&incoming.account, now).filter(own);
                let known = live.find(|live| live.id == *id || live.event.as_ref() == Some(id));
                Some(known.map_or_else(|| id.clone(), |known| known.id.clone()))
            }
            Outcome::OutOfOrder { live } => Some(live.clone()),
            _ => None,
        };
        let mut received = Received { id, outcome, grants: Vec::new(), approvals: Vec::new() };
        if let Some(signal) = received.outcome.accepted()
            && let Some(account) = config.accounts.get(&signal.account)
        {
            received.grants = self.grants.on_signal(signal, &account.revoke_grants_on, now);
            received.approvals = self.escalations.on_signal(signal, &account.revoke_grants_on, now);
        }
        received
    }

    /// Takes an accepted signal again, as a journal kept it. One that ended grants or approvals is not journalled: the
    /// whole state is written then.
    pub fn retake(&mut self, accepted: &Accepted, now: Timestamp) {
        self.signals.retake(accepted, now);
    }

    /// Ends a signal before its time.
    pub fn clear_signal(
        &mut self,
        id: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Signal, ClearRefusal> {
        let unknown = || ClearRefusal::Unknown(id.to_owned());
        let operator = caller.is_operator(&config.agent.operators);
        let absent = || if operator { unknown() } else { ClearRefusal::NotPermitted(id.to_owned()) };
        let signal = self.signals.get(id, now).ok_or_else(absent)?;
        // What root sent, only root takes back, and a workload that reached uid 0 is not root.
        let is_sender = caller.uid != 0 && caller.source().same(&signal.source);
        if caller.stems_from(&signal.account) || !(is_sender || operator) {
            return Err(ClearRefusal::NotPermitted(id.to_owned()));
        }
        super::stated(reason).ok_or(ClearRefusal::NoReason)?;
        self.signals.clear(id).ok_or_else(unknown)
    }

    /// Makes a grant.
    pub fn create_grant(
        &mut self,
        request: &GrantRequest,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Grant, GrantRefusal> {
        // First: who may not learns nothing of accounts.
        caller.may_approve(&config.agent.approvers, Some(&request.account))?;
        if self.offboardings.get(&request.account).is_some() {
            return Err(GrantRefusal::Offboarded(request.account.clone()));
        }
        self.grants.create(request, caller, now, config)
    }

    /// Takes a grant back.
    pub fn revoke_grant(
        &mut self,
        id: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Grant, RevokeRefusal> {
        self.grants.revoke(id, reason, caller, now, config)
    }

    /// Notes an attempt that was judged `escalate`.
    pub fn attempt(&mut self, attempt: &Attempt, now: Timestamp, config: &Config) -> Attempted {
        self.escalations.attempt(attempt, now, config)
    }

    /// Approves an escalation under the policy set in force.
    #[expect(clippy::too_many_arguments, reason = "each is a different fact about one answer, and none has a default")]
    pub fn approve(
        &mut self,
        id: &str,
        ttl: Duration,
        reason: &str,
        ticket: Option<String>,
        caller: &Caller,
        policy_digest: &str,
        now: Timestamp,
        config: &Config,
    ) -> Result<Escalation, AnswerRefusal> {
        self.escalations.permitted(id, caller, config)?;
        if let Some(known) = self.escalations.get(id)
            && self.offboardings.get(&known.account).is_some()
        {
            return Err(AnswerRefusal::Offboarded(known.account.clone()));
        }
        self.escalations.approve(id, ttl, reason, ticket, caller, policy_digest, now, config)
    }

    /// Denies an escalation, or takes its approval back.
    pub fn deny(
        &mut self,
        id: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Escalation, AnswerRefusal> {
        self.escalations.permitted(id, caller, config)?;
        self.escalations.deny(id, reason, caller, now, config)
    }

    /// Ends an account's access: its grants and escalations are over for good, and stay over when it is reinstated.
    pub fn offboard(
        &mut self,
        account: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<(Offboarded, Vec<Grant>, Vec<Escalation>), OffboardingRefusal> {
        let offboarded = self.offboardings.offboard(account, reason, caller, now, config)?;
        let revocation = Revocation { at: now, cause: RevocationCause::Offboarded };
        let grants = self.grants.revoke_account(account, &revocation);
        let escalations = self.escalations.close_account(account, &revocation);
        Ok((offboarded, grants, escalations))
    }

    /// Undoes an offboarding; returns it.
    pub fn reinstate(
        &mut self,
        account: &str,
        reason: &str,
        caller: &Caller,
        config: &Config,
    ) -> Result<Offboarded, OffboardingRefusal> {
        self.offboardings.reinstate(account, reason, caller, config)
    }

    /// Breaks glass.
    pub fn begin_break_glass(
        &mut self,
        request: &BreakGlassRequest,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<BreakGlass, BreakGlassRefusal> {
        if let Some(account) = request.account.as_ref().filter(|account| self.offboardings.get(account).is_some()) {
            return Err(BreakGlassRefusal::Offboarded(account.clone()));
        }
        self.break_glass.begin(request, caller, now, config)
    }

    /// Removes and returns what is over by time.
    pub fn expire(&mut self, now: Timestamp) -> Ended {
        Ended {
            signals: self.signals.expire(now),
            grants: self.grants.expire(now),
            escalations: self.escalations.expire(now),
            break_glass: self.break_glass.expire(now),
        }
    }

    /// What is live about an account. Nothing that ended by `now` counts, whether or not it has been removed.
    pub fn account<'a>(
        &'a self,
        account: &'a str,
        now: Timestamp,
        config: &'a Config,
        rule: RiskRule,
        policy_digest: &'a str,
    ) -> AccountLive<'a> {
        // The kernel, and so the stance, has no part in questions about other actions.
        let approved = |known: &&Escalation| known.status == EscalationStatus::Approved && !known.target.is_action();
        let offboarded = self.offboardings.get(account).is_some();
        AccountLive {
            account,
            signals: self.signals.live(account, now).collect(),
            grants: self.grants.live(account, now).collect(),
            approved: self.escalations.open(account, now).filter(approved).collect(),
            offboarded,
            // It reaches nobody who is offboarded (see `BreakGlassRefusal::Offboarded`).
            break_glass_until: self.break_glass.until(account, now).filter(|_| !offboarded),
            kinds: &config.signals,
            rule,
            policy_digest,
        }
    }

    /// When anything ends next: what the daemon's timer is set to, beside time boundaries. What has ended and was not taken up
    /// by [`Self::expire`] counts: otherwise whoever asks between the two would have its end go unrecorded.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        [
            self.signals.next_expiry(),
            self.grants.next_expiry(),
            self.escalations.next_expiry(),
            self.break_glass.next_expiry(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Moves every end by a step of the wall clock, so that lifetimes keep their length.
    pub fn shift(&mut self, by: SignedDuration) {
        self.signals.shift(by);
        self.grants.shift(by);
        self.escalations.shift(by);
        self.break_glass.shift(by);
    }

    /// Takes a reading of both clocks: before each write, after each restart, and when the wall clock was set. If it
    /// was set by a second or more since the reading before, everything is shifted and the step returned; less is the
    /// slewing of an ordinary clock.
    pub fn read_clock(&mut self, reading: ClockReading) -> Option<SignedDuration> {
        let step = self.clock.as_ref().and_then(|last| last.step_to(&reading));
        let step = step.filter(|step| step.unsigned_abs() >= Duration::from_secs(1));
        if let Some(by) = step {
            self.shift(by);
        }
        self.clock = Some(reading);
        step
    }
}
