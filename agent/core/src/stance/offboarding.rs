//! Offboarding: an account's access is over, on a person's word, until another word brings it back.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::stated;
use crate::config::Config;
use crate::signal::{Approver, ApproverRefusal, Caller};

/// One offboarded account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offboarded {
    /// Who did it.
    pub by: Approver,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Why an account was neither offboarded nor reinstated.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OffboardingRefusal {
    /// The account is not declared.
    #[error("no service account `{0}` is declared")]
    UnknownAccount(String),
    /// It is offboarded already.
    #[error("service account `{0}` is offboarded already")]
    Already(String),
    /// It is not offboarded.
    #[error("service account `{0}` is not offboarded")]
    NotOffboarded(String),
    /// No reason.
    #[error("a reason is needed")]
    NoReason,
    /// The caller may not.
    #[error(transparent)]
    Approver(#[from] ApproverRefusal),
}

/// The offboarded accounts. An entry outlives the account's declaration: declaring the name again brings nothing back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct OffboardingStore {
    #[serde(default)]
    accounts: BTreeMap<String, Offboarded>,
}

impl OffboardingStore {
    /// Offboards an account.
    pub(super) fn offboard(
        &mut self,
        account: &str,
        reason: &str,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Result<Offboarded, OffboardingRefusal> {
        // First: who may not learns no account's name.
        caller.may_approve(&config.agent.approvers, Some(account))?;
        if !config.accounts.contains_key(account) {
            return Err(OffboardingRefusal::UnknownAccount(account.to_owned()));
        }
        let reason = stated(reason).ok_or(OffboardingRefusal::NoReason)?;
        if self.accounts.contains_key(account) {
            return Err(OffboardingRefusal::Already(account.to_owned()));
        }
        let offboarded = Offboarded { by: caller.approver(None), reason, at: now };
        self.accounts.insert(account.to_owned(), offboarded.clone());
        Ok(offboarded)
    }

    /// Undoes an offboarding; grants and approvals that ended with it stay ended.
    pub(super) fn reinstate(
        &mut self,
        account: &str,
        reason: &str,
        caller: &Caller,
        config: &Config,
    ) -> Result<Offboarded, OffboardingRefusal> {
        caller.may_approve(&config.agent.approvers, Some(account))?;
        stated(reason).ok_or(OffboardingRefusal::NoReason)?;
        self.accounts.remove(account).ok_or_else(|| OffboardingRefusal::NotOffboarded(account.to_owned()))
    }

    /// How the account was offboarded, if it is.
    pub fn get(&self, account: &str) -> Option<&Offboarded> {
        self.accounts.get(account)
    }

    /// Every offboarded account, by name.
    pub fn all(&self) -> &BTreeMap<String, Offboarded> {
        &self.accounts
    }
}
