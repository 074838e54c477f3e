//! A log that cannot be written: each account's `on-record-loss` decides, what is lost is counted, and it heals by itself.

use std::process::Command;

use serde_json::{Value, json};
use writ_tests::{Batch, Config, FailingDisk, Host, Settled, SmallDisk, UdpPeer, user, wait};

/// More than may wait in memory and in the smallest ring.
const FLOOD: u64 = 9_500;
/// Less than that.
const FEW: u64 = 1_500;

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
    let reasons = status.get("degraded").and_then(Value::as_array).cloned().unwrap_or_default();
    reasons.iter().any(|reason| reason == "log-unwritable")
}

/// From a log that has just become unwritable to one that is whole again; what was counted then.
fn assert_decided_by_account_and_healed(
    host: &Host,
    open: &UdpPeer,
    flood: u64,
    mut tried: u64,
    meanwhile: impl FnOnce(),
    heal: impl FnOnce(),
) -> Settled {
    let (mut must, mut may) = (host.batch(), host.batch_as(&user::ensure(user::STRANGER), host.probe()));
    // What was let through before the failure was noticed is in memory.
    wait::until("whoever must be recorded is refused", || {
        tried += 1;
        (!passes(&mut must, open)).then_some(())
    });
    assert!(degraded(host));
    for _ in 0..flood {
        assert!(passes(&mut may, open), "whoever need not be recorded goes on");
    }
    tried += flood + 1;
    assert!(!passes(&mut must, open));
    meanwhile();

    heal();
    wait::until("whoever must be recorded has access again", || {
        tried += 1;
        passes(&mut must, open).then_some(())
    });
    let counted = host.settled();
    assert_eq!(counted.seen, tried);
    assert!(counted.lost > 0 || flood < FLOOD, "no memory holds so much: {counted:?}");
    host.assert_verified(counted);
    assert!(!degraded(host));
    let failed = |record: &writ_tests::Record| record.text("/event") == "write-failed";
    wait::until("that it failed is on record", || host.records().iter().any(failed).then_some(()));
    let refused = host.judgements().iter().filter(|record| record.text("/reason_code") == "record-loss").count();
    assert!(refused > 0, "who was refused for it is on record, where there was memory for it");
    counted
}

#[test]
fn a_full_disk_refuses_whom_the_account_says_and_heals_when_there_is_space() {
    let open = UdpPeer::new();
    let mut host = Host::prepare(&config(&open));
    let disk = SmallDisk::mount(&host.log_directory(), 40 << 20);
    host.run_daemon();
    disk.fill();
    assert_decided_by_account_and_healed(&host, &open, FLOOD, 0, || (), || disk.empty());
}

/// Limits how large the daemon's files may grow: soft and hard limit, as prlimit(1) takes them.
fn limit_files(host: &Host, bytes: &str) {
    let pid = host.daemon_pid().to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status();
    assert!(set.expect("cannot run prlimit").success());
}

#[test]
fn a_limit_on_file_sizes_is_a_failing_log_and_no_crash() {
    let open = UdpPeer::new();
    let host = Host::start(&config(&open));
    let limit = |bytes: &str| limit_files(&host, bytes);
    limit("1:unlimited");
    assert_decided_by_account_and_healed(&host, &open, FLOOD, 0, || (), || limit("unlimited"));
}

#[test]
fn a_device_that_loses_what_it_was_given_is_noticed_and_everything_is_on_it_when_it_works_again() {
    let open = UdpPeer::new();
    let mut config = config(&open);
    // Room for all of it: what is looked at here is the disk.
    config.agent = "[kernel]\nring-size = \"4MiB\"".to_owned();
    let mut host = Host::prepare(&config);
    let disk = FailingDisk::mount(&host.log_directory());
    host.run_daemon();
    // Some of the log is on the device before it fails: more than one tile. The ring is small, so not all at once.
    let mut probe = host.batch();
    let mut before = 0;
    for _ in 0..6 {
        for _ in 0..50 {
            assert!(passes(&mut probe, &open));
            before += 1;
        }
        host.settled();
    }

    let segment = host.log_directory().join("records/00000000000000000000.jsonl");
    disk.fail_ahead_of(&segment);
    // Lines that were taken are lost under the daemon.
    let segment_fails = || {
        let said = || host.status().pointer("/sinks/0/error").and_then(Value::as_str).unwrap_or_default().to_owned();
        wait::until("the lines cannot be forced to the disk", || said().contains("forced to the disk").then_some(()));
    };
    let counted = assert_decided_by_account_and_healed(&host, &open, FEW, before, segment_fails, || disk.heal());
    assert_eq!(counted.lost, 0, "there was memory for all of it");
    let said = host.records().into_iter().find(|record| record.text("/event") == "write-failed");
    let said = said.expect("that it failed is on record");
    assert!(
        said.text("/error").contains("forced to the disk"),
        "it is the device that failed: {}",
        said.text("/error")
    );

    // What the page cache shows is not what is on the disk: Linux drops what it could not write.
    let before = host.records();
    assert_eq!(host.stop_daemon(), Some(0));
    disk.forget();
    host.assert_verified(counted);
    let after = host.records();
    assert_eq!(after.len(), before.len() + 1, "the stop, and nothing else");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.text("/id"), after.text("/id"));
    }
    // And it can be continued.
    host.run_daemon();
    let mut probe = host.batch();
    assert!(passes(&mut probe, &open));
    assert!(!host.log_directory().join("damaged").exists());
}

#[test]
fn an_answer_of_the_decision_point_and_its_record_agree_though_the_log_fails_under_it() {
    let open = UdpPeer::new();
    let host = Host::start(&config(&open));
    let limit = |bytes: &str| limit_files(&host, bytes);
    let mut given = Vec::new();
    let mut ask = |account: &str| {
        let question = json!({
            "subject": { "type": "service_account", "id": account },
            "action": { "name": "connect" },
            "resource": { "type": "Endpoint", "id": format!("{}/udp", open.address) },
        });
        let answer = host.request("POST", "/access/v1/evaluation", question);
        assert_eq!(answer.status, 200, "{answer:?}");
        let id = answer.body.pointer("/context/decision_id").and_then(Value::as_str);
        given.push((id.expect("the decision has an id").to_owned(), answer.body.clone()));
        answer.body.get("decision").and_then(Value::as_bool).expect("there is a decision")
    };
    assert!(ask("tested") && ask("quiet"));
    // Nothing is written until somebody asks: the first question is the one that the log fails under.
    limit("1:unlimited");
    assert!(!ask("tested"), "no record, no access");
    assert!(ask("quiet"), "whoever need not be recorded goes on");
    assert!(!ask("tested"));
    limit("unlimited");
    wait::until("whoever must be recorded has access again", || ask("tested").then_some(()));
    wait::until("the log works again", || (!degraded(&host)).then_some(()));

    let records = host.judgements();
    let mut refused = 0;
    for (id, body) in &given {
        let record = records.iter().find(|record| record.text("/id") == id).expect("every answer is on record");
        let said = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        assert_eq!(record.text("/verdict"), said("/context/verdict"), "{body:#}");
        assert_eq!(record.text("/reason_code"), said("/context/reason_codes/0"), "{body:#}");
        assert_eq!(record.policies().is_empty(), record.text("/verdict") == "deny", "{body:#}");
        refused += usize::from(record.text("/reason_code") == "record-loss");
    }
    assert!(refused >= 2);
    let replayed = host.writ_json(&["replay", "--json"]);
    assert_eq!(replayed.pointer("/differing").and_then(Value::as_u64), Some(0), "{replayed:#}");
    assert!(host.writ_output(&["verify"]).status.success());
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

#[test]
fn what_a_restart_would_forget_is_not_called_done() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&config(&peer));
    let (state, aside) = (host.directory().join("state"), host.directory().join("aside"));
    let unkept = |host: &Host| host.status()["degraded"].to_string().contains("state-unkept");
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();

    std::fs::rename(&state, &aside).unwrap();
    let offboarded = host.writ_output(&["account", "offboard", "tested", "--reason", "left"]);
    let said = String::from_utf8_lossy(&offboarded.stderr).into_owned();
    assert_eq!(offboarded.status.code(), Some(70), "{said}");
    assert!(said.contains("a restart would forget it"), "{said}");
    assert!(unkept(&host));
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    // What would open something is not made at all.
    let arguments =
        ["grant", "create", "--account", "quiet", "--to", "127.0.0.9:9/udp", "--ttl", "5m", "--reason", "r"];
    assert!(!host.writ_output(&arguments).status.success());
    assert_eq!(host.writ_json(&["grant", "list", "--json"]), json!([]));

    std::fs::rename(&aside, &state).unwrap();
    wait::until("it is kept after all", || (!unkept(&host)).then_some(()));
    host.kill_daemon();
    host.run_daemon();
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
}
