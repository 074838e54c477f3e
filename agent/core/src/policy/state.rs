//! An account's state: everything a policy can ask that is not known only at the connect itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use writ_abi::Protocol;

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
    pub address: IpAddr,
    /// The port approved.
    pub port: u16,
    /// The protocol approved, by name.
    pub protocol: String,
}

impl AccountState {
    /// The state of an account of which nothing is known: no risk, no signals, nothing fresh, nothing approved.
    pub fn quiet(now: Timestamp) -> Self {
        Self { risk: 0, signals: BTreeSet::new(), fresh: BTreeSet::new(), approvals: Vec::new(), now }
    }

    /// Ids of the escalating policies that are approved for this executable and endpoint.
    pub(crate) fn approved(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        executable: Option<&str>,
    ) -> BTreeSet<&str> {
        self.approvals
            .iter()
            .filter(|approval| approval.address == address && approval.port == port)
            .filter(|approval| approval.protocol == protocol.name())
            .filter(|approval| approval.executable.is_none() || approval.executable.as_deref() == executable)
            .flat_map(|approval| approval.policies.iter().map(String::as_str))
            .collect()
    }
}
