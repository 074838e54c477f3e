//! Break-glass for all, with the daemon dead: the kernel ends it, and every daemon that finds it says so.

use serde_json::{Value, json};
use writ_tests::{Config, Host, Record, UdpPeer, config, wait};

fn of_event(host: &Host, event: &str) -> Vec<Record> {
    let records = host.records_of("lifecycle");
    records.into_iter().filter(|record| record.text("/event") == event).collect()
}

#[test]
fn broken_glass_is_found_by_the_next_daemon_and_ends_without_one() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&Config::new());
    let mut probe = host.batch();
    let mut refused = || probe.attempt("udp-judge", peer.address).errno.as_deref() == Some("EACCES");
    assert!(refused());

    // Long enough for a daemon to start twice.
    let ttl = if std::env::var_os("WRIT_TEST_CGROUP").is_some() { "120s" } else { "25s" };
    host.writ_json(&["break-glass", "--all", "--ttl", ttl, "--reason", "outage 7"]);
    assert!(!refused());
    host.kill_daemon();
    assert!(!refused());
    host.run_daemon();
    assert!(!refused());
    let status = host.status();
    assert_eq!((&status["not_enforced"], &status["effective_mode"]), (&json!([config::ACCOUNT]), &json!("observe")));
    let broken = of_event(&host, "break-glass");
    let resumed: Vec<Option<bool>> = broken.iter().map(|record| record.0["resumed"].as_bool()).collect();
    assert_eq!(resumed, [None, Some(true)], "{broken:#?}");
    let ends = |record: &Record| (record.text("/expires").to_owned(), record.text("/reason").to_owned());
    assert_eq!(ends(&broken[0]), ends(&broken[1]), "a restart makes it no longer");

    host.kill_daemon();
    wait::until("the kernel ends it", || refused().then_some(()));
    host.run_daemon();
    assert!(refused());
    assert_eq!(host.status()["not_enforced"], json!([]));
    let ended = of_event(&host, "break-glass-ended");
    assert_eq!(ended.len(), 1, "{ended:#?}");
    assert_eq!((ended[0].text("/ended"), ended[0].text("/reason")), (broken[0].text("/expires"), "outage 7"));
    assert_eq!(ended[0].0.get("account"), None::<&Value>);
    // And whose access that changed.
    let changes = host.records_of("change");
    let last = changes.last().expect("there are changes");
    assert_eq!((last.text("/account"), last.text("/cause")), (config::ACCOUNT, "start"), "{changes:#?}");
    assert_eq!((last.text("/before/mode"), last.text("/after/mode")), ("observe", "enforce"));
}
