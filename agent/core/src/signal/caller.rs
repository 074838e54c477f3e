//! Who speaks to writ: a caller as the host knows it, and how its name is kept with what it said.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The peer of one request, as its credentials, its login and its views say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// Effective uid.
    pub uid: u32,
    /// Login uid; `None` where nobody logged in.
    pub loginuid: Option<u32>,
    /// User name of `uid`, if it has one.
    pub name: Option<String>,
    /// Names of its groups.
    pub groups: Vec<String>,
    /// Every service account that any view of the caller is: uid, login uid, cgroup, executable, lineage of executables.
    pub accounts: Vec<String>,
    /// Service accounts whose uid an ancestor of the caller has, or was started with: sudo launders nobody. Enough to be
    /// refused for, and not enough to speak for them or to be told of them.
    pub origins: Vec<String>,
    /// Whether it is a transmitter of security events: `name` is its issuer then, and nobody on this host.
    pub transmitter: bool,
}

/// What stands in the place of a uid for somebody who has none: no user can have it.
pub const NO_UID: u32 = u32::MAX;

/// What `from` of a signal's kind writes before the issuer of a transmitter.
pub const TRANSMITTER: &str = "ssf:";

impl Caller {
    /// writ itself, speaking through one of its own detectors.
    pub fn detector(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::default() }
    }

    /// A transmitter of security events, by its issuer: no user, no group and no operator, whatever it is called.
    pub fn transmitter(issuer: &str) -> Self {
        Self { uid: NO_UID, name: Some(issuer.to_owned()), transmitter: true, ..Self::default() }
    }

    /// Whether any view of the caller is this account.
    pub fn is(&self, account: &str) -> bool {
        self.accounts.iter().any(|own| own == account)
    }

    /// Whether the caller is this account, or descends from it.
    pub fn stems_from(&self, account: &str) -> bool {
        self.is(account) || self.origins.iter().any(|own| own == account)
    }

    /// Whether it is, or descends from, any service account.
    pub fn is_workload(&self) -> bool {
        !(self.accounts.is_empty() && self.origins.is_empty())
    }

    /// Whether it is root, and a workload that reached uid 0 is not: it is the workload, not an administrator.
    pub fn is_root(&self) -> bool {
        self.uid == 0 && !self.is_workload()
    }

    /// Whether a list of user names and `%group`s names the caller. `root` means uid 0, under whatever name. A transmitter is
    /// named by `ssf:ISSUER` alone.
    pub fn named_in(&self, list: &[String]) -> bool {
        if self.transmitter {
            let own = |entry: &String| entry.strip_prefix(TRANSMITTER) == self.name.as_deref();
            return list.iter().any(own);
        }
        list.iter().any(|entry| match entry.strip_prefix('%') {
            Some(group) => self.groups.iter().any(|own| own == group),
            None if entry == "root" => self.uid == 0,
            None => self.name.as_deref() == Some(entry),
        })
    }

    /// Whether the caller may send any signal and reload. Root counts only where it is no workload, whether or not it is
    /// named.
    pub fn is_operator(&self, operators: &[String]) -> bool {
        match self.uid {
            _ if self.transmitter => false,
            0 => self.is_root(),
            _ => self.named_in(operators),
        }
    }

    /// Whether the caller may approve, grant, offboard or break glass for `subject` (`None`: for every account).
    ///
    /// The configured list decides alone (root is in it by default), and the subject is never its own approver. A
    /// workload that reached uid 0 approves nothing, or two accounts could approve each other.
    pub fn may_approve(&self, approvers: &[String], subject: Option<&str>) -> Result<(), ApproverRefusal> {
        let is_subject = subject.map_or(self.is_workload(), |account| self.stems_from(account));
        if is_subject {
            return Err(ApproverRefusal::Subject);
        }
        if self.is_approver(approvers) { Ok(()) } else { Err(ApproverRefusal::NotAnApprover) }
    }

    /// Whether the caller approves for anybody at all: who does not is told nothing of what there is to approve.
    pub fn is_approver(&self, approvers: &[String]) -> bool {
        let root_workload = self.uid == 0 && self.is_workload();
        !root_workload && !self.transmitter && self.named_in(approvers)
    }

    /// The caller as the source of a signal.
    pub fn source(&self) -> Source {
        Source { uid: self.uid, name: self.name.clone(), loginuid: self.loginuid }
    }

    /// The caller as an approver.
    pub fn approver(&self, ticket: Option<String>) -> Approver {
        Approver { uid: self.uid, loginuid: self.loginuid, name: self.name.clone(), ticket }
    }
}

/// Why a caller may not approve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApproverRefusal {
    /// It is not in `approvers`.
    #[error("the caller is not in `approvers`")]
    NotAnApprover,
    /// A view of it is the account in question, or it descends from it.
    #[error("the caller is the service account itself, or was started by it: someone else has to approve")]
    Subject,
}

/// Who sent a signal. Two sources are the same if uid and name are; the login is evidence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Effective uid.
    pub uid: u32,
    /// User name, or the detector's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Login uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loginuid: Option<u32>,
}

impl Source {
    /// Whether both are one sender.
    pub fn same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.name == other.name
    }
}

/// A login uid as records write it. Earlier versions kept none where there was none.
mod attributed {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::record::LoginUid;

    pub(super) fn serialize<S: Serializer>(loginuid: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
        loginuid.map_or(LoginUid::Unattributed, LoginUid::Uid).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
        Ok(match Option::<LoginUid>::deserialize(deserializer)? {
            Some(LoginUid::Uid(uid)) => Some(uid),
            Some(LoginUid::Unattributed) | None => None,
        })
    }
}

/// Who approved, granted, offboarded or broke glass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Approver {
    /// Effective uid.
    pub uid: u32,
    /// Login uid; without one the approval is `"unattributed"`.
    #[serde(default, with = "attributed")]
    pub loginuid: Option<u32>,
    /// User name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A reference into the organisation's own system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}
