//! `report` and `explain` against a host whose every attempt, grant, signal and question is known to the test.

use serde_json::{Value, json};
use writ_tests::{Config, Host, TcpPeer, UdpPeer, config};

const POLICIES: &str = r#"
@id("to-open") @owner("billing@example.com") @reason("invoices are fetched there")
@controls("NIST CSF 2.0 DE.CM-01, OWASP NHI5:2025")
permit (principal, action == Action::"connect", resource in Destination::"open")
when { context.hour >= 0 && context.hour < 24 && context.risk < 80 };

@id("to-spare") @owner("tests") @reason("nobody goes there")
permit (principal, action == Action::"connect", resource in Destination::"spare");

@id("to-asked") @owner("tests") @reason("allowed, if a person says so")
permit (principal, action == Action::"connect", resource in Destination::"asked");
@id("ask") @owner("security@example.com") @reason("a person decides") @decision("escalate")
forbid (principal, action == Action::"connect", resource in Destination::"asked");

@id("working-hours") @owner("tests") @reason("by day, in one year that is over")
permit (principal, action == Action::"connect", resource in Destination::"closed")
when { context.hour >= 8 && context.hour < 18 && context.weekday <= 5 && context.now < datetime("2001-01-01") };
"#;

fn number(of: &Value, pointer: &str) -> u64 {
    of.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {of:#}"))
}

fn names(of: &Value, pointer: &str) -> Vec<String> {
    match of.pointer(pointer) {
        Some(Value::Object(members)) => members.keys().cloned().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => panic!("no {pointer} in {of:#}"),
    }
}

#[test]
fn the_report_counts_what_was_done_and_nothing_that_was_only_asked_for() {
    let (open, spare, asked, closed) = (TcpPeer::new(), TcpPeer::new(), TcpPeer::new(), UdpPeer::new());
    let config = Config::new()
        .destination("open", open.address)
        .destination("spare", spare.address)
        .destination("asked", asked.address)
        .destination("closed", closed.address)
        .file("policies.d/report.cedar", POLICIES)
        .file("signals.d/edr.toml", "[signal.\"edr.odd\"]\nrisk = 40\nttl = \"1h\"\n");
    let host = Host::start(&config);
    let account = config::ACCOUNT;

    for _ in 0..3 {
        host.attempt("tcp", &[open.address]).assert_succeeded();
    }
    for _ in 0..2 {
        host.attempt("udp-connect", &[closed.address]).assert_failed("EACCES");
    }
    // Asked about, and approved.
    host.attempt("tcp", &[asked.address]).assert_failed("EACCES");
    host.settled();
    let waiting = host.writ_json(&["escalation", "list", "--json"]);
    let escalation = waiting.pointer("/0/id").and_then(Value::as_str).expect("one is open").to_owned();
    host.writ_json(&["escalation", "approve", &escalation, "--ttl", "5m", "--reason", "release 7"]);
    host.attempt("tcp", &[asked.address]).assert_succeeded();
    // A signal, cleared again: one signal, whatever number of records.
    let sent = host.writ_json(&["signal", "send", "--account", account, "--kind", "edr.odd"]);
    let signal = sent.pointer("/outcome/signal/id").and_then(Value::as_str).expect("the signal is named").to_owned();
    host.writ_json(&["signal", "clear", &signal, "--reason", "false alarm"]);
    // A grant, used and revoked.
    let granted = host.writ_json(&[
        "grant",
        "create",
        "--account",
        account,
        "--to",
        "closed",
        "--ttl",
        "5m",
        "--reason",
        "incident 7",
    ]);
    let grant = granted.get("id").and_then(Value::as_str).expect("the grant is named").to_owned();
    host.attempt("udp-connect", &[closed.address]).assert_succeeded();
    host.writ_json(&["grant", "revoke", &grant]);
    // What names accounts that are none: a refused request, and a question about nobody.
    let refused = host.writ_output(&["break-glass", "--account", "nope", "--ttl", "1m", "--reason", "x"]);
    assert!(!refused.status.success(), "{refused:?}");
    let refused = host.writ_output(&["signal", "send", "--account", "never", "--kind", "edr.odd"]);
    assert!(!refused.status.success(), "{refused:?}");
    let question = json!({
        "subject": { "type": "service_account", "id": "ghost" },
        "action": { "name": "connect" },
        "resource": { "type": "Endpoint", "id": format!("{}/tcp", open.address) },
    });
    assert_eq!(host.request("POST", "/access/v1/evaluation", question).body.get("decision"), Some(&json!(false)));
    host.settled();

    let report = host.writ_json(&["report", "--format", "json"]);
    assert_eq!(names(&report, "/accounts"), [account], "{report:#}");
    assert_eq!(names(&report, "/subjects"), [""; 0]);
    assert!(number(&report, "/refused_requests") >= 2, "{report:#}");
    assert_eq!((number(&report, "/unreadable"), number(&report, "/lost_attempts")), (0, 0));
    let told = report.pointer(&format!("/accounts/{account}")).expect("the account is there");
    for (what, expected) in [
        ("allowed", 3 + 1 + 1),
        ("denied", 2),
        ("escalated", 1),
        ("observed", 0),
        ("grants_created", 1),
        ("grants_revoked", 1),
        ("grants_expired", 0),
        ("signals", 1),
        ("escalations", 1),
        ("escalations_approved", 1),
        ("escalations_denied", 0),
        ("highest_risk", 40),
        ("policies/to-open", 3),
        ("policies/ask", 1),
    ] {
        assert_eq!(number(told, &format!("/{what}")), expected, "{what}: {told:#}");
    }
    assert_eq!(told.get("owner"), Some(&json!("tests@example.com")));
    // Permitted by the configuration; a grant is not: it ends by itself, and is listed with its reason.
    assert_eq!(names(told, "/permitted"), ["asked", "closed", "open", "spare"]);
    assert_eq!(names(told, "/permitted/open"), ["to-open"]);
    // `closed` was reached by the grant, which is no use of the permit.
    assert_eq!(names(told, "/never_used"), ["closed", "spare"]);
    assert_eq!(told.get("over_privilege"), Some(&json!(0.5)));
    assert_eq!(names(told, "/granted"), [grant.as_str()]);
    assert_eq!(told.pointer(&format!("/granted/{grant}")), Some(&json!("closed: incident 7")));
    let place = |name: &str| format!("loopback, {name}");
    let sorted = |name: &str| if name < "loopback" { format!("{name}, loopback") } else { place(name) };
    for (what, expected) in [
        ("used", [("asked", 1), ("closed", 1), ("open", 3)].as_slice()),
        ("refused", [("asked", 1), ("closed", 2)].as_slice()),
    ] {
        let expected: serde_json::Map<String, Value> =
            expected.iter().map(|(name, count)| (sorted(name), json!(count))).collect();
        assert_eq!(told.get(what), Some(&Value::Object(expected)), "{what}");
    }
    // The risk as it went: from nothing, up with the signal, and back.
    let risks: Vec<u64> = told["risk_history"].as_array().expect("a list").iter().map(|p| number(p, "/risk")).collect();
    assert_eq!(risks, [0, 40, 0], "{told:#}");
    assert_eq!(told.pointer("/risk_history/1/cause"), Some(&json!("signal")));
    // A control that a policy names has as many records as the policy decided.
    let controls = report["controls"].as_array().expect("a list");
    let named = controls.iter().find(|control| control["id"] == "DE.CM-01").expect("it is listed");
    assert_eq!((&named["framework"], &named["policies"]), (&json!("NIST CSF 2.0"), &json!(["to-open"])));
    // Every decision counts for it by itself, and the policy's own are among them.
    let judged = host.judgements().len() as u64;
    assert_eq!(number(named, "/records"), judged, "{named:#}");

    // The same for people.
    for format in ["text", "html"] {
        let output = host.writ_output(&["report", "--format", format]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("2 of 4 permitted destinations never used"), "{text}");
        assert!(
            !text.contains("nope")
                && !text.contains("ghost")
                && !text.contains("\nnever")
                && !text.contains("<h2>never"),
            "{text}"
        );
    }
}

#[test]
fn a_story_tells_the_window_and_an_escalation_who_answers_for_its_policy() {
    let (open, asked, closed) = (TcpPeer::new(), TcpPeer::new(), UdpPeer::new());
    let config = Config::new()
        .destination("open", open.address)
        .destination("spare", "127.0.0.9:9".parse().expect("an address"))
        .destination("asked", asked.address)
        .destination("closed", closed.address)
        .file("policies.d/report.cedar", POLICIES);
    let host = Host::start(&config);
    host.attempt("tcp", &[open.address]).assert_succeeded();
    host.attempt("tcp", &[asked.address]).assert_failed("EACCES");
    host.attempt("udp-connect", &[closed.address]).assert_failed("EACCES");
    host.settled();

    let judged = host.judgements();
    let story = |verdict: &str, policies: &[&str]| {
        let record = judged.iter().find(|record| record.text("/verdict") == verdict && record.policies() == policies);
        let id = record.unwrap_or_else(|| panic!("no {verdict} by {policies:?}")).text("/id").to_owned();
        let output = host.writ_output(&["explain", &id]);
        assert!(output.status.success(), "{output:?}");
        (id, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (_, allowed) = story("allow", &["to-open"]);
    assert!(allowed.contains("policy to-open (owner billing@example.com): invoices are fetched there"), "{allowed}");
    // Nothing permits it; the permits that look at the time are told, with where in their windows it was.
    let (denied, page) = story("deny", &[]);
    let record = judged.iter().find(|record| record.text("/id") == denied).expect("it is there");
    let (hour, weekday) = (record.number("/request/context/hour"), record.number("/request/context/weekday"));
    let within = match hour {
        Some(0..8) => "hours 0–7",
        Some(8..18) => "hours 8–17",
        _ => "hours 18–23",
    };
    let days = if weekday < Some(6) { "Monday–Friday" } else { "Saturday–Sunday" };
    for part in [
        format!("  window      {within}, of hours 0–7 | hours 8–17 | hours 18–23 (policy working-hours)"),
        format!("  window      {days}, of Monday–Friday | Saturday–Sunday (policy working-hours)"),
        "from 2001-01-01T00:00:00Z on, of before".to_owned(),
        format!(
            "  time        {}",
            ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
                [weekday.expect("a weekday") as usize - 1]
        ),
    ] {
        assert!(page.contains(&part), "`{part}` is not in:\n{page}");
    }
    let (escalated, page) = story("escalate", &["ask"]);
    assert!(page.contains("policy ask (owner security@example.com): a person decides"), "{page}");

    let opened = host.records_of("escalation");
    let [opened] = opened.as_slice() else { panic!("one escalation, not {opened:?}") };
    assert_eq!(opened.text("/decision"), escalated);
    assert_eq!(opened.policies(), ["ask"]);
    assert_eq!(opened.text("/policies/0/owner"), "security@example.com");
    assert_eq!(opened.text("/policies/0/reason"), "a person decides");
}
