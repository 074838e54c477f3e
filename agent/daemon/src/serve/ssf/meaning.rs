//! What an event means here: which account its subject is, and which kind of signal it is.

use serde_json::{Map, Value};
use writ_core::config::Transmitter;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";

/// Members of complex subjects, narrowest first.
const MEMBERS: [&str; 7] = ["application", "user", "session", "device", "group", "org_unit", "tenant"];

/// The account that a subject is, as `[ssf."…".subjects]` says. Of a complex subject the narrowest member that is known
/// counts, then those with names of the transmitter's own; a critical member that is not known makes it nobody.
pub(super) fn account(subject: &Value, transmitter: &Transmitter) -> Option<String> {
    let known = |subject: &Value| simple(subject).iter().find_map(|name| transmitter.subjects.get(name).cloned());
    if subject.get("format").and_then(Value::as_str).is_some_and(|format| format != "complex") {
        return known(subject);
    }
    let members = subject.as_object()?;
    let understood = |name: &String| members.get(name).is_none_or(|member| known(member).is_some());
    if !transmitter.critical.iter().all(understood) {
        return None;
    }
    let others = members.iter().filter(|(name, _)| !MEMBERS.contains(&name.as_str())).map(|(_, member)| member);
    MEMBERS.iter().filter_map(|name| members.get(*name)).chain(others).find_map(known)
}

/// A simple subject (RFC 9493, and what SSF adds) as configuration writes it; aliases are several.
fn simple(subject: &Value) -> Vec<String> {
    let text = |name: &str| subject.get(name).and_then(Value::as_str);
    let pair = |a: &str, b: &str| Some(format!("{} {}", text(a)?, text(b)?));
    let list = |name: &str| subject.get(name).and_then(Value::as_array).into_iter().flatten();
    let one = match text("format").unwrap_or_default() {
        "uri" | "account" => text("uri").map(str::to_owned),
        "opaque" => text("id").map(str::to_owned),
        "email" => text("email").map(str::to_owned),
        "phone_number" => text("phone_number").map(str::to_owned),
        "did" => text("url").map(str::to_owned),
        "iss_sub" => pair("iss", "sub"),
        "jwt_id" => pair("iss", "jti"),
        "saml_assertion_id" => pair("issuer", "assertion_id"),
        "ip-addresses" => {
            return list("ip-addresses").filter_map(Value::as_str).map(str::to_owned).collect();
        }
        // Aliases within aliases are not allowed, and would be a way to make us dig.
        "aliases" => {
            let flat = |alias: &&Value| alias.get("format").and_then(Value::as_str) != Some("aliases");
            return list("identifiers").take(16).filter(flat).flat_map(simple).collect();
        }
        _ => None,
    };
    one.into_iter().collect()
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
        Some("assurance-level-change") => {
            return Some(match text("change_direction").as_deref() {
                Some("increase") => "caep.assurance-level-increase".to_owned(),
                Some("decrease") => "caep.assurance-level-decrease".to_owned(),
                _ => "caep.assurance-level-change".to_owned(),
            });
        }
        Some(name) => return Some(format!("caep.{name}")),
        None => {}
    }
    let risc = event.strip_prefix(RISC).map(|name| format!("risc.{name}"));
    risc.or_else(|| event.strip_prefix(SSF).map(|name| format!("ssf.{name}")))
}

/// Kinds that a newer one ends: a level is one statement, and the latest counts.
pub(super) fn superseded(kind: &str) -> &'static [&'static str] {
    match kind {
        "caep.risk-low" => &["caep.risk-medium", "caep.risk-high"],
        "caep.risk-medium" => &["caep.risk-low", "caep.risk-high"],
        "caep.risk-high" => &["caep.risk-low", "caep.risk-medium"],
        "caep.device-compliant" => &["caep.device-not-compliant"],
        "caep.device-not-compliant" => &["caep.device-compliant"],
        "caep.assurance-level-increase" => &["caep.assurance-level-decrease"],
        "caep.assurance-level-decrease" => &["caep.assurance-level-increase"],
        "risc.account-enabled" => &["risc.account-disabled"],
        "risc.account-disabled" => &["risc.account-enabled"],
        _ => &[],
    }
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
            ca: "/ca".into(),
            critical: vec!["device".into()],
            heartbeat: None,
            verification: None,
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
        let stranger = json!({"format": "complex", "device": {"format": "opaque", "id": "9"},
            "application": {"format": "uri", "uri": "spiffe://td/ci"}});
        assert_eq!(of(stranger), None, "a critical member that is not understood");
        let workload = json!({"format": "complex", "workload": {"format": "uri", "uri": "spiffe://td/ci"}});
        assert_eq!(of(workload).as_deref(), Some("ci"));
        let legacy = json!({"user": {"format": "iss_sub", "iss": "https://idp", "sub": "bot"}});
        assert_eq!(of(legacy).as_deref(), Some("bot"), "complex subjects of older drafts have no format");
        let aliases = json!({"format": "aliases", "identifiers": [{"format": "email", "email": "a@b"},
            {"format": "opaque", "id": "7"}]});
        assert_eq!(of(aliases).as_deref(), Some("seven"));
        let nested = json!({"format": "aliases", "identifiers": [{"format": "aliases", "identifiers": [{"format": "opaque", "id": "7"}]}]});
        assert_eq!(of(nested), None);
        assert_eq!(of(json!({"format": "phone_number", "phone_number": "7"})).as_deref(), Some("seven"));
        assert_eq!(of(json!({"format": "opaque", "id": "8"})), None);
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
