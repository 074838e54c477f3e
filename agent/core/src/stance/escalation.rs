//! Escalations: denied attempts that wait for a person, and what the person said.
//!
//! An attempt is known by account, target and the policies that escalate it; its repeats fold into one. Approval is for
//! exactly that, for a while, under the policy set it was judged by. A denial is remembered as long as a request would have
//! waited, so that a retrying workload does not ask again and again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use writ_abi::Protocol;

use super::{Grant, GrantDestination, Revocation, RevocationCause, keep_latest, stated};
use crate::config::Config;
use crate::policy::Approval;
use crate::signal::{Approver, ApproverRefusal, Caller, Signal, after, matches_any, shifted, short_digest};

/// How many escalations of one account are open at most: a workload that tries every port must not exhaust memory.
pub const OPEN_PER_ACCOUNT: usize = 256;

/// How many questions about the operator's own actions are open at most, over all subjects: a broker may name any number.
pub const OPEN_QUESTIONS: usize = 1_024;

/// What an attempt was for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A connect, in the kernel or asked about.
    Connect {
        /// Path of the executable. An attempt whose executable is unknown cannot be escalated: its approval would be for
        /// any.
        executable: String,
        /// Canonical address.
        address: IpAddr,
        /// Port.
        port: u16,
        /// Protocol, by name.
        protocol: String,
    },
    /// A question about an action of the operator's own, as Cedar writes its parts.
    Action {
        /// Who: the account, or an entity of the operator's own.
        principal: String,
        /// The action.
        action: String,
        /// The resource.
        resource: String,
    },
}

impl Target {
    /// Whether only the decision point can be asked for it: the kernel has no part in its approval.
    pub const fn is_action(&self) -> bool {
        matches!(self, Self::Action { .. })
    }

    /// Whether the subject is an entity of the operator's own, and no account.
    pub fn is_of_outsider(&self) -> bool {
        matches!(self, Self::Action { principal, .. } if !principal.starts_with("ServiceAccount::"))
    }

    /// The executable, for a connect.
    pub fn executable(&self) -> Option<&str> {
        match self {
            Self::Connect { executable, .. } => Some(executable),
            Self::Action { .. } => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect { address, port, protocol, .. } => {
                write!(out, "{}/{protocol}", std::net::SocketAddr::new(*address, *port))
            }
            Self::Action { action, resource, .. } => write!(out, "{action} {resource}"),
        }
    }
}

/// One attempt that was judged `escalate`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Whose: an account's name, or an entity of the operator's own as Cedar writes it.
    pub account: String,
    /// What for.
    pub target: Target,
    /// The escalating policies that forbade it.
    pub policies: BTreeSet<String>,
    /// Digest of the policy set that judged it.
    pub policy_digest: String,
}

/// Where an escalation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EscalationStatus {
    /// Waiting for a person.
    Pending,
    /// Allowed until it expires.
    Approved,
    /// Refused; not asked again until it expires.
    Denied,
    /// Over: nobody answered, or the answer's time has passed.
    Expired,
    /// An approval that ended before its time.
    Revoked,
}

/// One escalation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Escalation {
    /// `E-…`
    pub id: String,
    /// Whose.
    pub account: String,
    /// What for; its members are members of the escalation.
    #[serde(flatten)]
    pub target: Target,
    /// The escalating policies.
    pub policies: BTreeSet<String>,
    /// Digest of the policy set that judged the latest attempt; an approval holds under this one only.
    pub policy_digest: String,
    /// First attempt.
    pub first_seen: Timestamp,
    /// Latest attempt.
    pub last_seen: Timestamp,
    /// How many attempts.
    pub count: u64,
    /// When the request, the approval or the denial ends.
    pub expires: Timestamp,
    /// Where it stands.
    pub status: EscalationStatus,
    /// What a person said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// How an approval ended before its time, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
}

/// A person's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Who.
    pub approver: Approver,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

impl Escalation {
    /// Whether it is neither over nor revoked.
    pub fn is_open(&self, now: Timestamp) -> bool {
        use EscalationStatus::{Approved, Denied, Pending};
        matches!(self.status, Pending | Approved | Denied) && now < self.expires
    }

    /// The approval as the grant that it is: for the account, what it asked for, and the time a person gave. `None` while
    /// nobody has approved it, and of an action of the decision point, which goes nowhere.
    pub fn as_grant(&self) -> Option<Grant> {
        let answer = self.answer.as_ref().filter(|_| self.status == EscalationStatus::Approved)?;
        let Target::Connect { executable, address, port, protocol } = &self.target else { return None };
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.name() == protocol)?;
        Some(Grant {
            id: self.id.clone(),
            account: self.account.clone(),
            destination: GrantDestination::Endpoint { addresses: (*address).into(), port: *port, protocol },
            executable: Some(executable.clone()),
            created: answer.at,
            expires: self.expires,
            approver: answer.approver.clone(),
            reason: answer.reason.clone(),
            revoked: None,
        })
    }

    /// Whether it is an approval that holds under the policy set in force.
    pub fn holds(&self, policy_digest: &str, now: Timestamp) -> bool {
        self.status == EscalationStatus::Approved && now < self.expires && self.policy_digest == policy_digest
    }

    /// What policy is told about connects, if this is an approval of one that holds under the policy set in force.
    pub fn approval(&self, policy_digest: &str, now: Timestamp) -> Option<Approval> {
        let Target::Connect { executable, address, port, protocol } = &self.target else { return None };
        self.holds(policy_digest, now).then(|| Approval {
            policies: self.policies.clone(),
            executable: Some(executable.clone()),
            address: *address,
            port: *port,
            protocol: protocol.clone(),
        })
    }

    fn is_of(&self, attempt: &Attempt) -> bool {
        self.account == attempt.account && self.target == attempt.target && self.policies == attempt.policies
    }
}

/// What became of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempted {
    /// A person is to be asked.
    New(Box<Escalation>),
    /// A person has been asked already.
    Waiting {
        /// The escalation.
        id: String,
    },
    /// A person refused, not long ago.
    Denied {
        /// The escalation.
        id: String,
    },
    /// A person has approved it: this attempt came before the kernel knew.
    Approved {
        /// The escalation.
        id: String,
    },
    /// As many are open as are kept; nobody is asked.
    Overflow,
}

/// Why an answer was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AnswerRefusal {
    /// There is none.
    #[error("no open escalation `{0}`")]
    Unknown(String),
    /// It is approved already.
    #[error("escalation `{0}` is approved already")]
    Already(String),
    /// The account is gone.
    #[error("no service account `{0}` is declared")]
    UnknownAccount(String),
    /// The account is offboarded.
    #[error("service account `{0}` is offboarded: reinstate it first")]
    Offboarded(String),
    /// Policy has changed since the attempt.
    #[error("the policies have changed since escalation `{0}`: the next attempt shows whether it is still needed")]
    PolicyChanged(String),
    /// The time to live is zero, or above the configured maximum.
    #[error("the time to live must be above zero and at most `grant-max-ttl` ({} s)", .0.as_secs())]
    Ttl(Duration),
    /// No reason.
    #[error("an answer needs a reason")]
    NoReason,
    /// The caller may not.
    #[error(transparent)]
    Approver(#[from] ApproverRefusal),
}

/// The escalations of every account.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EscalationStore {
    /// Oldest first.
    #[serde(default)]
    open: Vec<Escalation>,
    /// The latest that ended, in the order they did.
    #[serde(default)]
    ended: Vec<Escalation>,
    /// How many there ever were, so that ids differ.
    #[serde(default)]
    made: u64,
}

impl EscalationStore {
    /// Notes an attempt that was judged `escalate`.
    pub fn attempt(&mut self, attempt: &Attempt, now: Timestamp, config: &Config) -> Attempted {
        let same = |known: &&mut Escalation| known.is_open(now) && known.is_of(attempt);
        if let Some(known) = self.open.iter_mut().find(same) {
            known.count = known.count.saturating_add(1);
            known.last_seen = now;
            let id = known.id.clone();
            match known.status {
                EscalationStatus::Denied => return Attempted::Denied { id },
                EscalationStatus::Approved if known.policy_digest == attempt.policy_digest => {
                    return Attempted::Approved { id };
                }
                // Approved under policies that are no longer in force, and still escalated under the new: ask again. The
                // approval is over now, and is taken up with the next that time has ended.
                EscalationStatus::Approved => known.expires = now,
                _ => {
                    known.policy_digest.clone_from(&attempt.policy_digest);
                    return Attempted::Waiting { id };
                }
            }
        }
        let questions = || self.all(now).filter(|known| known.target.is_action()).count();
        if self.open(&attempt.account, now).count() >= OPEN_PER_ACCOUNT
            || (attempt.target.is_action() && questions() >= OPEN_QUESTIONS)
        {
            return Attempted::Overflow;
        }
        self.made += 1;
        let escalation = Escalation {
            id: format!("E-{}", short_digest(6, &format!("{} {attempt:?} {now}", self.made))),
            account: attempt.account.clone(),
            target: attempt.target.clone(),
            policies: attempt.policies.clone(),
            policy_digest: attempt.policy_digest.clone(),
            first_seen: now,
            last_seen: now,
            count: 1,
            expires: after(now, config.agent.escalation_ttl),
            status: EscalationStatus::Pending,
            answer: None,
            revoked: None,
        };
        self.open.push(escalation.clone());
        Attempted::New(Box::new(escalation))
    }

    /// Allows what was attempted, for a while. A remembered denial may be approved after all.
    #[expect(clippy::too_many_arguments, reason = "each is a different fact about one answer, and none has a default")]
    pub(super) fn approve(
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
        let known = self.answerable(id, caller, now, config)?;
        if known.status == EscalationStatus::Approved {
            return Err(AnswerRefusal::Already(id.to_owned()));
        }
        if !config.accounts.contains_key(&known.account) && !known.target.is_of_outsider() {
            return Err(AnswerRefusal::UnknownAccount(known.account.clone()));
        }
        if known.policy_digest != policy_digest {
            return Err(AnswerRefusal::PolicyChanged(id.to_owned()));
        }
        if ttl.is_zero() || ttl > config.agent.grant_max_ttl {
            return Err(AnswerRefusal::Ttl(config.agent.grant_max_ttl));
        }
        let reason = stated(reason).ok_or(AnswerRefusal::NoReason)?;
        known.status = EscalationStatus::Approved;
        known.expires = after(now, ttl);
        known.answer = Some(Answer { approver: caller.approver(ticket), reason, at: now });
        Ok(known.clone())
    }

    /// Refuses what was attempted, or takes an approval back; remembered for `escalation-ttl`.
    pub(super) fn deny(
        &mut self,
        id: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Escalation, AnswerRefusal> {
        let known = self.answerable(id, caller, now, config)?;
        let reason = stated(reason).ok_or(AnswerRefusal::NoReason)?;
        known.status = EscalationStatus::Denied;
        known.expires = after(now, config.agent.escalation_ttl);
        known.answer = Some(Answer { approver: caller.approver(None), reason, at: now });
        Ok(known.clone())
    }

    /// Whether the caller may answer this; asked before anything else is, so that who may not learns no ids.
    pub(super) fn permitted(&self, id: &str, caller: &Caller, config: &Config) -> Result<(), ApproverRefusal> {
        let approvers = &config.agent.approvers;
        match self.get(id) {
            Some(known) => caller.may_approve(approvers, Some(&known.account)),
            None if caller.is_approver(approvers) => Ok(()),
            None => Err(ApproverRefusal::NotAnApprover),
        }
    }

    fn answerable(
        &mut self,
        id: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<&mut Escalation, AnswerRefusal> {
        let known = self.open.iter_mut().find(|known| known.id == id && known.is_open(now));
        let known = known.ok_or_else(|| AnswerRefusal::Unknown(id.to_owned()))?;
        caller.may_approve(&config.agent.approvers, Some(&known.account))?;
        Ok(known)
    }

    /// Ends the approvals of the signal's account for good, if the patterns select its kind: an approval is a
    /// permission like a grant.
    pub fn on_signal(&mut self, signal: &Signal, patterns: &[String], now: Timestamp) -> Vec<Escalation> {
        if !matches_any(patterns, &signal.kind) {
            return Vec::new();
        }
        let cause = RevocationCause::Drift { signal: signal.id.clone(), kind: signal.kind.clone() };
        let approved = |known: &Escalation| {
            known.account == signal.account && known.status == EscalationStatus::Approved && known.is_open(now)
        };
        self.retire(approved, EscalationStatus::Revoked, Some(Revocation { at: now, cause }))
    }

    /// Ends everything open of an account: its approvals are revoked, its requests are moot.
    pub(super) fn close_account(&mut self, account: &str, revocation: &Revocation) -> Vec<Escalation> {
        let open = |known: &Escalation| known.account == account && known.is_open(revocation.at);
        self.retire(open, EscalationStatus::Revoked, Some(revocation.clone()))
    }

    /// Removes and returns what is over by time.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Escalation> {
        self.retire(|known| now >= known.expires, EscalationStatus::Expired, None)
    }

    fn retire(
        &mut self,
        which: impl Fn(&Escalation) -> bool,
        status: EscalationStatus,
        revoked: Option<Revocation>,
    ) -> Vec<Escalation> {
        let mut retired: Vec<_> = self.open.extract_if(.., |known| which(known)).collect();
        for known in &mut retired {
            known.status = status;
            known.revoked.clone_from(&revoked);
        }
        self.ended.extend_from_slice(&retired);
        keep_latest(&mut self.ended);
        retired
    }

    /// The open escalations of an account, oldest first.
    pub fn open<'a>(&'a self, account: &str, now: Timestamp) -> impl Iterator<Item = &'a Escalation> + use<'a> {
        let account = account.to_owned();
        self.open.iter().filter(move |known| known.account == account && known.is_open(now))
    }

    /// The open escalations of every account, oldest first.
    pub fn all(&self, now: Timestamp) -> impl Iterator<Item = &Escalation> {
        self.open.iter().filter(move |known| known.is_open(now))
    }

    /// The approvals of exactly this question that hold under the policy set in force.
    pub fn approved<'a>(
        &'a self,
        account: &str,
        target: &'a Target,
        policy_digest: &'a str,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Escalation> + use<'a> {
        self.open(account, now).filter(move |known| known.target == *target && known.holds(policy_digest, now))
    }

    /// The latest that ended.
    pub fn ended(&self) -> &[Escalation] {
        &self.ended
    }

    /// An escalation by its id, open or ended.
    pub fn get(&self, id: &str) -> Option<&Escalation> {
        self.open.iter().chain(&self.ended).find(|known| known.id == id)
    }

    /// When the next request, approval or denial ends, or has ended and is not removed yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.open.iter().map(|known| known.expires).min()
    }

    /// Moves every end by a step of the wall clock, so that lifetimes keep their length.
    pub fn shift(&mut self, by: SignedDuration) {
        for known in &mut self.open {
            known.expires = shifted(known.expires, by);
        }
    }
}
