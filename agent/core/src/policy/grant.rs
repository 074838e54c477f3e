//! A grant as the static policy that carries it out: its own id, approver, and end.

use std::fmt::Write as _;

use ipnet::IpNet;
use jiff::Timestamp;
use writ_abi::Protocol;

use super::schema::quoted;
use crate::config::SourceFile;

/// What a grant opens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GrantTarget {
    /// A declared destination.
    Destination(String),
    /// Addresses, one port, and a protocol (`None`: any).
    Endpoint {
        /// The addresses.
        addresses: IpNet,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Option<Protocol>,
    },
}

/// Permission for one account, for a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// `G-…`
    pub id: String,
    /// The account.
    pub account: String,
    /// What is opened.
    pub target: GrantTarget,
    /// The executable it is for; `None`: any.
    pub executable: Option<String>,
    /// When it ends.
    pub expires: Timestamp,
    /// Who approved it.
    pub approver: String,
    /// Why.
    pub reason: String,
}

impl Grant {
    /// The `@id` of the grant's policy.
    pub fn policy_id(&self) -> String {
        format!("grant:{}", self.id)
    }

    /// The grant as Cedar text. It ends by itself: `now` is compared with its expiry.
    pub fn to_cedar(&self) -> String {
        let mut text = String::new();
        let approver = quoted(&self.approver);
        let _ = writeln!(text, "@id({})", quoted(&self.policy_id()));
        let _ = writeln!(text, "@grant({})", quoted(&self.id));
        let _ = writeln!(text, "@owner({approver})\n@approved_by({approver})");
        let _ = writeln!(text, "@reason({})", quoted(&self.reason));
        let mut conditions = Vec::new();
        let resource = match &self.target {
            GrantTarget::Destination(name) => format!("resource in Destination::{}", quoted(name)),
            GrantTarget::Endpoint { addresses, port, protocol } => {
                conditions.push(format!("context.ip.isInRange(ip(\"{addresses}\"))"));
                conditions.push(format!("context.port == {port}"));
                conditions.extend(protocol.map(|protocol| format!("context.protocol == \"{}\"", protocol.name())));
                "resource".to_owned()
            }
        };
        conditions.extend(self.executable.as_ref().map(|path| format!("context.executable == {}", quoted(path))));
        conditions.push(format!("context.now < datetime(\"{}\")", self.expires.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")));
        let account = quoted(&self.account);
        let _ = writeln!(
            text,
            "permit (principal == ServiceAccount::{account}, action == Action::\"connect\", {resource})\nwhen {{ {} }};",
            conditions.join(" && ")
        );
        text
    }

    /// The grant as a policy file for [`super::Bundle::granting`].
    pub fn source(&self) -> SourceFile {
        SourceFile { name: format!("grants/{}.cedar", self.id), text: self.to_cedar() }
    }
}
