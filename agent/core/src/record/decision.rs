//! One attempt judged, enforced or observed: everything the verdict used.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Process, Time};
use crate::config::Mode;
use crate::policy::{PolicyInfo, WrittenRequest};

/// The judgement, by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Permitted.
    Allow,
    /// Refused now; a person may approve.
    Escalate,
    /// Refused.
    Deny,
}

impl Verdict {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Escalate => "escalate",
            Self::Deny => "deny",
        }
    }
}

impl From<writ_abi::Verdict> for Verdict {
    fn from(verdict: writ_abi::Verdict) -> Self {
        match verdict {
            writ_abi::Verdict::Allow => Self::Allow,
            writ_abi::Verdict::Escalate => Self::Escalate,
            writ_abi::Verdict::Deny => Self::Deny,
        }
    }
}

/// Whether the verdict was enforced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EffectiveMode {
    /// A refusal refused.
    Enforce,
    /// A refusal was only recorded.
    Observe,
}

impl From<Mode> for EffectiveMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::Observe => Self::Observe,
        }
    }
}

/// A decision or an observation: the members are the same, `effective_mode` and the record's `type` tell them apart.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Decision {
    /// The service account.
    pub account: String,
    /// Who answers for the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Which views of the caller led to the account (docs/records.md lists them).
    pub identified_by: Vec<String>,
    /// Other accounts the caller matched; they were judged too and were no stricter.
    pub also_matched: Vec<String>,
    /// The verdict; for an observation the one that would have been enforced.
    pub verdict: Verdict,
    /// Whether it was enforced.
    pub effective_mode: EffectiveMode,
    /// `connect`, `open-socket`, or an action of the decision point.
    pub action: String,
    /// Where the attempt was going; null where the action has no destination (`open-socket`).
    #[serde(default)]
    pub destination: Option<Destination>,
    /// The address as the caller gave it, where another one was judged (IPv4-mapped, NAT64, unspecified).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_address: Option<String>,
    /// The process that made the attempt; null for questions from other hosts.
    #[serde(default)]
    pub process: Option<Process>,
    /// Who asked, for questions from other hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<AskedBy>,
    /// The determining policies; empty when nothing permits.
    pub policies: Vec<PolicyRef>,
    /// Digest of the policy set (`archive/sha256-HEX`).
    pub policy_digest: String,
    /// Digest of the stance.
    pub stance_digest: String,
    /// The account's risk.
    pub risk: u8,
    /// The account's live signals.
    pub signals: Vec<SignalRef>,
    /// The grant that permitted it, or the approval that held for exactly this when it was let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantRef>,
    /// The Cedar request.
    pub request: Request,
    /// Where in the kernel it was decided; null for questions to the decision endpoint.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// Why (see [`super::REASON_CODES`]).
    pub reason_code: String,
    /// The errno the caller got; null if the call went on.
    pub errno: Option<String>,
    /// What would have been decided with observe-mode policies enforced, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<Would>,
    /// What a connection was found as that was open before writ judged it: nothing was attempted, nothing refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub already_open: Option<AlreadyOpen>,
    /// How many attempts the record stands for: 1, or more for repeated datagrams of one socket.
    pub count: u32,
    /// When it was decided, in nanoseconds since boot.
    pub boot_time_ns: u64,
}

/// A connection that was open before writ judged it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlreadyOpen {
    /// The near end.
    pub source: super::Endpoint,
    /// Cookie of the socket.
    pub socket_cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// `kept`: allowed; `tolerated`: refused, and left alone until the account's access is tightened; `cut`.
    pub outcome: String,
    /// Whether the kernel finds the session by its socket, so that its packets can be stopped without the daemon.
    pub tracked: bool,
}

/// A declared caller of the decision point on another host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AskedBy {
    /// Its name in the configuration.
    pub caller: String,
    /// The service account as which it asked.
    pub account: String,
    /// From where.
    pub address: String,
    /// How it was known: `certificate` or `token`.
    pub by: String,
}

/// A destination.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Destination {
    /// The address judged; IPv4 wherever it stands for IPv4.
    pub address: String,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The name the address was looked up by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The Destinations it belongs to, parents included.
    pub groups: Vec<String>,
}

/// A determining policy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyRef {
    /// Its `@id`.
    pub id: String,
    /// Its `@owner`.
    pub owner: Option<String>,
    /// Its `@reason`.
    pub reason: Option<String>,
    /// Its `@controls`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<String>,
}

impl PolicyRef {
    /// What a record says of this policy; its id alone if it is in no set any more.
    pub fn new(id: &str, policy: Option<&PolicyInfo>) -> Self {
        Self {
            id: id.to_owned(),
            owner: policy.and_then(|policy| policy.owner.clone()),
            reason: policy.and_then(|policy| policy.reason.clone()),
            controls: policy.map(|policy| policy.controls.clone()).unwrap_or_default(),
        }
    }
}

/// A live signal at the moment of the attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SignalRef {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Who sent it.
    pub source: String,
    /// What it adds to the risk.
    pub risk: u8,
    /// How old it was.
    pub age_seconds: u64,
    /// When it ends.
    pub expires: Time,
}

/// The grant an attempt used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GrantRef {
    /// Its id.
    pub id: String,
    /// Who approved it.
    pub approver: super::Approver,
    /// Why.
    pub reason: String,
    /// When it ends.
    pub expires: Time,
}

/// The Cedar request, as text that the stock `cedar` command takes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Request {
    /// E.g. `ServiceAccount::"billing"`.
    pub principal: String,
    /// E.g. `Action::"connect"`.
    pub action: String,
    /// E.g. `Endpoint::"10.20.0.5:5432/tcp"`.
    pub resource: String,
    /// The context, in Cedar's JSON form.
    pub context: Map<String, Value>,
    /// What the asker said about principal and resource, as `cedar authorize --entities` takes it (decision point only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entities: Vec<Value>,
}

impl From<WrittenRequest> for Request {
    fn from(written: WrittenRequest) -> Self {
        let WrittenRequest { principal, action, resource, context } = written;
        Self { principal, action, resource, context, entities: Vec::new() }
    }
}

/// Where in the kernel an attempt was decided.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Kernel {
    /// Generation of the tables.
    pub generation: u32,
    /// The CPU.
    pub cpu: u32,
    /// Number of the attempt on that CPU, from 1, without gaps: what is missing is in a loss record.
    pub sequence: u64,
    /// The hook.
    pub hook: String,
    /// Index of the stance.
    pub stance: u32,
    /// Epoch of the account.
    pub epoch: u32,
    /// Cookie of the socket; 0 where the hook cannot tell.
    pub socket_cookie: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
}

/// A verdict that was not enforced, and who would have decided it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Would {
    /// The verdict.
    pub verdict: Verdict,
    /// The policies that would have determined it.
    pub policies: Vec<PolicyRef>,
}
