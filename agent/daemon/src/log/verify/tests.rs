//! Claims about verification: a sound log passes, and whatever is done to a signed one is found and placed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use writ_core::log::NoteSigner;
use writ_core::record::{
    Body, BootTag, Decision, Destination, EffectiveMode, Host, IdSource, Kernel, Lifecycle, Loss, Process, Record,
    Request, Verdict, record_id,
};

use super::super::tests::{Log, copy_dir};
use super::{Report, Trust, verify};

/// Real records: decisions on two CPUs, now and then a counted loss.
pub(crate) fn records(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(|number| record(number).to_line()).collect()
}

pub(crate) fn record(number: u64) -> Record {
    let time = jiff::Timestamp::from_millisecond(1_795_000_000_000 + number as i64).unwrap();
    let host = Host { id: "machine".to_owned(), boot_id: "boot".to_owned() };
    let (cpu, round) = ((number % 2) as u32, number / 2);
    // Each CPU loses two numbers after every tenth, where a record says so.
    let sequence = round / 10 * 11 + round % 10 + 1;
    let body = if number == 5 {
        Body::Lifecycle(Box::new(Lifecycle::Heartbeat { seen: 4, recorded: 3, lost: 1, in_flight: 0 }))
    } else if round % 10 == 9 {
        Body::Loss(Box::new(Loss {
            cpu: Some(cpu),
            from_sequence: Some(sequence),
            to_sequence: Some(sequence + 1),
            count: 2,
            reason: "ring-full".to_owned(),
            ..Loss::default()
        }))
    } else {
        Body::Decision(Box::new(decision(cpu, sequence)))
    };
    Record::new(record_id(time, BootTag::of("boot"), IdSource::Kernel { cpu, sequence }), time, host, "0.1.0", body)
}

fn decision(cpu: u32, sequence: u64) -> Decision {
    Decision {
        account: "billing".to_owned(),
        owner: None,
        identified_by: vec!["uid".to_owned()],
        also_matched: Vec::new(),
        verdict: Verdict::Deny,
        effective_mode: EffectiveMode::Enforce,
        action: "connect".to_owned(),
        destination: Some(Destination {
            address: "10.20.0.5".to_owned(),
            port: 5432,
            protocol: "tcp".to_owned(),
            ..Destination::default()
        }),
        given_address: None,
        asked_by: None,
        process: Some(Process { pid: 100, comm: "python3".to_owned(), ..Process::default() }),
        policies: Vec::new(),
        policy_digest: "sha256-00".to_owned(),
        stance_digest: "sha256-11".to_owned(),
        risk: 0,
        signals: Vec::new(),
        grant: None,
        request: Request::default(),
        kernel: Some(Kernel { cpu, sequence, hook: "cgroup/connect4".to_owned(), ..Kernel::default() }),
        reason_code: "policy".to_owned(),
        errno: Some("EACCES".to_owned()),
        would: None,
        already_open: None,
        count: 1,
        boot_time_ns: sequence,
    }
}

pub(super) fn trust(log: &Log) -> Trust {
    let private = fs::read_to_string(log.home.path().join("state/key")).unwrap();
    Trust { key: Some(NoteSigner::parse(private.trim()).unwrap().vkey()), against: None }
}

fn problems(report: &Report) -> Vec<String> {
    let place = |line: Option<u64>| line.map(|line| format!(":{line}")).unwrap_or_default();
    report.findings.iter().map(|found| format!("{}{}: {}", found.file, place(found.line), found.problem)).collect()
}

/// A log of 600 records in several segments. Number 5 has no sequence of its own, which makes one gap on CPU 1; the
/// heartbeat in its place is left out here.
pub(super) fn sound() -> Log {
    let mut lines = records(0..600);
    lines[5] = {
        let loss = Loss {
            cpu: Some(1),
            from_sequence: Some(3),
            to_sequence: Some(3),
            count: 1,
            reason: "budget".to_owned(),
            ..Loss::default()
        };
        let host = Host { id: "machine".to_owned(), boot_id: "boot".to_owned() };
        Record::new(
            "00000000000000000000000005".to_owned(),
            jiff::Timestamp::UNIX_EPOCH,
            host,
            "0.1.0",
            Body::Loss(Box::new(loss)),
        )
        .to_line()
    };
    Log::with(&lines, 100_000)
}

#[test]
fn a_sound_log_verifies_wherever_it_is_copied_to() {
    let log = sound();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    assert_eq!(problems(&report), Vec::<String>::new());
    assert_eq!((report.records, report.signed, report.unsigned_tail), (600, 600, 0));
    assert_eq!(report.sequences.missing, 0);
    assert_eq!(report.trust, "key given");
    let copy = tempfile::TempDir::new().unwrap();
    copy_dir(&log.dir(), copy.path());
    let report = verify(copy.path(), &Trust::default()).unwrap();
    assert!(report.ok);
    assert_eq!(report.trust, "integrity only: key taken from the log itself");
}

#[test]
fn an_unsigned_tail_is_counted_and_a_gap_nobody_counted_is_named() {
    let log = sound();
    let (mut writer, _) = log.open();
    writer.append(&records(640..643)).unwrap();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    assert_eq!((report.ok, report.unsigned_tail), (true, 3), "{:?}", problems(&report));
    writer.checkpoint().unwrap();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    assert!(problems(&report)[0].contains("attempts without record or loss"), "{:?}", problems(&report));
}

#[test]
fn a_changed_byte_is_placed_at_its_line() {
    let log = sound();
    let (path, content) = segment(&log, 1);
    let line = 1 + content[..content.len() / 2].iter().filter(|byte| **byte == b'\n').count();
    let text = String::from_utf8(content).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[line] = lines[line].replace("\"deny\"", "\"allow\"").replace("ring-full", "ring-none");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    let first = &report.findings[0];
    assert_eq!(
        (first.file.as_str(), first.line),
        (name(&path).as_str(), Some(line as u64 + 1)),
        "{:?}",
        problems(&report)
    );
    assert!(first.id.is_some());
}

#[test]
fn a_rollback_and_another_key_are_found_with_what_the_caller_trusts() {
    let log = sound();
    let later = fs::read_to_string(log.dir().join("checkpoint")).unwrap();
    let trusted = trust(&log);
    // Root rolls the log back to 500 records and signs that with the right key.
    let lines = log.lines();
    let rolled = Log::new(100_000);
    fs::create_dir_all(rolled.home.path().join("state")).unwrap();
    fs::copy(log.home.path().join("state/key"), rolled.home.path().join("state/key")).unwrap();
    let (mut writer, _) = rolled.open();
    writer.append(&lines[..500]).unwrap();
    writer.close().unwrap();
    assert!(verify(&rolled.dir(), &trusted).unwrap().ok);
    let against = Trust { against: Some(later), ..trusted.clone() };
    assert!(problems(&verify(&rolled.dir(), &against).unwrap())[0].contains("rolled back"));
    assert!(verify(&log.dir(), &against).unwrap().ok);
    // Root writes other lines under a key of its own.
    let forged = Log::with(&lines[100..], 100_000);
    assert!(verify(&forged.dir(), &Trust::default()).unwrap().ok, "without a key, nobody can tell");
    assert!(!verify(&forged.dir(), &trusted).unwrap().ok);
    // Root keeps the key, but changes the past.
    let mut other = lines.clone();
    other.remove(7);
    fs::remove_dir_all(rolled.dir()).unwrap();
    let (mut writer, _) = rolled.open();
    writer.append(&other).unwrap();
    writer.append(&records(700..702)).unwrap();
    writer.close().unwrap();
    assert!(problems(&verify(&rolled.dir(), &against).unwrap()).iter().any(|problem| problem.contains("rewritten")));
}

#[test]
fn a_pruned_log_verifies_and_a_segment_removed_without_a_statement_does_not() {
    let mut log = sound();
    log.settings.retention = Some(std::time::Duration::from_secs(3600));
    let (mut writer, _) = log.open();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(7200);
    let pruned = writer.prune(later).unwrap().unwrap();
    writer.close().unwrap();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    assert_eq!((report.ok, report.pruned_before), (true, pruned.first_index), "{:?}", problems(&report));
    fs::remove_file(log.dir().join("pruned")).unwrap();
    let report = verify(&log.dir(), &trust(&log)).unwrap();
    assert_eq!(problems(&report)[0], format!("records: records 0 to {} are missing", pruned.first_index - 1));
}

fn segment(log: &Log, place: usize) -> (PathBuf, Vec<u8>) {
    let (_, path) = super::super::Layout::new(&log.dir()).segments().unwrap().swap_remove(place);
    let content = fs::read(&path).unwrap();
    (path, content)
}

fn name(path: &Path) -> String {
    format!("records/{}", path.file_name().unwrap().to_string_lossy())
}

/// tests/verify_log.py knows nothing of this code: it was written from the specifications.
#[test]
fn a_second_verifier_in_another_language_agrees() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/verify_log.py");
    let second = |dir: &Path| std::process::Command::new("python3").arg(script).arg(dir).output().unwrap();
    let said = second(Path::new("--vectors"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let mut log = sound();
    let said = second(&log.dir());
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains("600 records"));
    log.settings.retention = Some(std::time::Duration::from_secs(3600));
    let (mut writer, _) = log.open();
    writer.prune(std::time::SystemTime::now() + std::time::Duration::from_secs(7200)).unwrap().unwrap();
    writer.append(&records(640..700)).unwrap();
    writer.close().unwrap();
    let said = second(&log.dir());
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let (path, content) = segment(&log, 0);
    fs::write(path, String::from_utf8(content).unwrap().replacen("deny", "alow", 1)).unwrap();
    assert!(!second(&log.dir()).status.success());
}

#[test]
fn a_log_that_is_being_written_verifies_at_every_moment() {
    let log = Log::new(100_000);
    let (mut writer, _) = log.open();
    writer.checkpoint().unwrap();
    let done = AtomicBool::new(false);
    let rounds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // From number 10 on there is no heartbeat in between, so that nothing is missing.
            let mut size = 10;
            while size < 4000 || (rounds.load(Ordering::Relaxed) < 4 && size < 40_000) {
                writer.append(&records(size..size + 9)).unwrap();
                writer.checkpoint().unwrap();
                size += 9;
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let report = verify(&log.dir(), &Trust::default()).unwrap();
            assert_eq!(problems(&report), Vec::<String>::new());
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(rounds.into_inner() >= 4);
}

#[test]
fn a_log_that_is_being_pruned_verifies_at_every_moment() {
    let mut log = Log::new(30_000);
    let hour = std::time::Duration::from_secs(3600);
    log.settings.retention = Some(hour);
    let (mut writer, _) = log.open();
    writer.append(&records(10..300)).unwrap();
    writer.checkpoint().unwrap();
    let (done, verified) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..40u64 {
                writer.append(&records(300 + turn * 100..400 + turn * 100)).unwrap();
                writer.checkpoint().unwrap();
                writer.prune(std::time::SystemTime::now() + hour * 2).unwrap();
                // The daemon looks for what is old once a minute; so one verification meets it once at most.
                let before = verified.load(Ordering::Relaxed);
                while verified.load(Ordering::Relaxed) == before {
                    std::thread::sleep(std::time::Duration::from_micros(100 + turn % 8 * 300));
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let report = verify(&log.dir(), &Trust::default());
            verified.fetch_add(1, Ordering::Relaxed);
            let found = report.map(|report| problems(&report));
            // Ended first: a claim that fails leaves nobody waiting.
            done.fetch_or(found.as_ref().is_ok_and(|found| !found.is_empty()) || found.is_err(), Ordering::Relaxed);
            assert_eq!(found.unwrap(), Vec::<String>::new());
        }
    });
}
