//! Records as OCSF 1.8 events: Network Activity (4001) with the profiles `host` and `security_control`.

use serde_json::{Map, Value, json};

use super::{Body, Cut, Decision, EffectiveMode, PolicyRef, Process, Record, Verdict};

/// The version of the schema that the events follow.
const OCSF: &str = "1.8.0";
const NETWORK_ACTIVITY: u32 = 4001;

/// Where a record lies, for whoever wants to find it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// Which log.
    pub log: &'a str,
    /// The record's index in it.
    pub index: u64,
}

/// The event for a record that is network activity: a decision, an observation, a cut. Other records have none.
pub fn to_ocsf(record: &Record, place: Option<&Place<'_>>) -> Option<Value> {
    let mut event = match &record.body {
        Body::Decision(judged) | Body::Observation(judged) => judged_event(record, judged),
        Body::Cut(cut) => cut_event(record, cut),
        _ => return None,
    };
    if let (Some(place), Some(Value::Object(metadata))) = (place, event.get_mut("metadata")) {
        metadata.insert("log_name".to_owned(), place.log.into());
        metadata.insert("sequence".to_owned(), place.index.into());
    }
    Some(event)
}

fn judged_event(record: &Record, judged: &Decision) -> Value {
    const OPEN: u32 = 1;
    const REFUSE: u32 = 5;
    let enforced = judged.effective_mode == EffectiveMode::Enforce;
    let refused = enforced && judged.verdict != Verdict::Allow;
    let (action, disposition) = match (enforced, judged.verdict) {
        (true, Verdict::Allow) => (1, (1, "Allowed")),
        (true, Verdict::Deny) => (2, (2, "Blocked")),
        (true, Verdict::Escalate) => (2, (99, "Escalated")),
        (false, Verdict::Allow) => (3, (17, "Logged")),
        (false, _) => (3, (15, "Detected")),
    };
    let mut event = base(record, if refused { REFUSE } else { OPEN }, &judged.account, severity(judged));
    let mut put = |name: &str, value: Value| drop(event.insert(name.to_owned(), value));
    put("action_id", action.into());
    put("disposition_id", disposition.0.into());
    put("disposition", disposition.1.into());
    put("is_alert", (judged.verdict != Verdict::Allow).into());
    put("status_id", if refused { 2 } else { 1 }.into());
    if let Some(errno) = &judged.errno {
        put("status_code", errno.as_str().into());
    }
    put("status_detail", judged.reason_code.as_str().into());
    put("risk_score", judged.risk.into());
    put("risk_level_id", risk_level(judged.risk).into());
    put("count", judged.count.into());
    match &judged.destination {
        Some(to) => {
            let mut endpoint = json!({ "ip": to.address, "port": to.port });
            if let (Some(name), Value::Object(members)) = (&to.name, &mut endpoint) {
                members.insert("hostname".to_owned(), name.as_str().into());
            }
            put("dst_endpoint", endpoint);
            put("connection_info", connection(&to.protocol));
        }
        // The class asks for one end of the connection; where nothing is connected yet, it is this host.
        None => put("src_endpoint", json!({ "uid": record.host.id })),
    }
    put("actor", actor(&judged.account, judged.process.as_ref()));
    let decided = judged.verdict.name();
    put("authorizations", judged.policies.iter().map(|policy| authorization(policy, decided, enforced)).collect());
    if let Some(policy) = judged.policies.first() {
        put("policy", policy_object(policy, enforced));
    }
    put(
        "unmapped",
        json!({
            "record_type": record.body.kind(),
            "verdict": judged.verdict,
            "policy_digest": judged.policy_digest,
            "stance_digest": judged.stance_digest,
            "destinations": judged.destination.as_ref().map(|to| &to.groups),
            "kernel": judged.kernel,
        }),
    );
    Value::Object(event)
}

fn cut_event(record: &Record, cut: &Cut) -> Value {
    const RESET: u32 = 3;
    const MEDIUM: u32 = 3;
    let mut event = base(record, RESET, &cut.account, MEDIUM);
    let mut put = |name: &str, value: Value| drop(event.insert(name.to_owned(), value));
    put("action_id", 2.into());
    put("disposition_id", 24.into());
    put("disposition", "Access Revoked".into());
    put("is_alert", true.into());
    put("status_id", 1.into());
    put("status_detail", cut.reason.as_str().into());
    put("dst_endpoint", json!({ "ip": cut.destination.address, "port": cut.destination.port }));
    put("connection_info", connection(&cut.destination.protocol));
    put("actor", actor(&cut.account, None));
    if let Some(policy) = cut.policies.first() {
        put("policy", policy_object(policy, true));
    }
    put(
        "unmapped",
        json!({ "record_type": "cut", "method": cut.method, "change": cut.change, "decision": cut.decision }),
    );
    Value::Object(event)
}

fn base(record: &Record, activity: u32, account: &str, severity: u32) -> Map<String, Value> {
    let event = json!({
        "activity_id": activity,
        "category_uid": 4,
        "class_uid": NETWORK_ACTIVITY,
        "type_uid": NETWORK_ACTIVITY * 100 + activity,
        "severity_id": severity,
        "time": record.time.0.as_millisecond(),
        "message": format!("{} of service account {account}", record.body.kind()),
        "metadata": {
            "version": OCSF,
            "uid": record.id,
            "original_time": record.time,
            "profiles": ["host", "security_control"],
            "product": { "name": "writ", "vendor_name": "writ", "version": record.agent_version },
        },
        "device": { "type_id": 0, "uid": record.host.id },
    });
    match event {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn connection(protocol: &str) -> Value {
    let number = match protocol {
        "tcp" => 6,
        "udp" => 17,
        _ => -1,
    };
    json!({ "direction_id": 2, "protocol_name": protocol, "protocol_num": number })
}

fn actor(account: &str, process: Option<&Process>) -> Value {
    let user = json!({ "name": account, "type_id": 4, "uid": process.map(|process| process.uid.to_string()) });
    let mut actor = json!({ "user": user });
    if let (Some(process), Value::Object(members)) = (process, &mut actor) {
        let mut object = json!({ "pid": process.pid, "tid": process.tid, "name": process.comm });
        if let (Some(path), Value::Object(members)) = (&process.executable, &mut object) {
            let name = path.rsplit('/').next().unwrap_or(path);
            members.insert("file".to_owned(), json!({ "path": path, "name": name, "type_id": 1 }));
        }
        if let (Some(parent), Value::Object(members)) = (process.parents.first(), &mut object) {
            members.insert("parent_process".to_owned(), json!({ "pid": parent.pid }));
        }
        members.insert("process".to_owned(), object);
    }
    without_nulls(actor)
}

fn policy_object(policy: &PolicyRef, applied: bool) -> Value {
    without_nulls(json!({ "uid": policy.id, "name": policy.id, "desc": policy.reason, "is_applied": applied }))
}

fn authorization(policy: &PolicyRef, decision: &str, applied: bool) -> Value {
    json!({ "decision": decision, "policy": policy_object(policy, applied) })
}

fn severity(judged: &Decision) -> u32 {
    match (judged.verdict, judged.effective_mode, judged.risk) {
        (Verdict::Allow, _, _) => 1,
        (_, EffectiveMode::Observe, _) => 2,
        (_, EffectiveMode::Enforce, 90..) => 5,
        (_, EffectiveMode::Enforce, 70..) => 4,
        (_, EffectiveMode::Enforce, _) => 3,
    }
}

/// OCSF's five levels for a score of 0 to 100.
const fn risk_level(risk: u8) -> u32 {
    match risk {
        0 => 0,
        1..=29 => 1,
        30..=69 => 2,
        70..=89 => 3,
        _ => 4,
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .filter(|(_, member)| !member.is_null())
                .map(|(name, member)| (name, without_nulls(member)))
                .collect(),
        ),
        other => other,
    }
}
