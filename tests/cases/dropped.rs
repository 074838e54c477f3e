//! The drop directory: files of configuration management become signals of whoever owns them; bad ones are named, kept aside
//! and recorded.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::chown;
use serde_json::Value;
use writ_tests::{Config, Host, Record, wait};

const KIND: &str = "[signal.\"cm.drift\"]\nrisk = 60\nttl = \"1h\"\nfrom = [\"root\"]\n";

fn host() -> (Host, PathBuf) {
    let mut config = Config::new().file("signals.d/cm.toml", KIND);
    let mut host = Host::prepare(&config);
    let directory = host.directory().join("drop");
    fs::create_dir(&directory).expect("cannot make a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).expect("cannot open the directory");
    config.paths = format!("drop = \"{}\"\n", directory.display());
    host.configure(&config);
    host.run_daemon();
    (host, directory)
}

/// As a program that does not want to be read half done.
fn put(directory: &Path, name: &str, text: &str) {
    let beside = directory.join(format!(".{name}"));
    fs::write(&beside, text).expect("cannot write a file");
    fs::rename(beside, directory.join(name)).expect("cannot rename a file");
}

#[track_caller]
fn taken(directory: &Path, name: &str) {
    wait::until("the file is taken", || (!directory.join(name).exists()).then_some(()));
}

fn refused(host: &Host) -> Vec<Record> {
    let records = host.records_of("lifecycle");
    records.into_iter().filter(|record| record.text("/operation") == "signal drop").collect()
}

#[test]
fn a_file_becomes_its_owners_signals_and_a_repeat_changes_nothing() {
    let (host, directory) = host();
    let line = "{\"account\":\"tested\",\"kind\":\"cm.drift\",\"id\":\"run-17\",\"evidence\":\"sshd_config\"}\n";
    let event = "{\"specversion\":\"1.0\",\"id\":\"e-1\",\"source\":\"/cm\",\"type\":\"cm.drift\",\"subject\":\"tested\",\
                 \"time\":\"2020-01-01T00:00:00Z\",\"data\":{\"risk\":10,\"ttl\":\"1h\"}}\n";
    put(&directory, "run-17.json", line);
    taken(&directory, "run-17.json");
    let signals = host.writ_json(&["signal", "list"]);
    assert_eq!(signals.pointer("/0/risk").and_then(Value::as_u64), Some(60), "{signals}");
    assert_eq!(signals.pointer("/0/source/uid").and_then(Value::as_u64), Some(0), "{signals}");

    put(&directory, "again.json", line);
    taken(&directory, "again.json");
    assert!(refused(&host).is_empty(), "a repeat is no mistake");
    assert_eq!(host.writ_json(&["signal", "list"]).as_array().map(Vec::len), Some(1));

    // An event of long ago is over: it is refused, by line, and what stands before it in the file is not.
    put(&directory, "late.jsonl", &format!("{line}{event}"));
    taken(&directory, "late.jsonl");
    let refused = refused(&host);
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert!(refused[0].text("/reason").starts_with("late.jsonl:2: "), "{refused:#?}");
    assert!(directory.join("rejected/late.jsonl").exists());
}

#[test]
fn what_is_not_its_owners_word_is_moved_aside_named_and_recorded() {
    let (host, directory) = host();
    let line = "{\"account\":\"tested\",\"kind\":\"cm.drift\"}\n";
    put(&directory, "a-broken.json", "{\n");
    // The account about itself: not in `from`.
    let own = directory.join(".b-own.json");
    fs::write(&own, line).expect("cannot write a file");
    chown(&own, Some(host.service_user().uid), None).expect("cannot give it away");
    fs::rename(&own, directory.join("b-own.json")).expect("cannot rename a file");
    let elsewhere = host.directory().join("elsewhere");
    fs::write(&elsewhere, line).expect("cannot write a file");
    symlink(&elsewhere, directory.join("c-link.json")).expect("cannot make a link");
    fs::hard_link(&elsewhere, directory.join("d-hard.json")).expect("cannot make a link");
    put(&directory, "e-note.txt", line);

    wait::until("all four are refused", || (refused(&host).len() >= 4).then_some(()));

    let reasons: Vec<String> = refused(&host).iter().map(|record| record.text("/reason").to_owned()).collect();
    for (name, why) in [
        ("a-broken.json:1: ", "not JSON"),
        ("b-own.json:1: ", "may not send"),
        ("c-link.json: ", ""),
        ("d-hard.json: ", "another name"),
    ] {
        assert!(reasons.iter().any(|reason| reason.starts_with(name) && reason.contains(why)), "{name}: {reasons:#?}");
    }
    let of_account = refused(&host).into_iter().find(|record| record.text("/reason").starts_with("b-own"));
    let uid = u64::from(host.service_user().uid.as_raw());
    assert_eq!(of_account.expect("it is on record").number("/by/uid"), Some(uid));
    assert!(host.writ_json(&["signal", "list"]).as_array().is_some_and(Vec::is_empty));
    assert!(directory.join("e-note.txt").exists(), "what is no signal file is left alone");
    for name in ["a-broken.json", "b-own.json", "d-hard.json"] {
        assert!(directory.join("rejected").join(name).exists(), "{name}");
    }
}

#[test]
fn a_bad_file_is_not_moved_through_a_link_in_the_place_of_rejected() {
    let (host, directory) = host();
    let target = host.directory().join("target");
    fs::create_dir(&target).expect("cannot make a directory");
    fs::write(target.join("live.json"), "state").expect("cannot write a file");
    symlink(&target, directory.join("rejected")).expect("cannot make a link");
    put(&directory, "live.json", "forged\n");
    taken(&directory, "live.json");
    assert_eq!(fs::read_to_string(target.join("live.json")).expect("it is there"), "state");
    assert!(refused(&host)[0].text("/reason").starts_with("live.json:1: "));
}

#[test]
fn a_flood_of_bad_lines_holds_up_neither_questions_nor_anybody_elses_file() {
    let (host, directory) = host();
    let flood = directory.join(".flood.jsonl");
    fs::write(&flood, "{}\n".repeat(5_000)).expect("cannot write a file");
    chown(&flood, Some(host.service_user().uid), None).expect("cannot give it away");
    fs::rename(&flood, directory.join("flood.jsonl")).expect("cannot rename a file");
    wait::until("the flood is begun", || (!refused(&host).is_empty()).then_some(()));
    put(&directory, "z.json", "{\"account\":\"tested\",\"kind\":\"cm.drift\"}\n");
    taken(&directory, "z.json");
    assert_eq!(host.writ_json(&["signal", "list"]).as_array().map(Vec::len), Some(1));
    assert!(directory.join("flood.jsonl").exists(), "the flood goes on, a part of it each second");
}
