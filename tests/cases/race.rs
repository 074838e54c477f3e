//! A workload that connects as fast as it can while its access is taken: nothing is let through after the call has returned.

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use writ_tests::{Config, Host, UdpPeer, wait};

fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the clock can be read");
    u64::try_from(now.tv_sec()).expect("positive") * 1_000_000_000 + u64::try_from(now.tv_nsec()).expect("positive")
}

#[test]
fn no_connect_is_let_through_after_a_revoke_has_returned() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new().destination("logs", peer.address));
    let prober = host.prober("udp-judge", peer.address);
    let mut returned = Vec::new();
    for _ in 0..10 {
        let create = ["grant", "create", "--account", "tested", "--to", "logs", "--ttl", "10m", "--reason", "a race"];
        let granted = boot_ns();
        let grant = host.writ_json(&create);
        let before = prober.counts().succeeded;
        wait::until("it connects", || (prober.counts().succeeded > before + 20).then_some(()));
        let id = grant.get("id").and_then(Value::as_str).expect("a grant has an id").to_owned();
        let answer = host.request("POST", &format!("/v1/grants/{id}/revoke"), serde_json::json!({ "reason": "over" }));
        returned.push((granted, boot_ns()));
        assert_eq!(answer.status, 200, "{answer:?}");
        prober.wait_for_more(50);
    }
    prober.stop();
    let settled = host.settled();
    assert_eq!(settled.lost, 0, "a lost record could hide what is looked for");

    // A connect is let through only between a grant and the return of its revocation.
    let mut allowed = 0;
    for record in host.judgements() {
        let at = record.number("/boot_time_ns").expect("a judgement has a time");
        if record.text("/verdict") == "allow" {
            allowed += 1;
            let after = returned.iter().find(|(_, revoked)| at <= *revoked);
            assert!(after.is_some(), "let through after the last revocation: {record:?}");
        }
        for pair in returned.windows(2) {
            let ((_, revoked), (granted, _)) = (pair[0], pair[1]);
            // `granted` was read before the call, and `revoked` after it.
            let closed = revoked < at && at < granted;
            assert!(!(closed && record.text("/verdict") == "allow"), "{record:?}");
        }
    }
    assert!(allowed > 200, "{allowed}");
}
