//! Time ends access in the kernel, whether or not a daemon lives to see it.

use std::time::{Duration, SystemTime};

use writ_tests::{Config, Host, UdpPeer, wait};

/// An ISO time so far ahead, and when that is.
fn ahead(seconds: u64) -> (String, SystemTime) {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + seconds;
    let output = std::process::Command::new("/bin/date")
        .args(["--utc", "--date", &format!("@{at}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    (text, SystemTime::UNIX_EPOCH + Duration::from_secs(at))
}

#[test]
fn access_ends_at_its_time_with_the_daemon_dead() {
    let peer = UdpPeer::new();
    // Long enough for an emulated machine to start the daemon and make its first attempt.
    let (text, end) = ahead(if std::env::var_os("WRIT_TEST_CGROUP").is_some() { 40 } else { 20 });
    let policy = format!(
        "@id(\"for-now\") @owner(\"o\") @reason(\"r\")\npermit (principal, action == Action::\"connect\", resource in \
         Destination::\"open\")\nwhen {{ context.now < datetime(\"{text}\") }};\n"
    );
    let mut host = Host::start(&Config::new().destination("open", peer.address).file("policies.d/now.cedar", &policy));
    let mut probe = host.batch();
    let mut refused = || probe.attempt("udp-judge", peer.address).errno.as_deref() == Some("EACCES");

    assert!(SystemTime::now() >= end || !refused(), "access is open until its time");
    host.kill_daemon();
    let ended = wait::until("access ends", || {
        let before = SystemTime::now();
        refused().then(SystemTime::now).or_else(|| {
            assert!(before < end + Duration::from_secs(1), "access was open a second after its end");
            None
        })
    });
    // The kernel counts boot time; the wall clock is steered beside it, by a few parts in ten thousand.
    let early = end.duration_since(ended).unwrap_or_default();
    assert!(early <= Duration::from_millis(10), "access ended {early:?} early");
    host.run_daemon();
    assert!(refused(), "the daemon's return opens nothing");
    // The daemon may have died between reading an event and writing it: that is counted as lost, in the log.
    let seen = host.status()["records"]["seen"].as_u64().unwrap();
    host.settled_by_the_log(seen);
    let mut judgements = host.judgements();
    // The log keeps the order of each processor, and the probe may have gone from one to another.
    judgements.sort_by(|one, other| one.text("/time").cmp(other.text("/time")));
    let verdicts: Vec<&str> = judgements.iter().map(|record| record.text("/verdict")).collect();
    let denied = verdicts.iter().position(|verdict| *verdict == "deny").unwrap();
    assert!(denied > 0 && verdicts[..denied].iter().all(|verdict| *verdict == "allow"), "{verdicts:?}");
    assert_eq!(judgements[denied].text("/reason_code"), "stance-expired");
}
