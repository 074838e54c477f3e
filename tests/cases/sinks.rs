//! Records are sent on to a file and to a real journal, each once, whatever happens to the daemon, and nobody waits for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use writ_tests::{Config, Host, Journal, TcpPeer, UdpPeer, wait};

/// How often the daemon is killed.
const KILLS: usize = 3;

fn configuration(host: &Host, journal: &Journal, open: &TcpPeer) -> Config {
    let mut config = Config::new().destination("open", open.address).permit("to-open", "open");
    config.agent = format!(
        "[sink.siem]\ntype = \"ocsf-file\"\npath = \"{}\"\n[sink.journal]\ntype = \"journald\"\nsocket = \"{}\"\n",
        host.directory().join("sinks/ocsf.jsonl").display(),
        journal.socket().display(),
    );
    config
}

fn sink(status: &Value, name: &str) -> Value {
    let sinks = status.get("sinks").and_then(Value::as_array).cloned().unwrap_or_default();
    sinks.into_iter().find(|sink| sink.get("name").and_then(Value::as_str) == Some(name)).unwrap_or_default()
}

#[test]
fn a_file_and_a_journal_get_every_record_though_the_daemon_is_killed() {
    let (open, closed, journal) = (TcpPeer::new(), UdpPeer::new(), Journal::start());
    let mut host = Host::prepare(&Config::new());
    host.configure(&configuration(&host, &journal, &open));
    host.run_daemon();
    let (allowed, refused) = (host.paced(3_000, "tcp", open.address), host.paced(3_000, "udp-send", closed.address));
    for _ in 0..KILLS {
        allowed.wait_for_more(60);
        host.kill_daemon();
        allowed.wait_for_more(60);
        host.run_daemon();
    }
    allowed.stop();
    refused.stop();
    host.settled_by_the_log(host.status()["records"]["seen"].as_u64().unwrap_or_default());
    wait::until("the sinks caught up", || {
        let status = host.status();
        let waits = |name: &str| sink(&status, name)["waiting"].as_u64().unwrap_or(1);
        (waits("siem") == 0 && waits("journal") == 0).then_some(())
    });
    let status = host.status();
    for name in ["siem", "journal"] {
        let sink = sink(&status, name);
        assert_eq!((sink["ok"].as_bool(), sink["lost"].as_u64()), (Some(true), Some(0)), "{sink}");
    }
    assert_eq!(host.stop_daemon(), Some(0));

    // The file is what `tail --ocsf` says, line by line: nothing twice, nothing missing, nothing in between.
    let told = host.writ_output(&["tail", "--ocsf"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let written = fs::read_to_string(host.directory().join("sinks/ocsf.jsonl")).expect("the sink has a file");
    assert!(told.lines().count() > KILLS * 60, "too few events to prove anything");
    for (number, (told, written)) in told.lines().zip(written.lines()).enumerate() {
        assert_eq!(told, written, "event {number}");
    }
    assert_eq!(told.lines().count(), written.lines().count());

    // The journal has every record, under its own name, and twice only what a kill met between two system calls.
    let records = host.records();
    let entries = wait::until("the journal has written the last record", || {
        let entries = journal.entries("SYSLOG_IDENTIFIER=writ");
        let last = records.last().map(|record| record.text("/id").to_owned());
        entries.iter().any(|entry| entry["WRIT_ID"].as_str() == last.as_deref()).then_some(entries)
    });
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &entries {
        *times.entry(entry["WRIT_ID"].as_str().unwrap_or("none")).or_default() += 1;
    }
    for record in &records {
        assert!(times.contains_key(record.text("/id")), "not in the journal: {record:?}");
    }
    assert!(entries.len() - records.len() <= KILLS, "{} entries of {} records", entries.len(), records.len());
    let denied = entries.iter().find(|entry| entry["WRIT_VERDICT"] == "deny").expect("something was denied");
    assert_eq!(denied["WRIT_DESTINATION_ADDRESS"].as_str(), Some("127.0.0.1"), "{denied}");
    assert_eq!((denied["WRIT_ACCOUNT"].as_str(), denied["PRIORITY"].as_str()), (Some("tested"), Some("4")), "{denied}");
    let inside: Value = serde_json::from_str(denied["WRIT_RECORD"].as_str().unwrap_or_default()).expect("a record");
    assert_eq!(inside["id"], denied["WRIT_ID"]);
}

#[test]
fn a_sink_that_does_not_work_holds_up_no_decision_and_shows_its_lag() {
    let (open, journal) = (TcpPeer::new(), Journal::start());
    let mut host = Host::prepare(&Config::new());
    host.configure(&configuration(&host, &journal, &open));
    // A directory is where the file should be, and nobody listens where the journal should.
    fs::create_dir_all(host.directory().join("sinks/ocsf.jsonl")).expect("cannot make a directory");
    drop(journal);
    host.run_daemon();
    for _ in 0..20 {
        host.attempt("tcp", &[open.address]).assert_succeeded();
    }
    host.settled();
    let status = wait::until("the lag is shown", || {
        let status = host.status();
        let lags =
            |name: &str| sink(&status, name)["waiting"].as_u64() >= Some(20) && sink(&status, name)["ok"] == false;
        (lags("siem") && lags("journal")).then_some(status)
    });
    assert!(sink(&status, "siem")["error"].as_str().unwrap_or_default().contains("ocsf.jsonl"), "{status}");
    let text = host.writ_output(&["status"]);
    assert!(text.status.success());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "http://localhost/v1/metrics", "--unix-socket"]).arg(host.socket());
    let metrics = String::from_utf8_lossy(&curl.output().expect("cannot run curl").stdout).into_owned();
    assert!(metrics.contains("writ_sink_up{sink=\"siem\"} 0"), "{metrics}");
    fs::remove_dir(host.directory().join("sinks/ocsf.jsonl")).expect("cannot remove a directory");
    wait::until("the file sink caught up", || {
        (sink(&host.status(), "siem")["waiting"].as_u64() == Some(0)).then_some(())
    });
    assert_eq!(sink(&host.status(), "siem")["delivered"].as_u64(), Some(20));
}

#[test]
fn the_ocsf_schema_that_events_are_held_against_is_the_published_one() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = tests.join("../target/tools/python");
    assert!(package.exists(), "no ocsf-json-schema; `cargo xtask setup --test` gets it");
    let output = Command::new("python3").arg(tests.join("ocsf/generate.py")).env("PYTHONPATH", package).output();
    let output = output.expect("cannot run python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ours = fs::read(tests.join("ocsf/network_activity-1.8.0.schema.json")).expect("the schema is checked in");
    assert!(output.stdout == ours, "tests/ocsf/network_activity-1.8.0.schema.json is not what the package ships");
}
