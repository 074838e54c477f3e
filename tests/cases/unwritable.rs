//! A log that cannot be written: each account's `on-record-loss` decides, what is lost is counted, and it heals by itself.

use std::process::Command;

use writ_tests::{Batch, Config, Host, SmallDisk, UdpPeer, user, wait};

/// More than may wait in memory and in the smallest ring.
const FLOOD: u64 = 9_500;

/// Two accounts that may reach `open`: `tested` must be recorded, `quiet` need not be.
fn config(open: &UdpPeer) -> Config {
    let account = format!(
        "[service-account.quiet]\nowner = \"tests@example.com\"\nmatch = {{ user = \"{}\" }}\n",
        user::STRANGER
    );
    let policy = "@id(\"quiet-to-open\")\n@owner(\"tests\")\n@reason(\"the test needs it\")\npermit (principal == \
                  ServiceAccount::\"quiet\", action == Action::\"connect\", resource in Destination::\"open\");\n";
    let mut config = Config::new()
        .destination("open", open.address)
        .permit("to-open", "open")
        .file("service-accounts.d/quiet.toml", &account)
        .file("policies.d/quiet.cedar", policy);
    config.agent = "[kernel]\nring-size = \"64KiB\"".to_owned();
    config.account = "on-record-loss = \"deny\"".to_owned();
    config
}

fn passes(probe: &mut Batch, open: &UdpPeer) -> bool {
    probe.attempt("udp-judge", open.address).errno.as_deref() != Some("EACCES")
}

fn degraded(host: &Host) -> bool {
    let status = host.status();
    let reasons = status.get("degraded").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    reasons.iter().any(|reason| reason == "log-unwritable")
}

/// From a log that has just become unwritable to one that is whole again.
fn assert_decided_by_account_and_healed(host: &Host, open: &UdpPeer, mut tried: u64, heal: impl FnOnce()) {
    let (mut must, mut may) = (host.batch(), host.batch_as(&user::ensure(user::STRANGER), host.probe()));
    // What was let through before the failure was noticed is in memory.
    wait::until("whoever must be recorded is refused", || {
        tried += 1;
        (!passes(&mut must, open)).then_some(())
    });
    assert!(degraded(host));
    for _ in 0..FLOOD {
        assert!(passes(&mut may, open), "whoever need not be recorded goes on");
    }
    tried += FLOOD + 1;
    assert!(!passes(&mut must, open));

    heal();
    wait::until("whoever must be recorded has access again", || {
        tried += 1;
        passes(&mut must, open).then_some(())
    });
    let counted = host.settled();
    assert_eq!(counted.seen, tried);
    assert!(counted.lost > 0, "no memory holds so much: {counted:?}");
    host.assert_verified(counted);
    assert!(!degraded(host));
    let failed = |record: &writ_tests::Record| record.text("/event") == "write-failed";
    wait::until("that it failed is on record", || host.records().iter().any(failed).then_some(()));
    let refused = host.judgements().iter().filter(|record| record.text("/reason_code") == "record-loss").count();
    assert!(refused > 0, "who was refused for it is on record, where there was memory for it");
}

#[test]
fn a_full_disk_refuses_whom_the_account_says_and_heals_when_there_is_space() {
    let open = UdpPeer::new();
    let mut host = Host::prepare(&config(&open));
    let disk = SmallDisk::mount(&host.log_directory(), 40 << 20);
    host.run_daemon();
    disk.fill();
    assert_decided_by_account_and_healed(&host, &open, 0, || disk.empty());
}

#[test]
fn a_limit_on_file_sizes_is_a_failing_log_and_no_crash() {
    let open = UdpPeer::new();
    let host = Host::start(&config(&open));
    let limit = |bytes: &str| {
        let pid = host.daemon_pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status();
        assert!(set.expect("cannot run prlimit").success());
    };
    limit("1:unlimited");
    assert_decided_by_account_and_healed(&host, &open, 0, || limit("unlimited"));
}

#[test]
fn a_log_on_a_read_only_file_system_is_no_start_and_no_gap() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let mut host = Host::prepare(&config(&open));
    let disk = SmallDisk::mount(&host.log_directory(), 40 << 20);
    host.run_daemon();
    assert_eq!(host.stop_daemon(), Some(0));
    disk.writable(false);

    let refused = host.writ_output(&["run"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("log: ") && said.contains("Read-only file system"), "{said}");
    let mut probe = host.batch();
    assert!(passes(&mut probe, &open));
    probe.attempt("udp-judge", closed.address).assert_failed("EACCES");

    disk.writable(true);
    host.run_daemon();
    let counted = host.settled();
    assert_eq!((counted.seen, counted.recorded), (2, 2));
    host.assert_verified(counted);
}
