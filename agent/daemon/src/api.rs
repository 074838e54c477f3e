//! The API's requests and answers, shared by the daemon and the command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An answer that is an error: `{"error": {"code", "message", "hint"}}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What went wrong.
    pub error: Problem,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// Stable name of the kind of problem, kebab-case.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Findings, where a configuration was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<serde_json::Value>,
}

/// `GET /v1/signals?account=NAME`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SignalsQuery {
    /// Only signals about this account.
    pub account: Option<String>,
}

/// `POST /v1/signals`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalBody {
    /// The account it is about.
    pub account: String,
    /// Its kind.
    pub kind: String,
    /// The sender's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Risk contribution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<u8>,
    /// Time to live, as configuration writes durations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// When it was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<jiff::Timestamp>,
}

/// A reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReasonBody {
    /// Why.
    pub reason: String,
}

/// `POST /v1/grants/{id}/revoke`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RevokeBody {
    /// Why.
    pub reason: String,
}

impl Default for RevokeBody {
    fn default() -> Self {
        Self { reason: "revoked by hand".to_owned() }
    }
}

/// `POST /v1/grants`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantBody {
    /// For which account.
    pub account: String,
    /// A destination's name, or `ADDRESS[/LEN]:PORT[/PROTOCOL]`.
    pub to: String,
    /// For how long.
    pub ttl: String,
    /// Why.
    pub reason: String,
    /// For this executable only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// A reference into the organisation's own system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// `POST /v1/escalations/ID/approve`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApproveBody {
    /// For how long.
    pub ttl: String,
    /// Why.
    pub reason: String,
    /// A reference into the organisation's own system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// `POST /v1/break-glass`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BreakGlassBody {
    /// For which account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// For every account: said in so many words, so that a name left out is not taken for it.
    #[serde(default)]
    pub all: bool,
    /// For how long.
    pub ttl: String,
    /// Why.
    pub reason: String,
}

/// `POST /v1/simulate`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SimulateBody {
    /// Which account.
    pub account: String,
    /// The address.
    pub address: std::net::IpAddr,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The executable, by path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Risk instead of the account's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<u8>,
    /// The moment instead of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<jiff::Timestamp>,
    /// Whether the destination is new to the account, instead of what its baseline says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<bool>,
}

/// What a simulation says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Simulated {
    /// `allow`, `deny` or `escalate`.
    pub verdict: String,
    /// The verdict with observe-mode policies counted in.
    pub would: String,
    /// The mode in force for the account.
    pub effective_mode: String,
    /// `policy` or `policy-error`.
    pub reason_code: String,
    /// The determining policies.
    pub policies: Vec<writ_core::record::PolicyRef>,
    /// The groups the destination is in.
    pub groups: Vec<String>,
    /// Whether live state was used.
    pub live: bool,
}

/// `POST /v1/reload`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    /// Digest before.
    pub before: String,
    /// Digest after.
    pub after: String,
    /// The generation in force.
    pub generation: u32,
    /// Accounts that were declared before and are no more.
    #[serde(default)]
    pub undeclared: Vec<String>,
    /// Warnings.
    pub warnings: Vec<serde_json::Value>,
}

/// `GET /v1/why`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WhyAnswer {
    /// The accounts the caller is; empty for somebody who is none.
    pub accounts: Vec<WhyAccount>,
}

/// What one account was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WhyAccount {
    /// The account.
    pub account: String,
    /// Whom to ask.
    pub owner: Option<String>,
    /// Whether everything is refused.
    pub offboarded: bool,
    /// Its latest denials, newest first.
    pub denials: Vec<Denial>,
}

/// One refusal, repeats folded.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Denial {
    /// The latest record of it.
    pub record: String,
    /// When, latest.
    pub time: jiff::Timestamp,
    /// How often.
    pub count: u64,
    /// `deny` or `escalate`.
    pub verdict: String,
    /// `ADDRESS:PORT/PROTOCOL`, or the action.
    pub to: String,
    /// The executable.
    pub executable: Option<String>,
    /// Why, in a word (docs/records.md).
    pub reason_code: String,
    /// The error the process saw.
    pub errno: Option<String>,
    /// The policies that refused; empty where nothing permits.
    pub policies: Vec<writ_core::record::PolicyRef>,
    /// The escalation it opened, where it stands, and until when.
    pub escalation: Option<OpenEscalation>,
    /// What to do next.
    pub next: String,
}

/// An escalation as the account it is about sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct OpenEscalation {
    /// Its id.
    pub id: String,
    /// `pending`, `approved` or `denied`.
    pub status: writ_core::stance::EscalationStatus,
    /// When that ends.
    pub expires: jiff::Timestamp,
}

/// Reads a duration as configuration writes it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    writ_core::config::duration(text).map_err(|fault| match fault.help {
        Some(help) => format!("{}: {help}", fault.message),
        None => fault.message,
    })
}
