//! `on-escalation`: whoever has to answer is told, once, with the command that approves; a hook that fails holds nothing up.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use writ_tests::{Config, Host, TcpPeer, wait};

const ASK: &str = "@id(\"ask\")\n@owner(\"dba\")\n@reason(\"a person decides\")\n@decision(\"escalate\")\nforbid (principal, \
                   action == Action::\"connect\", resource in Destination::\"db\");\n";

fn escalating(peer: &TcpPeer) -> Config {
    Config::new().destination("db", peer.address).permit("to-db", "db").file("policies.d/ask.cedar", ASK)
}

#[test]
fn a_new_escalation_is_told_once_and_its_command_approves_it() {
    let peer = TcpPeer::new();
    let mut config = escalating(&peer);
    let mut host = Host::prepare(&config);
    let told = host.directory().join("told");
    config.agent = format!("on-escalation = [\"/bin/sh\", \"-c\", \"cat >> {}\"]\n", told.display());
    host.configure(&config);
    host.run_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    wait::until("the hook has run", || {
        (host.status().pointer("/on_escalation/succeeded") == Some(&json!(1))).then_some(())
    });
    wait::until("both attempts are counted", || {
        let open = host.writ_json(&["escalation", "list"]);
        (open.pointer("/0/count") == Some(&json!(2))).then_some(())
    });
    let text = fs::read_to_string(&told).expect("the hook wrote what it was told");
    assert_eq!(text.lines().count(), 1, "{text}");
    let said: Value = serde_json::from_str(&text).expect("it is JSON");
    let record = host.judgements().into_iter().next().expect("the attempt is on record");
    assert_eq!(said.pointer("/record"), record.0.get("id"));
    assert_eq!(said.pointer("/account"), Some(&json!("tested")));
    assert_eq!(said.pointer("/owner"), Some(&json!("tests@example.com")));
    assert_eq!(said.pointer("/destination/port"), Some(&json!(peer.address.port())));
    assert_eq!(said.pointer("/host/id"), record.0.pointer("/host/id"));
    let approve = said.pointer("/approve").and_then(Value::as_str).expect("it says how to approve");
    let words: Vec<&str> = approve.split(' ').collect();
    assert_eq!(words.first(), Some(&"writ"));

    let mut command = Command::new(writ_tests::host::writ_program());
    assert!(command.args(words.iter().skip(1)).output().expect("writ can be run").status.success());

    host.attempt("tcp", &[peer.address]).assert_succeeded();
}

#[test]
fn a_hook_that_fails_is_counted_and_shown_and_nothing_waits_for_it() {
    let peer = TcpPeer::new();
    let mut config = escalating(&peer);
    config.agent = "on-escalation = [\"/bin/sh\", \"-c\", \"echo the pager is gone >&2; exit 3\"]\n".into();
    let host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let status = wait::until("the failure is shown", || {
        let status = host.status();
        let degraded = status.get("degraded").and_then(Value::as_array).cloned().unwrap_or_default();
        degraded.contains(&json!("on-escalation-failing")).then_some(status)
    });

    assert_eq!(status.pointer("/on_escalation/failed"), Some(&json!(1)));
    let why = status.pointer("/on_escalation/last_failure/why").and_then(Value::as_str).unwrap_or_default();
    assert!(why.contains("exit status: 3") && why.contains("the pager is gone"), "{why}");
    assert_eq!(host.writ_json(&["escalation", "list"]).as_array().map(Vec::len), Some(1));
}
