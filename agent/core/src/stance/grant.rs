//! Grants: just-in-time permission for an account to reach a destination, for a while, on someone's word.
//!
//! A grant ends once, by time or by revocation, and never comes back: not with the end of the signal that revoked it,
//! not with a restart, not with a clock that is set back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{GrantDestination, keep_latest, stated};
use crate::config::Config;
use crate::signal::{Approver, ApproverRefusal, Caller, Signal, after, matches_any, shifted, short_digest};

/// How many grants of one account are live at most.
pub const GRANTS_PER_ACCOUNT: usize = 256;

/// What a person asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GrantRequest {
    /// For which account.
    pub account: String,
    /// To where.
    pub destination: GrantDestination,
    /// For this executable only, by path; `None`: any.
    pub executable: Option<String>,
    /// For how long.
    pub ttl: Duration,
    /// Why.
    pub reason: String,
    /// A reference into the organisation's own system.
    pub ticket: Option<String>,
}

/// One grant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// `G-…`
    pub id: String,
    /// For which account.
    pub account: String,
    /// To where.
    pub destination: GrantDestination,
    /// For this executable only, by path; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Who made it.
    pub approver: Approver,
    /// Why.
    pub reason: String,
    /// How it ended before its time, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
}

impl Grant {
    /// Whether it still permits.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && now < self.expires
    }
}

/// How a permission ended before its time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    pub at: Timestamp,
    /// By what.
    #[serde(flatten)]
    pub cause: RevocationCause,
}

/// What ended a permission.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum RevocationCause {
    /// A person took it back.
    Person {
        /// Who.
        by: Approver,
        /// Why.
        reason: String,
    },
    /// The workload left its approved parameters: a signal that `revoke-grants-on` selects.
    Drift {
        /// The signal.
        signal: String,
        /// Its kind.
        kind: String,
    },
    /// The account was offboarded.
    Offboarded,
}

/// Why a grant was not made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum GrantRefusal {
    /// The account is not declared.
    #[error("no service account `{0}` is declared")]
    UnknownAccount(String),
    /// The account is offboarded.
    #[error("service account `{0}` is offboarded: reinstate it first")]
    Offboarded(String),
    /// The caller may not.
    #[error(transparent)]
    Approver(#[from] ApproverRefusal),
    /// The destination is not declared.
    #[error("no destination `{0}` is declared: name one, or write ADDRESS[/LEN]:PORT[/PROTOCOL]")]
    UnknownDestination(String),
    /// The executable is not a path.
    #[error("`{0}` is not an absolute path")]
    Executable(String),
    /// The time to live is zero.
    #[error("the time to live is zero")]
    NoTtl,
    /// The time to live is above the configured maximum.
    #[error("the time to live exceeds `grant-max-ttl` ({} s)", .0.as_secs())]
    TtlTooLong(Duration),
    /// No reason.
    #[error("a grant needs a reason")]
    NoReason,
    /// The account has as many as it can.
    #[error("the account has {GRANTS_PER_ACCOUNT} live grants already: revoke some")]
    TooMany,
}

/// Why a grant was not revoked.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RevokeRefusal {
    /// There is none.
    #[error("no grant `{0}`")]
    Unknown(String),
    /// It has ended already.
    #[error("grant `{0}` has ended already")]
    Ended(String),
    /// The caller may not.
    #[error(transparent)]
    Approver(#[from] ApproverRefusal),
}

/// The grants of every account.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GrantStore {
    /// Oldest first.
    #[serde(default)]
    live: Vec<Grant>,
    /// The latest that ended, in the order they did.
    #[serde(default)]
    ended: Vec<Grant>,
    /// How many were ever made, so that ids differ.
    #[serde(default)]
    made: u64,
}

impl GrantStore {
    /// Makes a grant. That the account is not offboarded is for the caller to have checked (`LiveState` does).
    pub(super) fn create(
        &mut self,
        request: &GrantRequest,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Grant, GrantRefusal> {
        // First: who may not learns no account's name.
        caller.may_approve(&config.agent.approvers, Some(&request.account))?;
        if !config.accounts.contains_key(&request.account) {
            return Err(GrantRefusal::UnknownAccount(request.account.clone()));
        }
        if let GrantDestination::Named(name) = &request.destination
            && !config.destinations.contains_key(name)
        {
            return Err(GrantRefusal::UnknownDestination(name.clone()));
        }
        if let Some(path) = request.executable.as_ref().filter(|path| !path.starts_with('/')) {
            return Err(GrantRefusal::Executable(path.clone()));
        }
        if request.ttl.is_zero() {
            return Err(GrantRefusal::NoTtl);
        }
        if request.ttl > config.agent.grant_max_ttl {
            return Err(GrantRefusal::TtlTooLong(config.agent.grant_max_ttl));
        }
        let reason = stated(&request.reason).ok_or(GrantRefusal::NoReason)?;
        if self.live(&request.account, now).count() >= GRANTS_PER_ACCOUNT {
            return Err(GrantRefusal::TooMany);
        }
        self.made += 1;
        let grant = Grant {
            id: format!(
                "G-{}",
                short_digest(6, &format!("{} {} {} {now}", self.made, request.account, request.destination))
            ),
            account: request.account.clone(),
            destination: request.destination.clone(),
            executable: request.executable.clone(),
            created: now,
            expires: after(now, request.ttl),
            approver: caller.approver(request.ticket.clone()),
            reason,
            revoked: None,
        };
        self.live.push(grant.clone());
        Ok(grant)
    }

    /// Takes a grant back. Approvers and operators may; that it is one's own does not matter, since it only closes.
    pub(super) fn revoke(
        &mut self,
        id: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Grant, RevokeRefusal> {
        if !caller.named_in(&config.agent.approvers) && !caller.is_operator(&config.agent.operators) {
            return Err(ApproverRefusal::NotAnApprover.into());
        }
        let reason = stated(reason).unwrap_or_default();
        let cause = RevocationCause::Person { by: caller.approver(None), reason };
        let revocation = Revocation { at: now, cause };
        match self.end(|grant| grant.id == id && grant.is_live(now), &revocation).pop() {
            Some(grant) => Ok(grant),
            None if self.get(id).is_some() => Err(RevokeRefusal::Ended(id.to_owned())),
            None => Err(RevokeRefusal::Unknown(id.to_owned())),
        }
    }

    /// Ends the grants of the signal's account for good, if the patterns select its kind.
    pub fn on_signal(&mut self, signal: &Signal, patterns: &[String], now: Timestamp) -> Vec<Grant> {
        if !matches_any(patterns, &signal.kind) {
            return Vec::new();
        }
        let cause = RevocationCause::Drift { signal: signal.id.clone(), kind: signal.kind.clone() };
        self.revoke_account(&signal.account, &Revocation { at: now, cause })
    }

    /// Ends all grants of an account for good.
    pub(super) fn revoke_account(&mut self, account: &str, revocation: &Revocation) -> Vec<Grant> {
        self.end(|grant| grant.account == account && grant.is_live(revocation.at), revocation)
    }

    fn end(&mut self, which: impl Fn(&Grant) -> bool, revocation: &Revocation) -> Vec<Grant> {
        let mut revoked: Vec<_> = self.live.extract_if(.., |grant| which(grant)).collect();
        for grant in &mut revoked {
            grant.revoked = Some(revocation.clone());
        }
        self.bury(&revoked);
        revoked
    }

    /// Removes and returns what has ended by time.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Grant> {
        let expired: Vec<_> = self.live.extract_if(.., |grant| now >= grant.expires).collect();
        self.bury(&expired);
        expired
    }

    fn bury(&mut self, grants: &[Grant]) {
        self.ended.extend_from_slice(grants);
        keep_latest(&mut self.ended);
    }

    /// The live grants of an account, oldest first.
    pub fn live<'a>(&'a self, account: &str, now: Timestamp) -> impl Iterator<Item = &'a Grant> + use<'a> {
        let account = account.to_owned();
        self.live.iter().filter(move |grant| grant.account == account && grant.is_live(now))
    }

    /// The live grants of every account, oldest first.
    pub fn all(&self, now: Timestamp) -> impl Iterator<Item = &Grant> {
        self.live.iter().filter(move |grant| grant.is_live(now))
    }

    /// The latest grants that ended.
    pub fn ended(&self) -> &[Grant] {
        &self.ended
    }

    /// A grant by its id, live or ended.
    pub fn get(&self, id: &str) -> Option<&Grant> {
        self.live.iter().chain(&self.ended).find(|grant| grant.id == id)
    }

    /// When the next grant ends, or has ended and is not removed yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.live.iter().map(|grant| grant.expires).min()
    }

    /// Moves the ends of live grants by a step of the wall clock, so that lifetimes keep their length.
    pub fn shift(&mut self, by: SignedDuration) {
        for grant in &mut self.live {
            grant.expires = shifted(grant.expires, by);
        }
    }
}
