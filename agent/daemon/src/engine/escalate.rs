//! Attempts that wait for a person: noted, approved, denied, and asked about again.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use writ_core::policy::Attempt;
use writ_core::record::{Body, Endpoint, Escalation as EscalationRecord, EscalationState, PolicyRef, Time};
use writ_core::stance::{Attempt as Escalated, Attempted, Escalation, EscalationStatus, Target};

use super::evidence::approver;
use super::live::Done;
use super::{Actor, Engine, Refusal};

/// What an attempt to connect is known by to whoever approves it; `None` where its executable is not known, since its
/// approval would be for any.
pub(super) fn connect_target(attempt: &Attempt, executable: Option<&str>) -> Option<Target> {
    let Attempt::Connect { ip, port, protocol, .. } = attempt else { return None };
    let executable = executable.filter(|path| !path.is_empty())?.to_owned();
    Some(Target::Connect { executable, address: *ip, port: *port, protocol: protocol.name().to_owned() })
}

impl Engine {
    /// Notes an attempt that waits for a person, and how that stands; `None` if nobody is asked.
    pub(super) fn escalate(
        &mut self,
        account: &str,
        target: Option<Target>,
        policies: Vec<String>,
        decision: &str,
    ) -> Option<Escalation> {
        let Some(target) = target else {
            tracing::warn!(account, "an attempt by an unknown executable cannot be escalated");
            return None;
        };
        let config = self.config().ok()?;
        let attempt = Escalated {
            account: account.to_owned(),
            target,
            policies: policies.into_iter().collect::<BTreeSet<_>>(),
            policy_digest: self.base.digest().to_owned(),
        };
        let id = match self.live.attempt(&attempt, Timestamp::now(), &config) {
            Attempted::New(escalation) => {
                self.save_live();
                let mut record = self.escalation_record(&escalation, EscalationState::Opened, None);
                record.decision = Some(decision.to_owned());
                self.note(Body::Escalation(Box::new(record)));
                self.tell_of(&escalation, decision, &config);
                escalation.id
            }
            Attempted::Waiting { id } | Attempted::Denied { id } | Attempted::Approved { id } => id,
            Attempted::Overflow => {
                self.deadline.forget(); // An approval that this question met may be over with it.
                // It is refused all the same, and its record is written.
                *self.tally.unasked.entry(account.to_owned()).or_default() += 1;
                tracing::warn!(account, "too many escalations are open: nobody is asked about this one");
                return None;
            }
        };
        self.live.escalations().get(&id).cloned()
    }

    /// The escalating policies that a person approved for exactly this question, and until when all of that holds.
    pub(super) fn approved_for(
        &self,
        account: &str,
        target: &Target,
        now: Timestamp,
    ) -> (BTreeSet<String>, Option<Timestamp>) {
        let digest = self.base.digest();
        let mut approvals = BTreeSet::new();
        let mut until = None;
        for known in self.live.escalations().approved(account, target, digest, now) {
            approvals.extend(known.policies.iter().cloned());
            until = until.into_iter().chain([known.expires]).min();
        }
        (approvals, until)
    }

    /// Approves an escalation.
    ///
    /// # Errors
    /// There is none, or the caller may not, or the kernel could not be told.
    pub(crate) fn approve(
        &mut self,
        id: &str,
        ttl: Duration,
        reason: &str,
        ticket: Option<String>,
        actor: &Actor,
    ) -> Done<Escalation> {
        let config = self.config()?;
        let digest = self.base.digest().to_owned();
        let now = Timestamp::now();
        let approved = self.live.approve(id, ttl, reason, ticket, &actor.caller, &digest, now, &config);
        let escalation = approved.map_err(|refusal| self.answer_refused("escalation approve", actor, refusal))?;
        self.answered(&escalation, EscalationState::Approved, "approval", reason, actor)?;
        Ok(escalation)
    }

    /// Denies an escalation, or takes its approval back.
    ///
    /// # Errors
    /// There is none, or the caller may not, or the kernel could not be told.
    pub(crate) fn deny(&mut self, id: &str, reason: &str, actor: &Actor) -> Done<Escalation> {
        let config = self.config()?;
        let denied = self.live.deny(id, reason, &actor.caller, Timestamp::now(), &config);
        let escalation = denied.map_err(|refusal| self.answer_refused("escalation deny", actor, refusal))?;
        self.answered(&escalation, EscalationState::Denied, "approval-denied", reason, actor)?;
        Ok(escalation)
    }

    fn answer_refused(&mut self, operation: &str, actor: &Actor, refusal: writ_core::stance::AnswerRefusal) -> Refusal {
        use writ_core::stance::AnswerRefusal;
        let text = refusal.to_string();
        match refusal {
            AnswerRefusal::Approver(_) => self.not_permitted(operation, actor, None, text),
            AnswerRefusal::Unknown(_) => Refusal::NotFound(text),
            _ => Refusal::Invalid(text),
        }
    }

    fn answered(
        &mut self,
        escalation: &Escalation,
        state: EscalationState,
        cause: &str,
        reason: &str,
        actor: &Actor,
    ) -> Done<()> {
        self.save_live();
        let why = actor.why(cause, Some(escalation.id.clone()), Some(reason.into()));
        self.note_escalation(escalation, state, Some(reason));
        // What only the decision point can be asked for, the kernel need not know.
        if !escalation.target.is_action() {
            self.refresh(&escalation.account, &why)?;
        }
        self.flush();
        self.kept()
    }

    /// Records what became of an escalation.
    pub(super) fn note_escalation(&mut self, escalation: &Escalation, state: EscalationState, reason: Option<&str>) {
        let record = self.escalation_record(escalation, state, reason);
        self.note(Body::Escalation(Box::new(record)));
    }

    fn escalation_record(
        &self,
        escalation: &Escalation,
        state: EscalationState,
        reason: Option<&str>,
    ) -> EscalationRecord {
        let (destination, asked) = match &escalation.target {
            Target::Connect { address, port, protocol, .. } => {
                (Some(Endpoint { address: address.to_string(), port: *port, protocol: protocol.clone() }), None)
            }
            Target::Action { action, resource, .. } => (None, Some((action.clone(), resource.clone()))),
        };
        let (action, resource) = asked.unzip();
        let bundle = self.current().map(|current| &current.bundle);
        EscalationRecord {
            escalation: escalation.id.clone(),
            state,
            account: escalation.account.clone(),
            destination,
            executable: escalation.target.executable().map(str::to_owned),
            action,
            resource,
            policies: escalation
                .policies
                .iter()
                .map(|id| PolicyRef::new(id, bundle.and_then(|bundle| bundle.policy(id))))
                .collect(),
            decision: None,
            approver: escalation
                .answer
                .as_ref()
                .map(|answer| approver(&answer.approver))
                .filter(|_| escalation.status != EscalationStatus::Pending),
            reason: reason.map(str::to_owned),
            expires: Time(escalation.expires),
        }
    }
}
