//! What happens while nobody reads: recorded when the daemon returns, or counted; and when it reads, read at once.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use writ_tests::{Config, Host, Scale, UdpPeer};

/// Deaths of the daemon in the middle of its work.
const DEATHS: Scale = Scale { native: 4, emulated: 2 };

#[test]
fn what_a_dying_daemon_had_read_and_not_written_is_counted() {
    let peer = UdpPeer::new();
    let config = Config::new().destination("open", peer.address).permit("to-open", "open");
    let mut host = Host::start(&config);
    let mut probe = host.batch();
    let mut made = 0;

    for _ in 0..DEATHS.here() {
        // Killed while it is busy with these: some are written, some only read, some still in the ring.
        for _ in 0..300 {
            probe.attempt("udp-judge", peer.address);
            made += 1;
        }
        host.kill_daemon();
        for _ in 0..50 {
            probe.attempt("udp-judge", peer.address);
            made += 1;
        }
        host.run_daemon();
    }

    let counted = host.settled_by_the_log(made);
    println!("{counted:?}");
    host.assert_verified(counted);
}

#[test]
fn a_record_can_be_read_half_a_second_after_its_event() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    let mut tail = host.writ(&["tail", "-f", "--json"]);
    let mut tail = tail.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut probe = host.batch();
    let mut next = || loop {
        let line = lines.next().unwrap().unwrap();
        if line.contains("\"type\":\"decision\"") {
            return Instant::now();
        }
    };
    // The first one shows that it follows.
    probe.attempt("udp-judge", peer.address).assert_failed("EACCES");
    next();

    let mut delays: Vec<Duration> = (0..20)
        .map(|_| {
            let made = Instant::now();
            probe.attempt("udp-judge", peer.address).assert_failed("EACCES");
            next() - made
        })
        .collect();
    delays.sort();
    tail.kill().unwrap();
    tail.wait().unwrap();
    println!("median {:?}, worst {:?}", delays[10], delays[19]);
    // The median, because a shared or emulated machine may not run us for longer than that.
    assert!(delays[10] < Duration::from_millis(500), "{delays:?}");
}

#[test]
fn enforcement_taken_away_and_put_back_leaves_one_log_that_verifies() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&Config::new());
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    assert_eq!(host.stop_daemon(), Some(0));
    assert!(host.writ_output(&["uninstall"]).status.success());

    host.run_daemon();
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");

    let denied = format!("deny udp {} EACCES", peer.address);
    host.expect_judgements(&[&denied, &denied, &denied]);
    assert_eq!(host.stop_daemon(), Some(0));
    let verified = host.writ_output(&["verify", "--json", &host.log_directory().display().to_string()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
