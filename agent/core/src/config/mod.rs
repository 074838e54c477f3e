//! Configuration: TOML text in, final types and all findings at once out.
//!
//! [`parse`] takes every file by its name below the configuration directory; [`role`] says which names mean anything.
//! Files are read table by table ([`section`]), values by small parsers that do not know where they stand ([`value`],
//! [`network`], [`errno`]), and what only all files together show is checked last ([`whole`]).

mod account;
mod agent;
mod destination;
mod draft;
mod errno;
mod fault;
mod https;
mod model;
mod network;
mod role;
mod section;
mod signal;
mod sink;
mod ssf;
mod value;
mod whole;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub use agent::COVERAGE;
pub use destination::{HOST_RESOLVERS, LOOPBACK};
pub use errno::{EACCES, errno_name};
pub use fault::Fault;
pub(crate) use fault::{distance, nearest};
pub use model::*;
pub use network::judged_as;
pub use role::{DIRECTORIES, Role, role};
pub use signal::CREDENTIAL_ROTATED;
pub use value::{duration, size};
pub use whole::MAX_ACCOUNTS;

use crate::diagnostic::{Diagnostic, Severity};
use draft::Draft;

/// What a configuration refers to on the host, as the caller found it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostFacts {
    /// Addresses of the resolvers: `Destination::"host-resolvers"`.
    pub resolvers: Vec<IpAddr>,
    /// Names of the time zones that the host knows; `None`: a configured zone is taken on trust.
    pub time_zones: Option<BTreeSet<String>>,
}

/// What became of a configuration.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The configuration, if no finding is an error.
    pub config: Option<Config>,
    /// What there is of it otherwise.
    pub refused: Option<Refused>,
    /// Every finding, by file and place.
    pub diagnostics: Vec<Diagnostic>,
}

/// A configuration with errors: to find more of them in, and for nothing else.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What could be read.
    pub config: Config,
    /// Roles of files that could not be: what they declare is not known.
    pub unread: BTreeSet<Role>,
}

/// Parses a whole configuration directory.
///
/// Names are relative to the directory, with `/`. A missing `writ.toml` means defaults; names without a [`role`] are
/// left out. Policies and schemas are handed on as they are.
pub fn parse(files: &[SourceFile], facts: &HostFacts) -> Parsed {
    let mut files: Vec<&SourceFile> = files.iter().collect();
    files.sort_by(|left, right| left.name.cmp(&right.name));
    let mut draft = Draft::default();
    for file in files {
        draft.read(file, facts);
    }
    let unread = draft.broken.clone();
    let (config, mut diagnostics) = whole::finish(draft, facts);
    diagnostics.sort_by(|left, right| place(left).cmp(&place(right)));
    if diagnostics.iter().any(|finding| finding.severity == Severity::Error) {
        return Parsed { config: None, refused: Some(Refused { config, unread }), diagnostics };
    }
    Parsed { config: Some(config), refused: None, diagnostics }
}

fn place(finding: &Diagnostic) -> Option<(&str, usize)> {
    finding.at.as_ref().map(|at| (at.file.as_str(), at.offset))
}
