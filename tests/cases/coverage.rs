//! The catalogue of ways out: what becomes of each on this kernel is what `docs/coverage.md` says, in either direction.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use writ_techniques::{CATALOGUE, Claim};
use writ_tests::host::writ_program;
use writ_tests::{Config, Host, cgroup, wait};

const DOCUMENT: &str = include_str!("../../docs/coverage.md");
const SECURITY: &str = include_str!("../../SECURITY.md");

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(writ_program());
    command.args(["doctor", "--coverage", "--json"]).args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Vec<Value>, Output) {
    let output = doctor(arguments).output().expect("cannot run `writ`");
    let rows = serde_json::from_slice(&output.stdout);
    (rows.unwrap_or_else(|error| panic!("{error}: {output:?}")), output)
}

/// The outcomes in the document's table: by technique, with cgroup programs alone and with the BPF LSM.
fn documented() -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let mut table = BTreeMap::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, technique, _, alone, with_lsm, ..] = cells[..] else { panic!("`{line}` has too few cells") };
        table.insert(technique.trim_matches('`'), (alone, with_lsm));
    }
    table
}

fn left_behind() -> Vec<String> {
    let places = [cgroup::mount(), "/sys/fs/bpf".into(), std::env::temp_dir()];
    let names = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    names.map(|entry| entry.path().display().to_string()).filter(|name| name.contains("writ-coverage-")).collect()
}

#[test]
fn every_technique_ends_as_documented() {
    let (mut rows, output) = run(&[]);
    // On a loaded machine a technique can fail to come about, which says nothing about what writ would have done: it is
    // tried once more. What was tried and ended otherwise stays as it is.
    let mut again = false;
    for row in rows.iter_mut().filter(|row| row["outcome"] == "untested" && row["claimed"] != "untested") {
        again = true;
        let technique = row["technique"].as_str().unwrap().to_owned();
        *row = run(&["--technique", &technique]).0.remove(0);
    }
    let lsm = rows.iter().any(|row| row["hook"].as_str().unwrap().starts_with("lsm/"));
    let documented = documented();
    let mut wrong = Vec::new();
    for row in &rows {
        let technique = row["technique"].as_str().unwrap();
        let (alone, with_lsm) = documented[technique];
        let expected = if lsm { with_lsm } else { alone };
        // What a kernel offers to nobody is refused by it, whatever writ would do.
        let offered = row["hook"] != "kernel";
        if row["outcome"] != expected && (offered || row["outcome"] != "refused") || row["weaker"] != false {
            wrong.push(format!("expected {expected}: {row}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), String::from_utf8_lossy(&output.stderr));
    assert_eq!(rows.len(), CATALOGUE.len());
    assert!(output.status.success() || again, "{output:?}");
    // The commonest ways must have been offered, or all of the above means little.
    for technique in ["tcp-connect", "udp-sendto", "tfo-sendto", "tcp-mapped", "child", "daemon-killed", "ring-full"] {
        let row = rows.iter().find(|row| row["technique"] == technique).unwrap();
        assert_eq!(row["outcome"], "covered", "{row}");
    }
    assert_eq!(left_behind(), Vec::<String>::new());
}

#[test]
fn the_catalogue_and_the_documents_agree() {
    let documented = documented();
    for technique in CATALOGUE {
        let claims = (technique.claim.name(), technique.claim_with_lsm.name());
        assert_eq!(documented.get(technique.id), Some(&claims), "docs/coverage.md on `{}`", technique.id);
        let residual = technique.claim == Claim::Residual || technique.claim_with_lsm == Claim::Residual;
        let named = SECURITY.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{}`", technique.id)));
        assert_eq!(named, residual, "SECURITY.md names the residuals, and only those: `{}`", technique.id);
    }
    assert_eq!(documented.len(), CATALOGUE.len(), "docs/coverage.md names a technique that there is not");
}

#[test]
fn a_run_beside_a_daemon_leaves_it_alone_and_nothing_behind() {
    let host = Host::start(&Config::new());
    let before = host.status();
    let (rows, output) = run(&["--technique", "udp-sendto", "--technique", "raw"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(rows.len(), 2, "{rows:?}");
    let after = host.status();
    for member in ["policy_digest", "generation", "records", "accounts"] {
        assert_eq!(before[member], after[member], "{member}");
    }
    assert_eq!(left_behind(), Vec::<String>::new());
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let mut child = doctor(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let own = format!("writ-coverage-{}", child.id());
    let pins = Path::new("/sys/fs/bpf").join(&own);
    wait::until("the stage is being set", || pins.exists().then_some(()));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = wait::until("the run ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert_eq!(left_behind(), Vec::<String>::new());
}

#[test]
fn an_unknown_technique_is_wrong_usage() {
    let output = doctor(&["--technique", "no-such-thing"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-thing"), "{output:?}");
}
