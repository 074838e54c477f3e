//! A new configuration is in force when `reload` returns, or the old one still is.

use writ_tests::{Config, Host, TcpPeer, user, wait};

/// Waits until nothing is enforced: the kernel takes programs of the second line away a moment after their last pin.
#[track_caller]
fn gone(host: &Host, peer: std::net::SocketAddr) {
    wait::until("nothing is enforced", || host.attempt("tcp", &[peer]).errno.is_none().then_some(()));
}

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

#[test]
fn an_error_in_writ_toml_leaves_everything_where_it_is() {
    let peer = TcpPeer::new();
    let mut host = Host::start(&Config::new().destination("web", peer.address));
    let agent = host.config_directory().join("writ.toml");
    let written = std::fs::read_to_string(&agent).unwrap();
    for broken in ["bogus = 1\n", "mode = \"bad\"\n", "bogus = \n", "[paths\n"] {
        std::fs::write(&agent, format!("{broken}{written}")).unwrap();
        let reload = host.writ_output(&["reload"]);
        let said = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert_eq!(reload.status.code(), Some(1), "{broken}: {said}");
        assert!(said.contains("writ.toml:1:"), "{broken}: {said}");
        assert_eq!(host.writ_output(&["status", "--json"]).status.code(), Some(0), "{broken}");
        assert!(!host.writ_output(&["tail"]).stdout.is_empty(), "{broken}: the log is the configured one");
    }
    // The next daemon falls back to what was good, where it was.
    host.kill_daemon();
    host.run_daemon();
    assert_eq!(host.status()["degraded"], serde_json::json!(["config-rejected"]));
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.kill_daemon();
    assert!(host.writ_output(&["uninstall"]).status.success());
    assert!(!host.pins().exists(), "what was pinned is gone");
    gone(&host, peer.address);
}

#[test]
fn what_is_only_observed_from_now_on_is_a_change_on_record() {
    let peer = TcpPeer::new();
    let config = Config::new().destination("web", peer.address);
    let mut host = Host::start(&config);
    let mode = |host: &Host, mode: &str| {
        let path = host.config_directory().join("writ.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let rest = text.lines().filter(|line| !line.starts_with("mode")).collect::<Vec<_>>().join("\n");
        std::fs::write(&path, format!("mode = \"{mode}\"\n{rest}\n")).unwrap();
    };
    let changes = |host: &Host| -> Vec<(String, String, String)> {
        let records = host.records_of("change").into_iter();
        let text = |record: &writ_tests::Record, member: &str| record.text(member).to_owned();
        records
            .map(|record| (text(&record, "/cause"), text(&record, "/before/mode"), text(&record, "/after/mode")))
            .collect()
    };
    let change = |cause: &str, before: &str, after: &str| (cause.to_owned(), before.to_owned(), after.to_owned());

    mode(&host, "observe");
    host.writ_json(&["reload"]);
    assert_eq!(changes(&host), [change("policy", "enforce", "observe")]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    // And by what was configured while no daemon ran.
    host.stop_daemon();
    mode(&host, "enforce");
    host.run_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    assert_eq!(changes(&host).last(), Some(&change("start", "observe", "enforce")));
    let adopted = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "adopt").unwrap();
    assert_eq!(adopted.text("/mode"), "enforce");
}
