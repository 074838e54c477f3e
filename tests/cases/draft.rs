//! From observing to enforcing: the drafted policy is valid, permits what was observed, and nothing else.

use writ_tests::{Config, Host, TcpPeer, config};

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
