//! What an auditor does with a copy of a log, on a machine that knows nothing of the host, and what each command ends with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, host::writ_program, wait};

/// Longer than the longest line of a record.
const LONG: usize = 80_000;
const LONGEST_LINE: usize = 65_535;

/// A copy of a log, and what the auditor has from elsewhere.
struct Copy {
    directory: tempfile::TempDir,
    log: String,
}

impl Copy {
    fn of(host: &Host) -> Self {
        let directory = tempfile::tempdir().expect("cannot make a directory");
        let log = directory.path().join("log");
        let copied = Command::new("cp").arg("-r").args([&host.log_directory(), &log]).status();
        assert!(copied.expect("cannot run cp").success());
        Self { log: log.display().to_string(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command that knows of no configuration.
    fn writ(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(writ_program());
        command.args(["--config-dir", "/nonexistent"]).args(arguments);
        command.output().expect("cannot run `writ`")
    }

    #[track_caller]
    fn ends(&self, arguments: &[&str], code: i32, words: &str) -> String {
        let output = self.writ(arguments);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: `{words}` is not in: {said}");
        said
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("cannot read a file")
}

#[test]
fn a_copied_log_is_verified_replayed_explained_and_proven_and_every_code_says_what_was_found() {
    let (open, closed) = (TcpPeer::new(), UdpPeer::new());
    let mut config = Config::new().destination("open", open.address).permit("to-open", "open");
    config.agent = "[log]\nsegment-size = \"64KiB\"\n".to_owned();
    let mut host = Host::start(&config);
    let prober = host.prober("tcp", open.address);
    prober.wait_for_more(100);
    prober.stop();
    host.attempt("udp-connect", &[closed.address]).assert_failed("EACCES");
    host.settled();
    // What was sent off the host: the key once, a checkpoint now and then.
    let early = Copy::of(&host);
    let (key, checkpoint) = (early.path("log/writ.vkey"), early.path("log/checkpoint"));
    let (key, earlier) = (text(&key), checkpoint.display().to_string());
    let key = key.trim();
    let prober = host.prober("tcp", open.address);
    prober.wait_for_more(100);
    prober.stop();
    host.settled();
    assert_eq!(host.stop_daemon(), Some(0));
    let copy = Copy::of(&host);
    let log = copy.log.as_str();
    let denied = host.judgements().into_iter().find(|record| record.text("/verdict") == "deny").expect("one is denied");
    let id = denied.text("/id");

    copy.ends(&["verify", log], 0, "integrity only: key taken from the log itself");
    copy.ends(&["verify", log, "--key", key], 0, "key given");
    copy.ends(&["verify", log, "--key", key, "--against", &earlier], 0, "\"ok\":true");
    copy.ends(&["replay", log], 0, "\"differing\":0");
    copy.ends(&["explain", id, "--log", log], 0, "It was judged: DENY.");
    copy.ends(&["report", "--log", log, "--format", "text"], 0, "to-open");
    assert_eq!(copy.writ(&["tail", "--log", log]).stdout, host.writ_output(&["tail"]).stdout);
    let proof = copy.path("proof");
    let printed = copy.writ(&["prove", id, "--log", log]);
    fs::write(&proof, &printed.stdout).expect("cannot write a file");
    let proof = proof.display().to_string();
    copy.ends(&["verify", "--proof", &proof, "--key", key], 0, id);

    // Each thing that can be wrong, by its code.
    let other_key = "writ/other+29e4ca23+AfKjZGDxsLGVdzFR8JKuzsmdGGQcKHeMzAEXNYFMI2rU";
    copy.ends(&["verify", log, "--key", other_key], 64, "not a key");
    copy.ends(&["verify", log, "--key", key, "--against", "/nonexistent"], 64, "cannot read /nonexistent");
    copy.ends(&["replay", "/nonexistent"], 64, "there is no log here");
    copy.ends(&["verify", "/nonexistent"], 64, "there is no log here");
    copy.ends(&["explain", "01M8A8KQJNV9Z0008000000009", "--log", log], 1, "no record");
    copy.ends(&["prove", "01M8A8KQJNV9Z0008000000009", "--log", log], 1, "no record");
    copy.ends(&["verify", log, "--bogus"], 64, "unexpected argument");
    // The state of before, given out for the present one, by somebody with the key's host.
    let later = copy.path("log/checkpoint").display().to_string();
    early.ends(&["verify", &early.log, "--key", key], 0, "\"ok\":true");
    early.ends(&["verify", &early.log, "--key", key, "--against", &later], 1, "rolled back");
    // A proof of another text.
    let edited = text(Path::new(&proof)).replacen("extra ", "extra AAAA", 1);
    fs::write(copy.path("edited"), edited).expect("cannot write a file");
    copy.ends(&["verify", "--proof", &copy.path("edited").display().to_string(), "--key", key], 1, "\"ok\":false");
    // One word of the denied record.
    let segment = fs::read_dir(copy.path("log/records"))
        .expect("cannot read the records")
        .map(|entry| entry.expect("cannot read the records").path())
        .find(|path| text(path).contains(id))
        .expect("it is in a segment");
    let changed = text(&segment).replacen("\"verdict\":\"deny\"", "\"verdict\":\"allow\"", 1);
    fs::write(&segment, changed).expect("cannot write a segment");
    let name = segment.file_name().expect("it has a name").to_string_lossy().into_owned();
    let said = copy.ends(&["verify", log, "--key", key], 1, id);
    assert!(said.contains(&name), "{said}");
    copy.ends(&["replay", log], 1, "verdict");
}

#[test]
fn a_pruned_log_and_one_whose_key_was_replaced_still_verify_and_say_so() {
    let open = TcpPeer::new();
    let mut config = Config::new().destination("open", open.address).permit("to-open", "open");
    config.agent = "[log]\nsegment-size = \"64KiB\"\nretention = \"1s\"\n".to_owned();
    let mut host = Host::start(&config);
    let work = |host: &Host| {
        let prober = host.prober("tcp", open.address);
        prober.wait_for_more(200);
        prober.stop();
        wait::until("all of it is in the log", || {
            let status = host.status();
            let of = |name: &str| status.pointer(&format!("/records/{name}")).and_then(Value::as_u64);
            (of("seen") == of("recorded") && of("waiting").unwrap_or(0) == 0).then_some(())
        });
    };
    work(&host);
    // The daemon looks for what is old when it starts, and each minute: not while the log is copied.
    assert_eq!(host.stop_daemon(), Some(0));
    let kept = Copy::of(&host);
    host.run_daemon();
    wait::until("old segments are removed", || {
        let pruned = host.records_of("lifecycle").iter().any(|record| record.text("/event") == "pruned");
        pruned.then_some(())
    });
    work(&host);
    assert_eq!(host.stop_daemon(), Some(0));
    let copy = Copy::of(&host);
    let key = text(&kept.path("log/writ.vkey"));
    let before = kept.path("log/checkpoint").display().to_string();
    let said = copy.ends(&["verify", &copy.log, "--key", key.trim(), "--against", &before], 0, "\"ok\":true");
    let report: Value = serde_json::from_str(&said).expect("the report is JSON");
    assert!(report.get("pruned_before").and_then(Value::as_u64) > Some(0), "{said}");
    copy.ends(&["replay", &copy.log], 0, "\"differing\":0");

    // The key is lost: a new log is begun, and the old one stays beside it and verifies by itself.
    fs::remove_file(host.directory().join("state/log.key")).expect("the key is there");
    host.run_daemon();
    host.attempt("tcp", &[open.address]).assert_succeeded();
    assert_eq!(host.stop_daemon(), Some(0));
    let copy = Copy::of(&host);
    copy.ends(&["verify", &copy.log], 0, "\"ok\":true");
    copy.ends(&["verify", &copy.log, "--key", key.trim()], 1, "not signed by");
    let old = fs::read_dir(&copy.log)
        .expect("cannot read the log")
        .map(|entry| entry.expect("cannot read the log").file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("old-key-"))
        .expect("the old log is beside the new one");
    let old = format!("{}/{old}", copy.log);
    copy.ends(&["verify", &old, "--key", key.trim(), "--against", &before], 0, "\"ok\":true");
    copy.ends(&["replay", &old], 0, "\"differing\":0");
    let said = host.records_of("lifecycle");
    assert!(said.iter().any(|record| record.text("/event") == "log-repair"), "that a log was begun is on record");
}

#[test]
fn a_record_too_long_for_its_line_says_what_was_shortened_and_is_verified_and_replayed() {
    let peer = UdpPeer::new();
    let reason = "because ".repeat(LONG / 8);
    let never = format!(
        "@id(\"never\")\n@owner(\"tests\")\n@reason(\"{reason}\")\nforbid (principal, action == Action::\"connect\", \
         resource);\n"
    );
    let mut host = Host::start(&Config::new().file("policies.d/never.cedar", &never));
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let record = wait::until("the refusal is on record", || host.judgements().pop());
    let shortened = record.0["truncated"].as_array().cloned().unwrap_or_default();
    assert!(
        shortened.iter().any(|path| path.as_str().is_some_and(|path| path.ends_with(".reason"))),
        "what was shortened is not said: {shortened:?}"
    );
    assert_eq!((record.text("/verdict"), record.policies()), ("deny", vec!["never"]), "{record:#?}");
    assert_eq!(host.stop_daemon(), Some(0));
    let lines: Vec<String> = fs::read_dir(host.log_directory().join("records"))
        .expect("there is a log")
        .flatten()
        .flat_map(|entry| {
            fs::read_to_string(entry.path()).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(lines.iter().any(|line| line.len() > LONGEST_LINE / 16), "nothing was long");
    assert!(lines.iter().all(|line| line.len() <= LONGEST_LINE), "a line is too long");
    let log = host.log_directory().display().to_string();
    for command in ["verify", "replay"] {
        let said = host.writ_output(&[command, &log]);
        assert!(said.status.success(), "{command}: {said:?}");
    }
}
