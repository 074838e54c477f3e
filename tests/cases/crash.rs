//! A daemon that is killed under load leaves a log that verifies, replays, and counts every gap.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use serde_json::Value;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, wait};

/// How often the daemon is killed; `WRIT_KILL_ROUNDS` asks for more.
const ROUNDS: u64 = 8;

#[test]
fn a_daemon_killed_under_load_loses_no_decision_uncounted() {
    let rounds = std::env::var("WRIT_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let (open, closed) = (TcpPeer::new(), UdpPeer::new());
    let mut config = Config::new().destination("open", open.address).permit("to-open", "open");
    // Small, so that it overflows: losses are what is to be counted.
    config.agent = "[kernel]\nring-size = \"256KiB\"\n".to_owned();
    let mut host = Host::start(&config);
    let (allowed, refused) = (host.prober("tcp", open.address), host.flood("udp-send", closed.address));
    let mut wait = 7_u64;
    for _ in 0..rounds {
        allowed.wait_for_more(20);
        // Not always at the same place of the daemon's second: from 0 to 255 ms, by a fixed rule.
        wait = wait.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(wait >> 56));
        host.kill_daemon();
        allowed.wait_for_more(20);
        host.run_daemon();
    }
    let attempts = allowed.stop().attempts() + refused.stop().attempts();
    assert!(!closed.receive(), "a refused datagram arrived");
    // What is still in the ring is read; what is missing at its end is counted after a few seconds.
    let verify = || -> Value {
        let verified = host.writ_output(&["verify", "--json"]);
        let report: Value = serde_json::from_slice(&verified.stdout).expect("verify answers in JSON");
        assert!(verified.status.success(), "{report:#}");
        report
    };
    let counted =
        |report: &Value, name: &str| report.pointer(&format!("/sequences/{name}")).and_then(Value::as_u64).unwrap_or(0);
    // Every attempt of the processes has a number, and every number a record or a loss.
    let report = wait::until("every attempt is counted", || {
        let report = verify();
        (counted(&report, "seen") == attempts).then_some(report)
    });
    assert_eq!(counted(&report, "missing"), 0, "{report:#}");
    let told = counted(&report, "recorded") + counted(&report, "folded") + counted(&report, "lost");
    assert_eq!(told, attempts, "{report:#}");
    assert_eq!(host.stop_daemon(), Some(0));

    // Line by line: of many rounds there are more records than memory holds parsed.
    let mut ids = BTreeSet::new();
    for segment in fs::read_dir(host.log_directory().join("records")).expect("cannot list the log").flatten() {
        let file = File::open(segment.path()).expect("cannot open a segment");
        for line in BufReader::new(file).lines() {
            let line = line.expect("a segment is text");
            let id = line.split('"').nth(3).expect("a line begins with its id").to_owned();
            assert!(ids.insert(id), "an id was given out twice: {line}");
        }
    }

    let replayed = host.writ_output(&["replay", "--json"]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stdout));
}
