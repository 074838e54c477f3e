//! Enforcement is the kernel's: it does not depend on the daemon being alive.

use std::collections::BTreeMap;

use serde_json::json;
use writ_tests::probe::Counts;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, user};

/// Enough that a gap of a few milliseconds would be hit.
const ATTEMPTS: u64 = 200;
/// What a daemon ends with when enforcement was taken away.
const UNINSTALLED: i32 = 6;

#[test]
fn enforcement_outlives_sigkill() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let mut host = Host::start(&config);
    let (allowed, forbidden) = (host.prober("tcp", open.address), host.prober("tcp", closed.address));
    let both_go_on = || {
        allowed.wait_for_more(ATTEMPTS);
        forbidden.wait_for_more(ATTEMPTS);
    };

    both_go_on();
    host.kill_daemon();
    both_go_on();
    host.run_daemon();
    both_go_on();

    let (allowed, forbidden) = (allowed.stop(), forbidden.stop());
    assert_eq!(allowed.failed, BTreeMap::new(), "allowed traffic must not notice");
    let refusals = BTreeMap::from([("EACCES".to_owned(), forbidden.attempts())]);
    assert_eq!(forbidden, Counts { succeeded: 0, failed: refusals }, "forbidden traffic must not get through");
    assert_eq!(closed.accepted(), 0);
}

#[test]
fn what_happens_without_the_daemon_is_recorded_when_it_returns() {
    let peer = TcpPeer::new();
    let mut host = Host::start(&Config::new());

    host.kill_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.run_daemon();

    host.expect_judgements(&[format!("deny tcp {} EACCES", peer.address)]);
}

#[test]
fn uninstall_ends_enforcement_and_leaves_nothing_pinned() {
    let peer = TcpPeer::new();
    let mut host = Host::start(&Config::new());
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    assert_eq!(host.stop_daemon(), Some(0));
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let uninstalled = host.writ_output(&["uninstall"]);

    assert!(uninstalled.status.success(), "{uninstalled:?}");
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    assert!(!host.pins().exists());
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
