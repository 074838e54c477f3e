//! One line of the log: what was decided, changed, cut or lost, with all its inputs by value.
//!
//! The daemon makes a [`Record`] from plain structs (`Decision::from_event` for the kernel's events) and writes
//! [`Record::to_line`]. [`Record::from_line`] reads it back. docs/records.md explains every member.

mod account;
mod decision;
mod event;
mod id;
mod ledger;
mod lifecycle;
mod line;
mod ocsf;

mod process;
mod reason;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;
mod time;

pub use account::{
    Approver, Caller, Change, Cut, Endpoint, Escalation, EscalationState, Grant, GrantState, LoginUid, Reach,
};
pub use account::{Loss, SignalRecord, SignalState, StanceState};
pub use decision::{
    AlreadyOpen, AskedBy, Decision, Destination, EffectiveMode, GrantRef, Kernel, PolicyRef, Request, SignalRef,
    Verdict, Would,
};
pub use event::{Context, alike, errno_name, identified_by};
pub use id::{BootTag, IdSource, record_id, time_of_id};
pub use ledger::{Ledger, WrittenOff};
pub use lifecycle::Lifecycle;
pub use line::{Checked, Envelope, Head, HeadHost, HeadKernel, MAX_LINE, ParseError, kind_of_line};

pub use ocsf::{Place, to_ocsf};
pub use process::{Cgroup, Parent, Process, device_name};
pub use reason::REASON_CODES;
pub use time::Time;

/// Version of the members below; raised when a reader of the previous one would misread a record.
pub const SCHEMA: u32 = 1;

use serde::{Deserialize, Serialize};

/// The host a record was made on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Host {
    /// The machine id.
    pub id: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// One record: the envelope every record has, and what its `type` says.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// Unique, and ordered by time (see [`record_id`]).
    pub id: String,
    /// Wall-clock time of what is recorded.
    pub time: Time,
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Where it happened.
    pub host: Host,
    /// Version of the agent.
    pub agent_version: String,
    /// What happened.
    pub body: Body,
    /// Members that were shortened to fit the line, e.g. `signals[].source`.
    pub truncated: Vec<String>,
}

/// What a record is about; the variant is the record's `type`.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// An attempt judged and enforced.
    Decision(Box<Decision>),
    /// An attempt judged and let through whatever the verdict (observe mode).
    Observation(Box<Decision>),
    /// A stance changed.
    Change(Box<Change>),
    /// A live session was ended.
    Cut(Box<Cut>),
    /// A denied attempt that waits for a person, and what became of it.
    Escalation(Box<Escalation>),
    /// Just-in-time permission: made, ended.
    Grant(Box<Grant>),
    /// A counted gap.
    Loss(Box<Loss>),
    /// The agent's own life, and what it was told.
    Lifecycle(Box<Lifecycle>),
}

impl Body {
    /// Every `type`.
    pub const TYPES: [&'static str; 8] =
        ["decision", "observation", "change", "cut", "escalation", "grant", "loss", "lifecycle"];

    /// The record's `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Decision(_) => "decision",
            Self::Observation(_) => "observation",
            Self::Change(_) => "change",
            Self::Cut(_) => "cut",
            Self::Escalation(_) => "escalation",
            Self::Grant(_) => "grant",
            Self::Loss(_) => "loss",
            Self::Lifecycle(_) => "lifecycle",
        }
    }

    /// The account it is about, if it is about one.
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Decision(judged) | Self::Observation(judged) => Some(&judged.account),
            Self::Change(change) => Some(&change.account),
            Self::Cut(cut) => Some(&cut.account),
            Self::Escalation(escalation) => Some(&escalation.account),
            Self::Grant(grant) => Some(&grant.account),
            Self::Loss(loss) => loss.account.as_deref(),
            Self::Lifecycle(lifecycle) => lifecycle.account(),
        }
    }

    /// The decision or observation, if it is one.
    pub fn judged(&self) -> Option<&Decision> {
        match self {
            Self::Decision(judged) | Self::Observation(judged) => Some(judged),
            _ => None,
        }
    }
}

impl Record {
    /// A record of this agent's schema, nothing shortened.
    pub fn new(id: String, time: jiff::Timestamp, host: Host, agent_version: &str, body: Body) -> Self {
        Self {
            id,
            time: Time(time),
            schema: SCHEMA,
            host,
            agent_version: agent_version.to_owned(),
            body,
            truncated: Vec::new(),
        }
    }
}
