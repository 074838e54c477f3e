//! What people keep open on a screen: the accounts at a glance, and escalations as they come and are answered.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use writ_tests::{Config, Host, TcpPeer, config};

#[test]
fn top_shows_what_needs_a_person_first_and_is_json_when_piped() {
    let other = "[service-account.another]\nowner = \"tests@example.com\"\nmatch = { user = \"nobody\" }\n";
    let host = Host::start(&Config::new().file("service-accounts.d/another.toml", other));
    host.writ_json(&[
        "signal",
        "send",
        "--account",
        config::ACCOUNT,
        "--kind",
        "seen.by-hand",
        "--risk",
        "70",
        "--ttl",
        "5m",
        "--json",
    ]);
    let piped = host.writ_json(&["top"]);
    assert_eq!(piped["accounts"].as_array().map(Vec::len), Some(2), "{piped}");
    assert_eq!(piped["generation"], host.status()["generation"]);
    let once = host.writ_output(&["top", "--once"]);
    let text = String::from_utf8_lossy(&once.stdout).into_owned();
    assert!(once.status.success() && !text.contains('\x1b'), "{once:?}");
    let row = |name: &str| text.lines().position(|line| line.contains(name)).unwrap_or_else(|| panic!("{text}"));
    assert!(row(config::ACCOUNT) < row("another"), "the one at risk is not first:\n{text}");
    assert!(text.contains("generation") && text.contains("lost") && text.contains("70"), "{text}");
}

#[test]
fn escalations_are_followed_as_they_come_and_as_they_are_answered() {
    let (first, second) = (TcpPeer::new(), TcpPeer::new());
    let ask = "@id(\"ask\")\n@owner(\"dba\")\n@reason(\"a person decides\")\n@decision(\"escalate\")\nforbid (principal, \
               action == Action::\"connect\", resource);\n";
    let config = Config::new()
        .destination("one", first.address)
        .destination("two", second.address)
        .permit("to-one", "one")
        .permit("to-two", "two")
        .file("policies.d/ask.cedar", ask);
    let host = Host::start(&config);
    host.attempt("tcp", &[first.address]).assert_failed("EACCES");
    let mut command = host.writ(&["escalation", "list", "-f"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().expect("cannot run `writ escalation list`");
    let mut lines = BufReader::new(follower.stdout.take().expect("it has an output")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("it goes on").expect("it is text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let open = next();
    assert_eq!((&open["account"], &open["status"]), (&json!(config::ACCOUNT), &json!("pending")), "{open}");
    host.attempt("tcp", &[second.address]).assert_failed("EACCES");
    let came = next();
    assert_eq!(came["status"], "pending", "{came}");
    assert_ne!(came["id"], open["id"]);
    let of = |escalation: &Value| escalation["id"].as_str().unwrap_or_default().to_owned();
    host.writ_json(&["escalation", "approve", &of(&open), "--ttl", "5m", "--reason", "go", "--json"]);
    let approved = next();
    assert_eq!((&approved["id"], &approved["status"]), (&open["id"], &json!("approved")), "{approved}");
    host.writ_json(&["escalation", "deny", &of(&came), "--reason", "no", "--json"]);
    let denied = next();
    assert_eq!((&denied["id"], &denied["status"]), (&came["id"], &json!("denied")), "{denied}");
    follower.kill().expect("cannot end the follower");
    follower.wait().expect("cannot wait for the follower");
}

#[test]
fn a_follower_of_escalations_ends_with_its_daemon_and_says_so() {
    let mut host = Host::start(&Config::new());
    let mut command = host.writ(&["escalation", "list", "-f"]);
    let follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cannot run `writ`");
    host.signal_daemon(Signal::SIGTERM);
    assert_eq!(host.daemon_ends(), Some(0));
    let said = follower.wait_with_output().expect("it ends");
    assert_eq!(said.status.code(), Some(69), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("daemon"), "{said:?}");
}
