//! Enforcement is the kernel's: it does not depend on the daemon being alive.

use std::collections::BTreeMap;

use writ_tests::probe::Counts;
use writ_tests::{Config, Host, TcpPeer};

/// Enough that a gap of a few milliseconds would be hit.
const ATTEMPTS: u64 = 200;

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
