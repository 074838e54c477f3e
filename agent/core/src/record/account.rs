//! Records about an account's state and the people who change it: change, cut, escalation, grant, signal, loss.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{EffectiveMode, PolicyRef, Time};

/// An audit login uid; unset means that no person can be named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoginUid {
    /// The uid that logged in.
    Uid(u32),
    /// Nobody logged in; written as `"unattributed"`.
    Unattributed,
}

impl LoginUid {
    /// From the kernel's value, where `u32::MAX` is "unset".
    pub const fn from_kernel(loginuid: u32) -> Self {
        if loginuid == u32::MAX { Self::Unattributed } else { Self::Uid(loginuid) }
    }
}

impl Serialize for LoginUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uid(uid) => serializer.serialize_u32(*uid),
            Self::Unattributed => serializer.serialize_str("unattributed"),
        }
    }
}

impl<'de> Deserialize<'de> for LoginUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        enum Word {
            #[serde(rename = "unattributed")]
            Unattributed,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Uid(u32),
            Word(Word),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Uid(uid) => Self::Uid(uid),
            Form::Word(Word::Unattributed) => Self::Unattributed,
        })
    }
}

#[cfg(test)]
impl schemars::JsonSchema for LoginUid {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "LoginUid".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0 }, { "const": "unattributed" }] })
    }
}

/// Who approved something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Approver {
    /// The caller's uid.
    pub uid: u32,
    /// The person behind it.
    pub loginuid: LoginUid,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A ticket's number, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Who asked for something over the API.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Caller {
    /// The caller's uid.
    pub uid: u32,
    /// The person behind it.
    pub loginuid: LoginUid,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The calling process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
}

/// What holds for an account under one stance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StanceState {
    /// Digest of the stance.
    pub stance_digest: String,
    /// Risk.
    pub risk: u8,
    /// Flags of live signals.
    pub signals: Vec<String>,
    /// Fresh kinds.
    pub fresh: Vec<String>,
    /// Ids of live grants.
    pub grants: Vec<String>,
    /// Ids of escalating policies that are approved for something.
    pub approvals: Vec<String>,
    /// Whether the account is offboarded.
    pub offboarded: bool,
    /// The mode in force.
    pub mode: EffectiveMode,
    /// When the kernel moves to the fallback by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Time>,
}

/// A part of what can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reach {
    /// `connect` or `open-socket`.
    pub action: String,
    /// A declared destination that some policy names; absent: none of them has these addresses and ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Prefixes, where it is not every address of the destination; what a longer prefix of another treatment names is not
    /// meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports and ranges, where it is not every port of the destination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// `tcp`, `udp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
    /// Paths, `unlisted` for every other; absent: any executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executables: Option<Vec<String>>,
    /// Only addresses that are new to the account, or only those that are not; absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<bool>,
    /// Some combinations of what is named, not all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub part: bool,
    /// The socket family, of `open-socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
}

impl Reach {
    /// Everything of an action.
    pub fn of(action: &str) -> Self {
        Self { action: action.to_owned(), ..Self::default() }
    }
}

/// A stance changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Change {
    /// The account.
    pub account: String,
    /// What kind of thing caused it: `signal`, `signal-expired`, `signal-cleared`, `grant`, `grant-expired`,
    /// `grant-revoked`, `approval`, `time`, `clock-set`, `policy`, `offboard`, `reinstate`, `break-glass`,
    /// `break-glass-ended`, `start`.
    pub cause: String,
    /// Id of the signal, grant or escalation that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause_id: Option<String>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked for it, where a person or program did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Caller>,
    /// Before; null for the first stance of an account.
    pub before: Option<StanceState>,
    /// After.
    pub after: StanceState,
    /// What can be reached that could not.
    #[serde(default)]
    pub opened: Vec<Reach>,
    /// What could be reached and cannot any more.
    #[serde(default)]
    pub closed: Vec<Reach>,
    /// Digest of the policy set.
    pub policy_digest: String,
    /// Generation of the tables.
    pub generation: u32,
    /// Whether the fallback was put in force first, because the exact row was not ready.
    pub fallback_first: bool,
    /// Until it was in the kernel, in microseconds: from when the first bytes of the request that asked for it were read; if none
    /// did, from when the daemon came to it.
    pub applied_us: u64,
}

/// An address and port, where no more is known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A live session was ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cut {
    /// The account.
    pub account: String,
    /// The remote end.
    pub destination: Endpoint,
    /// The local end, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Endpoint>,
    /// Cookie of the socket.
    pub socket_cookie: u64,
    /// The process that opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How: `sock-destroy`, `egress` (the next packet was refused and a reset sent), `gone` (it had closed by itself).
    pub method: String,
    /// Id of the change that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Id of the decision that had opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// In words.
    pub reason: String,
    /// Digest of the stance that no longer allows it.
    pub stance_digest: String,
    /// The policies that now refuse it.
    pub policies: Vec<PolicyRef>,
    /// From cause to cut, in microseconds.
    pub took_us: u64,
}

/// Where an escalation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EscalationState {
    /// Waits for a person.
    Opened,
    /// Approved.
    Approved,
    /// Denied.
    Denied,
    /// Nobody answered in time.
    Expired,
}

/// A denied attempt that waits for a person, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Escalation {
    /// Its id.
    pub escalation: String,
    /// Where it stands.
    pub state: EscalationState,
    /// The account.
    pub account: String,
    /// Where the attempt was going, if it was a connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Endpoint>,
    /// The executable that made it.
    pub executable: Option<String>,
    /// The action that was asked about, as Cedar writes it, if it was an action of the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Its resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The escalating policies.
    pub policies: Vec<PolicyRef>,
    /// Id of the decision that opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver: Option<Approver>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Until when it waits, or, once approved, holds.
    pub expires: Time,
}

/// Where a grant stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// Made.
    Created,
    /// Ran out.
    Expired,
    /// Ended early.
    Revoked,
}

/// Just-in-time permission: made, ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Grant {
    /// Its id.
    pub grant: String,
    /// Where it stands.
    pub state: GrantState,
    /// The account.
    pub account: String,
    /// The destination as it was asked for.
    pub destination: String,
    /// When it ends or ended.
    pub expires: Time,
    /// Who approved it.
    pub approver: Approver,
    /// Why it was made.
    pub reason: String,
    /// Why it ended early, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_because: Option<String>,
    /// Who ended it, where a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<Caller>,
    /// Id of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// Where a signal stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SignalState {
    /// Received and in force.
    Received,
    /// Cleared by someone.
    Cleared,
    /// Its time to live ended.
    Expired,
}

/// A statement about an account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SignalRecord {
    /// Its id.
    pub signal: String,
    /// Where it stands.
    pub state: SignalState,
    /// The account.
    pub account: String,
    /// Its kind.
    pub kind: String,
    /// What it adds to the risk.
    pub risk: u8,
    /// When it ends.
    pub expires: Time,
    /// Who said so: a user, `set:ISSUER`, `workload`.
    pub source: String,
    /// Who sent or cleared it, where that was a local caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Caller>,
    /// What it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Why it was cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A counted gap. `count` is exact: on one CPU it is `to_sequence - from_sequence + 1`, without the records that arrived
/// from within the range.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Loss {
    /// The CPU; null for losses without a kernel sequence.
    pub cpu: Option<u32>,
    /// First sequence number missing.
    pub from_sequence: Option<u64>,
    /// Last sequence number missing.
    pub to_sequence: Option<u64>,
    /// How many attempts have no record of their own.
    pub count: u64,
    /// `ring-full`, `budget`, `folded` (counted into another record), `write-failed`, `restart`, `process-ring-full`,
    /// or `mixed`.
    pub reason: String,
    /// Where `mixed`: how many for each reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
    /// The account, where only one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// How many of them each account lost to a full ring or its budget, by the kernel's own counts. The sums over all
    /// records are exact; of two losses close to each other, the first can name what belongs to the second.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<String, u64>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
