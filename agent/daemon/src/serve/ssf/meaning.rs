//! What an event means here: which account its subject is, and which kind of signal it is.

use serde_json::{Map, Value};
use writ_core::config::Transmitter;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";

/// The account that a subject is, as `[ssf."…".subjects]` says. Of a complex subject the narrowest member that is known
/// counts.
pub(super) fn account(subject: &Value, transmitter: &Transmitter) -> Option<String> {
    if let Some(name) = simple(subject) {
        return transmitter.subjects.get(&name).cloned();
    }
    ["application", "user", "session", "device", "group", "org_unit", "tenant"]
        .iter()
        .filter_map(|member| simple(subject.get(member)?))
        .find_map(|name| transmitter.subjects.get(&name).cloned())
}

/// A simple subject (RFC 9493) as configuration writes it.
fn simple(subject: &Value) -> Option<String> {
    let text = |name: &str| subject.get(name).and_then(Value::as_str);
    match text("format")? {
        "uri" | "account" => text("uri").map(str::to_owned),
        "opaque" => text("id").map(str::to_owned),
        "email" => text("email").map(str::to_owned),
        "iss_sub" => Some(format!("{} {}", text("iss")?, text("sub")?)),
        "did" => text("url").map(str::to_owned),
        _ => None,
    }
}

/// The kind of signal: as configured, else `caep.…`, `risc.…`, `ssf.…`; `None` for an event type that neither knows.
pub(super) fn kind(event: &str, body: &Map<String, Value>, transmitter: &Transmitter) -> Option<String> {
    if let Some(kind) = transmitter.events.get(event) {
        return Some(kind.clone());
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_ascii_lowercase);
    match event.strip_prefix(CAEP) {
        // A level is a kind: each has a risk of its own in signals.d.
        Some("risk-level-change") => return Some(format!("caep.risk-{}", text("current_level")?)),
        Some("device-compliance-change") => return Some(format!("caep.device-{}", text("current_status")?)),
        Some(name) => return Some(format!("caep.{name}")),
        None => {}
    }
    let risc = event.strip_prefix(RISC).map(|name| format!("risc.{name}"));
    risc.or_else(|| event.strip_prefix(SSF).map(|name| format!("ssf.{name}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn transmitter() -> Transmitter {
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        Transmitter {
            jwks: "/keys".into(),
            audience: "host".into(),
            subjects: pairs(&[("spiffe://td/ci", "ci"), ("https://idp bot", "bot"), ("7", "seven")]),
            events: pairs(&[("https://example.com/fork", "ci.repository-changed")]),
        }
    }

    #[test]
    fn subjects_of_every_simple_format_and_complex_ones_are_accounts() {
        let of = |subject: Value| account(&subject, &transmitter());
        assert_eq!(of(json!({"format": "uri", "uri": "spiffe://td/ci"})).as_deref(), Some("ci"));
        assert_eq!(of(json!({"format": "iss_sub", "iss": "https://idp", "sub": "bot"})).as_deref(), Some("bot"));
        assert_eq!(of(json!({"format": "opaque", "id": "7"})).as_deref(), Some("seven"));
        let complex = json!({"format": "complex", "device": {"format": "opaque", "id": "7"},
            "application": {"format": "uri", "uri": "spiffe://td/ci"}});
        assert_eq!(of(complex).as_deref(), Some("ci"));
        assert_eq!(of(json!({"format": "opaque", "id": "8"})), None);
        assert_eq!(of(json!({"format": "phone_number", "phone_number": "7"})), None);
    }

    #[test]
    fn event_types_have_kinds_of_their_own() {
        let of = |event: &str, body: Value| kind(event, body.as_object().unwrap(), &transmitter());
        assert_eq!(of(&format!("{CAEP}session-revoked"), json!({})).as_deref(), Some("caep.session-revoked"));
        let high = json!({"current_level": "HIGH"});
        assert_eq!(of(&format!("{CAEP}risk-level-change"), high).as_deref(), Some("caep.risk-high"));
        let lost = json!({"current_status": "not-compliant"});
        assert_eq!(of(&format!("{CAEP}device-compliance-change"), lost).as_deref(), Some("caep.device-not-compliant"));
        assert_eq!(of(&format!("{RISC}account-disabled"), json!({})).as_deref(), Some("risc.account-disabled"));
        assert_eq!(of("https://example.com/fork", json!({})).as_deref(), Some("ci.repository-changed"));
        assert_eq!(of("https://example.com/other", json!({})), None);
    }
}
