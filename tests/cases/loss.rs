//! A full ring: the verdict stands or access ends, as the account says, and what was not recorded is counted exactly.

use nix::sys::signal::Signal;
use writ_tests::{Config, Host, UdpPeer};

/// Far more than the smallest ring holds.
const ATTEMPTS: u64 = 1_000;

fn small_ring(peer: &UdpPeer) -> Config {
    let mut config = Config::new().destination("open", peer.address).permit("to-open", "open");
    config.agent = "[kernel]\nring-size = \"64KiB\"".to_owned();
    config
}

#[test]
fn a_full_ring_changes_no_verdict_and_every_loss_is_counted() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let host = Host::start(&small_ring(&open));
    let mut probe = host.batch();

    host.signal_daemon(Signal::SIGSTOP);
    for _ in 0..ATTEMPTS / 2 {
        // Nothing is up where the probe is, so it is told "unreachable" once writ has let it through.
        assert_ne!(probe.attempt("udp-judge", open.address).errno.as_deref(), Some("EACCES"));
        probe.attempt("udp-judge", closed.address).assert_failed("EACCES");
    }
    host.signal_daemon(Signal::SIGCONT);

    let counted = host.settled();
    assert_eq!(counted.seen, ATTEMPTS);
    assert!(counted.lost > 0 && counted.recorded > 100, "{counted:?}");
    host.assert_verified(counted);
}

#[test]
fn without_a_record_an_account_that_must_be_recorded_has_no_access() {
    let open = UdpPeer::new();
    let mut config = small_ring(&open);
    config.account = "on-record-loss = \"deny\"".to_owned();
    let host = Host::start(&config);
    let mut probe = host.batch();
    let mut tried = 0;
    let mut let_through = |count: u64| {
        tried += count;
        let answers = (0..count).map(|_| probe.attempt("udp-judge", open.address).errno);
        answers.filter(|errno| errno.as_deref() != Some("EACCES")).count() as u64
    };

    host.signal_daemon(Signal::SIGSTOP);
    let passed = let_through(ATTEMPTS);
    assert!(passed < ATTEMPTS, "the ring cannot hold so many");
    assert_eq!(let_through(10), 0, "once the ring is full nothing gets through");
    host.signal_daemon(Signal::SIGCONT);

    let counted = host.settled();
    assert_eq!((counted.recorded, counted.seen), (passed, ATTEMPTS + 10), "exactly what was recorded got through");
    host.assert_verified(counted);
    // The ring has room again.
    assert_eq!(let_through(10), 10);
}
