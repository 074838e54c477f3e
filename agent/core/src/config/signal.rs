//! `[signal.KIND]`: what a kind of signal means and who may send it.

use std::time::Duration;

use super::fault::Fault;
use super::model::SignalKind;
use super::section::{Scalar, Section};
use super::value::sender;

use crate::diagnostic::Location;

const KEYS: [&str; 6] = ["risk", "ttl", "flag", "from", "freshness", "ends-sessions"];

/// The kind that ends earlier sessions unless it is declared not to: whoever had the old credential must show the new one.
pub const CREDENTIAL_ROTATED: &str = "credential-rotated";

/// Reads one kind of signal.
pub(super) fn read_signal(mut section: Section<'_, '_>, kind: String, at: Location) -> SignalKind {
    section.know(&KEYS);
    if section.value("ttl").is_none() {
        let fault = Fault::new("missing-ttl", format!("signal `{kind}` has no `ttl`"));
        section.refuse(at.offset..at.offset + at.length, fault.help("write how long it holds, e.g. ttl = \"1h\""));
    }
    SignalKind {
        risk: section.scalar("risk", "an integer", risk).unwrap_or(0),
        ttl: section.duration("ttl").unwrap_or(Duration::ZERO),
        flag: section.boolean("flag").unwrap_or(false),
        from: section.list("from", sender).unwrap_or_default().into_iter().map(|(name, _)| name).collect(),
        freshness: section.boolean("freshness").unwrap_or(false),
        ends_sessions: section.boolean("ends-sessions").unwrap_or(kind == CREDENTIAL_ROTATED),
        kind,
        at: Some(at),
    }
}

fn risk(value: &Scalar<'_>) -> Option<Result<u8, Fault>> {
    let Scalar::Number(number) = value else { return None };
    Some(
        u8::try_from(*number)
            .ok()
            .filter(|risk| *risk <= 100)
            .ok_or_else(|| Fault::new("bad-risk", format!("`{number}` is not a risk")).help("risk goes from 0 to 100")),
    )
}
