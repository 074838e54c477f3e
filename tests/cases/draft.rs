//! From observing to enforcing: the drafted policy is valid, permits what was observed, and nothing else; and where an account
//! goes is learnt for as long as was declared.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, config, wait};

#[test]
fn a_policy_drafted_from_what_was_observed_permits_that_and_no_more() {
    let (named, unnamed, other) = (TcpPeer::new(), TcpPeer::new(), TcpPeer::new());
    let mut watched = Config::new().destination("web", named.address);
    watched.account = "mode = \"observe\"".to_owned();
    let mut host = Host::start(&watched);
    host.attempt("tcp", &[named.address]).assert_succeeded();
    host.attempt("tcp", &[unnamed.address]).assert_succeeded();
    host.expect_judgements(&[
        format!("observed deny tcp {}", named.address),
        format!("observed deny tcp {}", unnamed.address),
    ]);

    let drafted = host.writ_output(&["account", "draft-policy", config::ACCOUNT]);
    assert!(drafted.status.success(), "{drafted:?}");
    let text = String::from_utf8_lossy(&drafted.stdout).into_owned();
    assert!(text.contains("resource in Destination::\"web\"") && !text.contains("loopback"), "{text}");

    let enforced = Config::new().destination("web", named.address).file("policies.d/drafted.cedar", &text);
    host.configure(&enforced);
    let checked = host.writ_output(&["check"]);
    assert!(checked.status.success(), "{checked:?}\n{text}");
    let policies = host.config_directory().join("policies.d");
    let whatif = host.writ_output(&["whatif", "--policies", &policies.display().to_string(), "--json"]);
    let compared: serde_json::Value = serde_json::from_slice(&whatif.stdout).expect("the comparison is JSON");
    assert_eq!(compared["newly_denied"], 0, "{compared}");
    let reloaded = host.writ_output(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    host.attempt("tcp", &[named.address]).assert_succeeded();
    host.attempt("tcp", &[unnamed.address]).assert_succeeded();
    host.attempt("tcp", &[other.address]).assert_failed("EACCES");
    assert_eq!(host.stop_daemon(), Some(0));
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
        // There are not many of them.
        std::thread::sleep(Duration::from_millis(200));
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
