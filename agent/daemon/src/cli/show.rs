//! Records in words: one line for lists, used wherever a person reads along.

use writ_core::record::{Body, Decision, Lifecycle, Record};

/// One record as one line, without its time.
pub(crate) fn summary(record: &Record) -> String {
    match &record.body {
        Body::Decision(judged) => judged_line(judged, judged.verdict.name()),
        Body::Observation(judged) => judged_line(judged, &format!("would-{}", judged.verdict.name())),
        Body::Change(change) => {
            let before = change.before.as_ref().map_or_else(|| "-".to_owned(), |state| state.risk.to_string());
            format!("change    {}: {}, risk {before} → {}", change.account, change.cause, change.after.risk)
        }
        Body::Cut(cut) => {
            let to = &cut.destination;
            format!("cut       {}: {}:{}/{}, {}", cut.account, to.address, to.port, to.protocol, cut.reason)
        }
        Body::Escalation(escalation) => {
            let to = match (&escalation.destination, &escalation.action, &escalation.resource) {
                (Some(to), ..) => format!("{}:{}", to.address, to.port),
                (None, Some(action), Some(resource)) => format!("{action} {resource}"),
                _ => "-".to_owned(),
            };
            let state = word(&escalation.state);
            format!("escalation {} {state}: {} → {to}", escalation.escalation, escalation.account)
        }
        Body::Grant(grant) => {
            format!("grant     {} {}: {} → {}", grant.grant, word(&grant.state), grant.account, grant.destination)
        }
        Body::Loss(loss) => format!("LOSS      {} attempts without a record: {}", loss.count, loss.reason),
        Body::Lifecycle(lifecycle) => lifecycle_line(lifecycle),
    }
}

fn judged_line(judged: &Decision, verdict: &str) -> String {
    let destination = target(judged);
    let program = program(judged);
    let policies: Vec<&str> = judged.policies.iter().map(|policy| policy.id.as_str()).collect();
    let why = match (judged.reason_code.as_str(), policies.is_empty()) {
        ("policy", true) => "nothing permits it".to_owned(),
        ("policy", false) => policies.join(", "),
        (code, true) => code.to_owned(),
        (code, false) => format!("{code}: {}", policies.join(", ")),
    };
    format!("{verdict:<9} {} {program} → {destination} ({why})", judged.account)
}

/// Where an attempt was going, with the names it is known by.
pub(super) fn target(judged: &Decision) -> String {
    let Some(to) = &judged.destination else { return judged.action.clone() };
    let name = to.name.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    let groups = if to.groups.is_empty() { String::new() } else { format!(" [{}]", to.groups.join(", ")) };
    let address = if to.address.contains(':') { format!("[{}]", to.address) } else { to.address.clone() };
    format!("{name}{address}:{}/{}{groups}", to.port, to.protocol)
}

/// The program that made an attempt.
pub(super) fn program(judged: &Decision) -> String {
    judged.process.as_ref().map_or_else(
        || "(no process)".to_owned(),
        |process| format!("{}[{}]", process.executable.as_deref().unwrap_or(&process.comm), process.pid),
    )
}

fn lifecycle_line(lifecycle: &Lifecycle) -> String {
    if let Lifecycle::Signal(signal) = lifecycle {
        return format!("signal    {}: {} {}, risk {}", signal.account, signal.kind, word(&signal.state), signal.risk);
    }
    let value = serde_json::to_value(lifecycle).unwrap_or_default();
    let event = value.get("event").and_then(serde_json::Value::as_str).unwrap_or("lifecycle").to_owned();
    let rest = match value {
        serde_json::Value::Object(members) => {
            let shown =
                members.iter().filter(|(name, _)| *name != "event").map(|(name, member)| format!("{name}={member}"));
            shown.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    };
    format!("{event:<9} {rest}")
}

/// The name an enumeration has in records.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
