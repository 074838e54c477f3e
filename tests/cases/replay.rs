//! What the kernel decided is decided again from the log directory alone, and what was changed afterwards is found.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, wait};

/// Decisions of a log that is replayed: enough to have every form many times.
const DECISIONS: u64 = 2_000;

/// A host that allows one peer, escalates another, only observes a refusal of a third, and refuses the rest; policies that
/// ask for the time, the risk and a failing sum among them.
fn policies(config: Config) -> Config {
    config
        .file(
            "policies.d/escalate.cedar",
            "@id(\"to-ask\") @owner(\"tests\") @reason(\"allowed, if a person says so\")\n\
             permit (principal, action == Action::\"connect\", resource in Destination::\"asked\");\n\
             @id(\"ask\") @owner(\"tests\") @reason(\"a person decides\") @decision(\"escalate\")\n\
             forbid (principal, action == Action::\"connect\", resource in Destination::\"asked\");\n",
        )
        .file(
            "policies.d/observe.cedar",
            "@id(\"watch\") @owner(\"tests\") @reason(\"not yet enforced\") @mode(\"observe\")\n\
             forbid (principal, action == Action::\"connect\", resource in Destination::\"watched\")\n\
             when { context.risk < 90 && context.hour < 25 };\n",
        )
        .file(
            "policies.d/night.cedar",
            "@id(\"long-ago\") @owner(\"tests\") @reason(\"only once\")\n\
             permit (principal, action == Action::\"connect\", resource)\n\
             when { context.now < datetime(\"2001-01-01\") || context.risk > 100 };\n",
        )
}

/// What the tests look at of a host that was used.
struct Used {
    host: Host,
    open: TcpPeer,
}

/// A log with at least so many decisions of every kind, made by a kernel.
fn used(decisions: u64) -> Used {
    let (open, asked, watched, closed) = (TcpPeer::new(), TcpPeer::new(), TcpPeer::new(), UdpPeer::new());
    let config = policies(Config::new())
        .destination("open", open.address)
        .destination("asked", asked.address)
        .destination("watched", watched.address)
        .permit("to-open", "open")
        .permit("to-watched", "watched");
    let mut host = Host::start(&config);
    for (operation, to) in
        [("tcp", open.address), ("tcp", asked.address), ("mapped", watched.address), ("udp-send", closed.address)]
    {
        let prober = host.prober(operation, to);
        prober.wait_for_more(decisions / 4);
        prober.stop();
    }
    assert_eq!(host.stop_daemon(), Some(0));
    Used { host, open }
}

/// A copied log: nothing of the host's state or configuration is beside it.
fn copy(host: &Host) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("cannot make a directory");
    let copied = std::process::Command::new("cp")
        .args(["-r", &host.log_directory().display().to_string(), &copy.path().join("log").display().to_string()])
        .status();
    assert!(copied.expect("cannot run cp").success());
    copy
}

fn answer(output: &Output) -> Value {
    match serde_json::from_slice(&output.stdout) {
        Ok(answer) => answer,
        Err(error) => panic!("no JSON: {error}: {output:?}"),
    }
}

fn number(answer: &Value, pointer: &str) -> u64 {
    answer.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// The command on a copy, with a configuration directory that is not there.
fn on_copy(arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(writ_tests::host::writ_program());
    command.args(["--config-dir", "/nonexistent"]).args(arguments);
    command.output().expect("cannot run `writ`")
}

fn segments(log: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(log.join("records")).expect("cannot read the records");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("cannot read the records").path()).collect();
    paths.sort();
    paths
}

/// Replaces text in the lines of a log, as somebody with an editor would; how many lines changed.
fn edit(log: &Path, only: &str, from: &str, to: &str, most: usize) -> usize {
    let mut changed = 0;
    for path in segments(log) {
        let text = fs::read_to_string(&path).expect("cannot read a segment");
        let lines = text.lines().map(|line| {
            let wanted = changed < most && line.contains(only) && line.contains(from);
            changed += usize::from(wanted);
            if wanted { line.replacen(from, to, 1) } else { line.to_owned() }
        });
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(&path, text).expect("cannot write a segment");
    }
    changed
}

#[test]
fn every_decision_of_the_kernel_is_reproduced() {
    let Used { host, .. } = used(DECISIONS);
    let copy = copy(&host);
    let log = copy.path().join("log");

    let output = on_copy(&["replay", &log.display().to_string(), "--json"]);
    let answer = answer(&output);

    assert!(output.status.success(), "{answer:#}");
    assert!(number(&answer, "/judged") >= DECISIONS, "{answer:#}");
    assert_eq!(number(&answer, "/reproduced"), number(&answer, "/judged"), "{answer:#}");
    // The log has every kind, or it would prove little.
    let judged = host.judgements();
    for verdict in ["allow", "deny", "escalate"] {
        assert!(judged.iter().any(|record| record.text("/verdict") == verdict), "no {verdict} among the records");
    }
    assert!(judged.iter().any(|record| record.text("/would/verdict") == "deny"), "no would-be refusal");
}

#[test]
fn a_record_that_was_changed_does_not_replay() {
    let Used { host, open } = used(400);
    // Each is the work of somebody who would have the log say something else.
    let port = format!("\"port\":{}", open.address.port());
    for (only, from, to) in [
        ("\"verdict\":\"deny\"", "\"verdict\":\"deny\"", "\"verdict\":\"allow\""),
        ("\"verdict\":\"allow\"", "\"verdict\":\"allow\"", "\"verdict\":\"deny\""),
        ("\"verdict\":\"escalate\"", "\"verdict\":\"escalate\"", "\"verdict\":\"deny\""),
        ("\"id\":\"to-open\"", "\"id\":\"to-open\"", "\"id\":\"to-watched\""),
        ("\"id\":\"to-open\"", port.as_str(), "\"port\":1"),
        ("\"type\":\"decision\"", "\"groups\":[", "\"groups\":[\"prod\","),
        ("\"type\":\"decision\"", "\"account\":\"tested\"", "\"account\":\"another\""),
        ("\"type\":\"decision\"", "\"reason_code\":\"policy\"", "\"reason_code\":\"policy-error\""),
        ("\"would\":{", "\"would\":{", "\"would_not\":{"),
        ("\"verdict\":\"allow\"", "\"reason_code\":\"policy\"", "\"reason_code\":\"record-loss\""),
    ] {
        let copy = copy(&host);
        let log = copy.path().join("log");
        let what = format!("{from} → {to}");
        assert_eq!(edit(&log, only, from, to, 1), 1, "{what}: nothing to change");

        let output = on_copy(&["replay", &log.display().to_string(), "--json"]);
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        assert_eq!(number(&answer(&output), "/differing"), 1, "{what}: {output:?}");
        let verified = on_copy(&["verify", &log.display().to_string()]);
        assert_eq!(verified.status.code(), Some(1), "{what}: {verified:?}");
    }
}

#[test]
fn an_archive_that_was_changed_or_removed_does_not_replay() {
    let Used { host, .. } = used(400);
    let files = |log: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(log.join("archive")).expect("cannot read the archive");
        entries.map(|entry| entry.expect("cannot read the archive").path()).collect()
    };
    for path in files(&host.log_directory()) {
        let name = path.file_name().expect("a file has a name").to_owned();
        for remove in [true, false] {
            let copy = copy(&host);
            let log = copy.path().join("log");
            let path = log.join("archive").join(&name);
            if remove {
                fs::remove_file(&path).expect("cannot remove");
            } else {
                let mut content = fs::read(&path).expect("cannot read");
                content.push(b' ');
                fs::write(&path, content).expect("cannot write");
            }
            let output = on_copy(&["replay", &log.display().to_string(), "--json"]);
            assert_eq!(output.status.code(), Some(1), "{name:?}, removed: {remove}: {output:?}");
        }
    }
}

#[test]
fn whatif_finds_exactly_what_other_policies_change() {
    let Used { host, .. } = used(400);
    let log = host.log_directory().display().to_string();
    let policies = host.config_directory().join("policies.d");

    let same = host.writ_output(&["whatif", "--policies", &policies.display().to_string(), &log, "--json"]);
    assert!(same.status.success(), "{same:?}");
    assert_eq!(number(&answer(&same), "/changed"), 0);

    // One permit goes, an escalation becomes a plain permit.
    fs::remove_file(policies.join("to-open.cedar")).expect("cannot remove a policy");
    let asked = fs::read_to_string(policies.join("escalate.cedar")).expect("cannot read a policy");
    let (permit, _) = asked.split_once("@id(\"ask\")").expect("the policy is there");
    fs::write(policies.join("escalate.cedar"), permit).expect("cannot write a policy");
    let other = host.writ_output(&["whatif", "--policies", &policies.display().to_string(), "--json"]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    let other = answer(&other);

    let judged = host.judgements();
    let count = |policy: &str| judged.iter().filter(|record| record.policies() == [policy]).count() as u64;
    assert_eq!(number(&other, "/newly_denied"), count("to-open"), "{other:#}");
    assert_eq!(number(&other, "/newly_allowed"), count("ask"), "{other:#}");
    assert_eq!(number(&other, "/newly_escalated"), 0);
    let changes = other.pointer("/changes").and_then(Value::as_array).expect("changes are a list");
    let mut places: Vec<&str> = changes.iter().filter_map(|change| change.get("destination")?.as_str()).collect();
    places.sort_unstable();
    assert_eq!(places, ["asked, loopback", "loopback, open"], "{other:#}");

    // What does not fit the recorded configuration is refused with its place.
    fs::write(
        policies.join("bad.cedar"),
        "@id(\"x\") permit (principal, action, resource in Destination::\"nowhere\");",
    )
    .expect("cannot write a policy");
    let bad = host.writ_output(&["whatif", "--policies", &policies.display().to_string(), &log]);
    assert_eq!(bad.status.code(), Some(64), "{bad:?}");
    assert!(String::from_utf8_lossy(&bad.stderr).contains("bad.cedar:1:"), "{bad:?}");
}

/// How many decisions the log of the great replay has at least.
const MANY: u64 = 100_000;

#[test]
fn a_hundred_thousand_decisions_of_the_kernel_are_reproduced_and_a_planted_change_is_found() {
    let (open, asked, watched, closed) = (TcpPeer::new(), UdpPeer::new(), UdpPeer::new(), UdpPeer::new());
    let config = policies(Config::new())
        .destination("open", open.address)
        .destination("asked", asked.address)
        .destination("watched", watched.address)
        .permit("to-open", "open")
        .permit("to-watched", "watched");
    let mut host = Host::start(&config);
    // As fast as each goes, one after the other: what the ring cannot hold is counted, and the rest is enough.
    for (operation, to) in
        [("udp-connect", closed.address), ("udp-connect", watched.address), ("udp-connect", asked.address)]
    {
        let flood = host.flood(operation, to);
        let already = recorded(&host);
        let enough = || (recorded(&host) > already + MANY / 3).then_some(());
        assert!(wait::within(5 * wait::PATIENCE, enough).is_some(), "too few decisions: {}", host.status());
        flood.stop();
    }
    let allowed = host.prober("tcp", open.address);
    allowed.wait_for_more(200);
    allowed.stop();
    assert_eq!(host.stop_daemon(), Some(0));
    let copy = copy(&host);
    let log = copy.path().join("log").display().to_string();

    let verified = on_copy(&["verify", &log]);
    assert!(verified.status.success(), "{verified:?}");
    let output = on_copy(&["replay", &log, "--json"]);
    let replayed = answer(&output);
    assert!(output.status.success(), "{replayed:#}");
    assert!(number(&replayed, "/judged") >= MANY, "{replayed:#}");
    assert_eq!(number(&replayed, "/reproduced"), number(&replayed, "/judged"), "{replayed:#}");

    // The planted change: what was watched only is now refused. Nothing else is found.
    let planted = host.config_directory().join("policies.d");
    let watch = fs::read_to_string(planted.join("observe.cedar")).expect("cannot read a policy");
    fs::write(planted.join("observe.cedar"), watch.replace(" @mode(\"observe\")", "")).expect("cannot write a policy");
    let output = on_copy(&["whatif", "--policies", &planted.display().to_string(), &log, "--json"]);
    let found = answer(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    let at_watched = format!("\"port\":{},\"protocol\":\"udp\"", watched.address.port());
    let planted: usize = segments(Path::new(&log))
        .iter()
        .map(|path| fs::read_to_string(path).expect("cannot read a segment"))
        .map(|text| {
            text.lines().filter(|line| line.contains(&at_watched) && line.contains("\"type\":\"decision\"")).count()
        })
        .sum();
    assert!(planted as u64 > MANY / 4, "{planted} were planted");
    assert_eq!(number(&found, "/newly_denied"), planted as u64, "{found:#}");
    assert_eq!((number(&found, "/newly_allowed"), number(&found, "/newly_escalated")), (0, 0), "{found:#}");
}

fn recorded(host: &Host) -> u64 {
    host.status().pointer("/checkpoint/size").and_then(Value::as_u64).unwrap_or_default()
}

/// How many decisions the stock command is asked about: evenly spread, so that each kind is among them many times.
const SAMPLE: u64 = 60;

#[test]
fn the_stock_cedar_command_agrees_with_every_decision_of_a_sample() {
    let Used { host, .. } = used(400);
    let cedar = writ_tests::cedar::program();
    let copy = copy(&host);
    let log = copy.path().join("log");
    let files = copy.path().join("files");
    let ask = |log: &Path| {
        let (log, files) = (log.display().to_string(), files.display().to_string());
        let sample = SAMPLE.to_string();
        on_copy(&[
            "replay",
            &log,
            "--with-cedar-cli",
            "--cedar",
            &cedar,
            "--sample",
            &sample,
            "--json",
            "--cedar-files",
            &files,
        ])
    };
    let output = ask(&log);
    let agreed = answer(&output);
    assert!(output.status.success(), "{agreed:#}");
    assert_eq!(number(&agreed, "/cedar_cli/asked"), SAMPLE, "{agreed:#}");
    assert_eq!(number(&agreed, "/cedar_cli/agreed"), SAMPLE, "{agreed:#}");
    // Every kind of answer was among those asked about.
    let asked: Vec<String> = fs::read_dir(&files)
        .expect("the files are kept")
        .filter_map(|entry| entry.expect("the files are kept").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".request.json").map(str::to_owned))
        .collect();
    let judged = host.judgements();
    for verdict in ["allow", "deny", "escalate"] {
        let kind = judged.iter().filter(|record| record.text("/verdict") == verdict);
        assert!(kind.clone().any(|record| asked.iter().any(|id| id == record.text("/id"))), "no {verdict} was asked");
    }

    // The command is really asked: one that says yes to everything is found out.
    let yes = copy.path().join("yes");
    fs::write(&yes, "#!/bin/sh\nexit 0\n").expect("cannot write a program");
    fs::set_permissions(&yes, fs::Permissions::from_mode(0o755)).expect("cannot make a program");
    let (log, yes) = (log.display().to_string(), yes.display().to_string());
    let output = on_copy(&["replay", &log, "--with-cedar-cli", "--cedar", &yes, "--sample", "60", "--json"]);
    let contradicted = answer(&output);
    assert_eq!(output.status.code(), Some(1), "{contradicted:#}");
    assert!(number(&contradicted, "/cedar_cli/differing") > 0, "{contradicted:#}");
}
