//! What people keep open on a screen, and what a host is when nobody looks: the accounts at a glance, escalations as they
//! come, a baseline while it is learnt, a record that is too long for its line, and writ taken away over its own socket.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use writ_tests::{Config, Host, TcpPeer, UdpPeer, config, user, wait};

/// Longer than the longest line of a record.
const LONG: usize = 80_000;
const LONGEST_LINE: usize = 65_535;
/// What a daemon ends with when enforcement was taken away.
const UNINSTALLED: i32 = 6;

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
fn destinations_are_learnt_for_as_long_as_is_declared_and_not_again_after_a_restart() {
    let peer = UdpPeer::new();
    let known = format!(
        "@id(\"known\")\n@owner(\"tests\")\n@reason(\"where it always goes\")\npermit (principal == \
         ServiceAccount::\"{}\", action == Action::\"connect\", resource) when {{ !context.new_destination }};\n",
        config::ACCOUNT
    );
    let mut config = Config::new().file("policies.d/known.cedar", &known);
    config.account = "learning = \"15s\"".to_owned();
    let mut host = Host::start(&config);
    let at = |last: u8| SocketAddr::from(([127, 7, 7, last], peer.address.port()));
    host.attempt("udp-judge", &[at(1)]).assert_succeeded();
    let learnt = wait::until("it is on record", || host.judgements().pop());
    assert_eq!(learnt.0.pointer("/request/context/new_destination"), Some(&json!(false)), "{learnt:#?}");
    // Each address once: what is asked while it is learnt is learnt.
    let mut next = 2;
    let refused = wait::until("the time of learning is over", || {
        let to = at(next);
        next += 1;
        std::thread::sleep(std::time::Duration::from_millis(200));
        host.attempt("udp-judge", &[to]).errno.map(|_| to)
    });
    host.attempt("udp-judge", &[at(1)]).assert_succeeded();
    host.attempt("udp-judge", &[refused]).assert_failed("EACCES");
    host.kill_daemon();
    host.attempt("udp-judge", &[refused]).assert_failed("EACCES");
    host.run_daemon();
    host.attempt("udp-judge", &[at(1)]).assert_succeeded();
    host.attempt("udp-judge", &[refused]).assert_failed("EACCES");
    assert_eq!(host.writ_output(&["reload"]).status.code(), Some(0));
    host.attempt("udp-judge", &[refused]).assert_failed("EACCES");
    let shown = host.writ_json(&["account", "show", config::ACCOUNT, "--json"]).to_string();
    assert!(shown.contains("127.7.7.1") && !shown.contains(&refused.ip().to_string()), "{shown}");
}

#[test]
fn a_record_too_long_for_its_line_says_what_was_shortened_and_is_verified_and_replayed() {
    let peer = UdpPeer::new();
    let reason = "because ".repeat(LONG / 8);
    let never = format!(
        "@id(\"never\")\n@owner(\"tests\")\n@reason(\"{reason}\")\nforbid (principal, action == Action::\"connect\", \
         resource);\n"
    );
    let mut host = Host::start(&Config::new().file("policies.d/never.cedar", &never));
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let record = wait::until("the refusal is on record", || host.judgements().pop());
    let shortened = record.0["truncated"].as_array().cloned().unwrap_or_default();
    assert!(
        shortened.iter().any(|path| path.as_str().is_some_and(|path| path.ends_with(".reason"))),
        "what was shortened is not said: {shortened:?}"
    );
    assert_eq!((record.text("/verdict"), record.policies()), ("deny", vec!["never"]), "{record:#?}");
    assert_eq!(host.stop_daemon(), Some(0));
    let lines: Vec<String> = fs::read_dir(host.log_directory().join("records"))
        .expect("there is a log")
        .flatten()
        .flat_map(|entry| {
            fs::read_to_string(entry.path()).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(lines.iter().any(|line| line.len() > LONGEST_LINE / 16), "nothing was long");
    assert!(lines.iter().all(|line| line.len() <= LONGEST_LINE), "a line is too long");
    let log = host.log_directory().display().to_string();
    for command in ["verify", "replay"] {
        let said = host.writ_output(&[command, &log]);
        assert!(said.status.success(), "{command}: {said:?}");
    }
}

#[test]
fn what_is_in_force_is_taken_away_over_the_socket_by_root_and_by_nobody_else() {
    let peer = UdpPeer::new();
    let mut config = Config::new();
    config.agent = format!(
        "operators = [\"root\", \"{0}\"]\napprovers = [\"root\", \"{0}\"]\n",
        user::ensure(user::STRANGER).name
    );
    let mut host = Host::start(&config);
    for user in [user::ensure(user::STRANGER), host.service_user().clone()] {
        let mut curl = host.command_as(&user, "curl");
        curl.args(["--silent", "--max-time", "20", "--unix-socket"]).arg(host.socket());
        curl.args(["--write-out", " %{http_code}", "--json", "{}", "http://writ/v1/uninstall"]);
        let said = curl.output().expect("curl is installed");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.ends_with(" 403"), "{}: {said}", user.name);
    }
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let answer = host.request("POST", "/v1/uninstall", json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body["removed"].as_u64().is_some_and(|removed| removed > 0), "{answer:?}");
    assert_eq!(host.daemon_ends(), Some(UNINSTALLED), "systemd must not start it again");
    assert!(!host.pins().exists());
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    let events: Vec<_> = host.records_of("lifecycle").iter().map(|record| record.text("/event").to_owned()).collect();
    assert!(events.iter().any(|event| event == "uninstall"), "{events:?}");
    let said = host.writ_output(&["verify", &host.log_directory().display().to_string()]);
    assert!(said.status.success(), "{said:?}");
    // Once more is no harm: there is nothing left to take away.
    assert_eq!(host.writ_output(&["uninstall"]).status.code(), Some(0));
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
}
