//! Break-glass: for an emergency, verdicts are only observed; loud, attributed, and over by itself.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::stated;
use crate::config::Config;
use crate::signal::{Approver, ApproverRefusal, Caller, after, shifted};

/// What a person asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BreakGlassRequest {
    /// For which account; `None`: for all.
    pub account: Option<String>,
    /// For how long.
    pub ttl: Duration,
    /// Why.
    pub reason: String,
}

/// One emergency.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BreakGlass {
    /// For which account; `None`: for all.
    pub account: Option<String>,
    /// When it ends.
    pub until: Timestamp,
    /// Who broke it.
    pub by: Approver,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Why the glass stays whole.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BreakGlassRefusal {
    /// The account is not declared.
    #[error("no service account `{0}` is declared")]
    UnknownAccount(String),
    /// Offboarding is never observed away.
    #[error("service account `{0}` is offboarded: break-glass does not reach it")]
    Offboarded(String),
    /// The time to live is zero, or above the configured maximum.
    #[error("the time to live must be above zero and at most `grant-max-ttl` ({} s)", .0.as_secs())]
    Ttl(Duration),
    /// No reason.
    #[error("a reason is needed")]
    NoReason,
    /// The caller may not.
    #[error(transparent)]
    Approver(#[from] ApproverRefusal),
}

/// What glass is broken: one entry per account, and one for all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BreakGlassStore {
    #[serde(default)]
    broken: Vec<BreakGlass>,
}

impl BreakGlassStore {
    /// Breaks it; an earlier entry for the same account, or for all, is replaced.
    pub(super) fn begin(
        &mut self,
        request: &BreakGlassRequest,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<BreakGlass, BreakGlassRefusal> {
        // First: who may not learns no account's name.
        caller.may_approve(&config.agent.approvers, request.account.as_deref())?;
        if let Some(account) = request.account.as_ref().filter(|account| !config.accounts.contains_key(*account)) {
            return Err(BreakGlassRefusal::UnknownAccount(account.clone()));
        }
        if request.ttl.is_zero() || request.ttl > config.agent.grant_max_ttl {
            return Err(BreakGlassRefusal::Ttl(config.agent.grant_max_ttl));
        }
        let entry = BreakGlass {
            account: request.account.clone(),
            until: after(now, request.ttl),
            by: caller.approver(None),
            reason: stated(&request.reason).ok_or(BreakGlassRefusal::NoReason)?,
            at: now,
        };
        self.broken.retain(|other| other.account != entry.account);
        self.broken.push(entry.clone());
        Ok(entry)
    }

    /// Removes and returns what is over.
    pub fn expire(&mut self, now: Timestamp) -> Vec<BreakGlass> {
        self.broken.extract_if(.., |entry| now >= entry.until).collect()
    }

    /// Until when the account's verdicts are only observed, if they are now.
    pub fn until(&self, account: &str, now: Timestamp) -> Option<Timestamp> {
        let reaches = |entry: &&BreakGlass| entry.account.as_deref().is_none_or(|only| only == account);
        self.all(now).filter(reaches).map(|entry| entry.until).max()
    }

    /// What is broken now.
    pub fn all(&self, now: Timestamp) -> impl Iterator<Item = &BreakGlass> {
        self.broken.iter().filter(move |entry| now < entry.until)
    }

    /// When the next entry is over, or since when it is and is not removed yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.broken.iter().map(|entry| entry.until).min()
    }

    /// Moves every end by a step of the wall clock, so that lifetimes keep their length.
    pub fn shift(&mut self, by: SignedDuration) {
        for entry in &mut self.broken {
            entry.until = shifted(entry.until, by);
        }
    }
}
