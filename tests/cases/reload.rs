//! A new configuration is in force when `reload` returns, or the old one still is.

use writ_tests::{Config, Host, TcpPeer, user};

#[test]
fn reload_puts_a_new_policy_in_force() {
    let peer = TcpPeer::new();
    let config = Config::new().destination("web", peer.address);
    let host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    host.configure(&config.permit("to-web", "web"));
    let reload = host.writ_output(&["reload"]);

    assert!(reload.status.success(), "{reload:?}");
    // No waiting: `reload` returns when the kernel holds the new policy.
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    host.expect_judgements(&[
        format!("deny tcp {} EACCES", peer.address),
        format!("allow tcp {} by to-web", peer.address),
    ]);
}

#[test]
fn an_account_that_a_reload_declares_is_judged_when_it_returns() {
    let peer = TcpPeer::new();
    let added = user::ensure(user::STRANGER);
    let config = Config::new().destination("web", peer.address);
    let host = Host::start(&config);
    host.attempt_as(&added, "tcp", &[peer.address]).assert_succeeded();
    let text = format!("[service-account.added]\nmatch = {{ user = \"{}\" }}\n", user::STRANGER);
    // Declared, taken back, and declared again: what is known of a name is that of the configuration in force.
    for _ in 0..2 {
        host.configure(&config.clone().file("service-accounts.d/added.toml", &text));
        host.writ_json(&["reload"]);
        host.attempt_as(&added, "tcp", &[peer.address]).assert_failed("EACCES");
        assert_eq!(host.status()["accounts"][0]["unmatched"], serde_json::json!([]));
        host.configure(&config);
        host.writ_json(&["reload"]);
        host.attempt_as(&added, "tcp", &[peer.address]).assert_succeeded();
    }
}

#[test]
fn reload_with_error_keeps_old_policy() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let config =
        Config::new().destination("open", open.address).destination("closed", closed.address).permit("to-open", "open");
    let host = Host::start(&config);
    let broken = "@id(\"to-closed\")\npermit (principal, action, resource in Destination::\"nowhere\");\n";

    host.configure(&config.clone().permit("also-closed", "closed").file("policies.d/broken.cedar", broken));
    let reload = host.writ_output(&["reload"]);

    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(said.contains("policies.d/broken.cedar:2"), "the error names file and line: {said}");
    host.attempt("tcp", &[open.address]).assert_succeeded();
    // Not even the part of the new configuration that was right.
    host.attempt("tcp", &[closed.address]).assert_failed("EACCES");
    host.expect_judgements(&[
        format!("allow tcp {} by to-open", open.address),
        format!("deny tcp {} EACCES", closed.address),
    ]);
}
