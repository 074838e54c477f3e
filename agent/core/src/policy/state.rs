//! An account's state: everything a policy can ask that is not known only at the connect itself.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What holds for an account while one stance is in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AccountState {
    /// Risk, 0–100.
    pub risk: u8,
    /// Flags of live signals: `context.signals`.
    pub signals: BTreeSet<String>,
    /// Kinds that are fresh: `context.fresh`.
    pub fresh: BTreeSet<String>,
    /// Approved escalations: which policies a person approved for which executable and endpoint.
    pub approvals: Vec<Approval>,
    /// The moment judged: `now`, `hour`, `minute`, `weekday`.
    pub now: Timestamp,
}

/// One approved escalation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Approval {
    /// Ids of the escalating policies that were approved.
    pub policies: BTreeSet<String>,
    /// The executable, by path; `None`: any.
    pub executable: Option<String>,
    /// The address approved.
    pub address: std::net::IpAddr,
    /// The port approved.
    pub port: u16,
    /// The protocol approved, by name.
    pub protocol: String,
}
