//! Claims about sinks: every record once, whatever ends the daemon or the other side, and what is missing is counted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;
use writ_core::config::{Sink, SinkKind};
use writ_core::record::{Body, Process};

use super::journald::entry;
use super::{Ending, SinkState, Sinks};
use crate::log::LogWriter;
use crate::log::tests::Log;
use crate::log::verify::tests::{record, records};

/// A log, the directories a daemon has beside it, and what it would configure.
struct Bench {
    log: Log,
    home: TempDir,
    wanted: BTreeMap<String, Sink>,
}

impl Bench {
    fn new(kind: impl Fn(&Path) -> SinkKind) -> Self {
        let home = TempDir::new().unwrap();
        let sink = Sink { kind: kind(home.path()), types: Vec::new() };
        Self { log: Log::new(20_000), home, wanted: BTreeMap::from([("out".to_owned(), sink)]) }
    }

    fn file(rotate_size: u64, keep: u32) -> Self {
        Self::new(|home| SinkKind::OcsfFile {
            path: home.join("out/ocsf.jsonl").display().to_string(),
            rotate_size,
            keep,
        })
    }

    fn start(&self, writer: &LogWriter) -> Sinks {
        let mut sinks = Sinks::new(&self.log.dir(), &self.home.path().join("state"), &writer.identity(), writer.size());
        sinks.apply(&self.wanted);
        sinks
    }

    fn output(&self) -> PathBuf {
        self.home.path().join("out/ocsf.jsonl")
    }

    /// The indices of the events in the files, oldest file first.
    fn sequences(&self, rotated: u32) -> Vec<u64> {
        let numbered = (1..=rotated).rev().map(|number| PathBuf::from(format!("{}.{number}", self.output().display())));
        let texts = numbered.chain([self.output()]).map(|path| fs::read_to_string(path).unwrap_or_default());
        texts.collect::<String>().lines().map(|line| sequence(line).unwrap()).collect()
    }
}

fn sequence(line: &str) -> Option<u64> {
    serde_json::from_str::<Value>(line).ok()?.pointer("/metadata/sequence")?.as_u64()
}

/// The indices of these records that are network activity.
fn expected(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.filter(|number| matches!(record(*number).body, Body::Decision(_))).collect()
}

fn state(sinks: &Sinks) -> SinkState {
    sinks.states().into_iter().next().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn caught_up(sinks: &Sinks, size: u64) {
    until("the sink caught up", || state(sinks).next == size);
}

#[test]
fn every_event_is_in_the_file_once_whatever_a_crash_left_at_its_end() {
    let bench = Bench::file(1 << 30, 1);
    let mut size = 0;
    for round in 0..12u64 {
        let (mut writer, _) = bench.log.open();
        let mut sinks = bench.start(&writer);
        let more = 17 * round % 40 + 1;
        writer.append(&records(size..size + more)).unwrap();
        size += more;
        match round % 4 {
            0 => sinks.finish(size),
            1 => {
                // The daemon dies: nothing is finished. What it had sent is or is not remembered.
                caught_up(&sinks, size);
                sinks.finish(0);
                let position = bench.home.path().join("state/sinks/out");
                let early = fs::read_to_string(&position).unwrap().replacen(char::is_numeric, "0", 20);
                fs::write(&position, early).unwrap();
            }
            2 => {
                // It dies within a write.
                caught_up(&sinks, size);
                sinks.finish(0);
                let mut text = fs::read(bench.output()).unwrap();
                text.truncate(text.len() - 30);
                fs::write(bench.output(), text).unwrap();
            }
            _ => {
                sinks.finish(0);
            }
        }
        writer.close().unwrap();
    }
    let (writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    caught_up(&sinks, size);
    sinks.finish(size);
    assert_eq!(bench.sequences(0), expected(0..size));
}

#[test]
fn a_file_is_rotated_and_one_that_somebody_else_moved_is_begun_anew() {
    let bench = Bench::file(100_000, 50);
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..2000)).unwrap();
    caught_up(&sinks, 2000);
    let rotated = (1..).take_while(|number| PathBuf::from(format!("{}.{number}", bench.output().display())).exists());
    let rotated = u32::try_from(rotated.count()).unwrap();
    assert!(rotated > 3, "{rotated} files were rotated");
    assert_eq!(bench.sequences(rotated), expected(0..2000));
    fs::rename(bench.output(), bench.home.path().join("out/moved")).unwrap();
    writer.append(&records(2000..2040)).unwrap();
    caught_up(&sinks, 2040);
    sinks.finish(2040);
    assert_eq!(bench.sequences(0), expected(2000..2040));
}

#[test]
fn only_so_many_rotated_files_are_kept() {
    let bench = Bench::file(64 << 10, 2);
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..3000)).unwrap();
    caught_up(&sinks, 3000);
    sinks.finish(3000);
    let names = fs::read_dir(bench.home.path().join("out")).unwrap().count();
    assert_eq!(names, 3);
    let kept = bench.sequences(2);
    assert_eq!(kept, expected(kept[0]..3000), "what is kept has no gap");
}

#[test]
fn a_sink_that_cannot_be_written_falls_behind_says_why_and_catches_up() {
    let mut bench = Bench::file(1 << 30, 1);
    bench.wanted.get_mut("out").unwrap().types = vec!["decision".to_owned()];
    fs::create_dir_all(bench.output()).unwrap();
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..50)).unwrap();
    until("the failure is said", || state(&sinks).error.is_some());
    assert_eq!((state(&sinks).next, state(&sinks).delivered), (0, 0));
    fs::remove_dir(bench.output()).unwrap();
    caught_up(&sinks, 50);
    until("nothing is wrong any more", || state(&sinks).error.is_none());
    assert_eq!((state(&sinks).delivered, state(&sinks).lost), (expected(0..50).len() as u64, 0));
    sinks.finish(50);
    assert_eq!(bench.sequences(0), expected(0..50));
}

#[test]
fn records_that_retention_removes_first_are_counted_as_lost() {
    let mut bench = Bench::file(1 << 30, 1);
    bench.log.settings.retention = Some(Duration::from_secs(3600));
    fs::create_dir_all(bench.output()).unwrap();
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..600)).unwrap();
    writer.checkpoint().unwrap();
    sinks.finish(0);
    let pruned = writer.prune(SystemTime::now() + Duration::from_secs(7200)).unwrap().unwrap();
    fs::remove_dir(bench.output()).unwrap();
    let mut sinks = bench.start(&writer);
    caught_up(&sinks, 600);
    assert_eq!(state(&sinks).lost, pruned.first_index);
    writer.append(&records(600..640)).unwrap();
    caught_up(&sinks, 640);
    sinks.finish(640);
    assert_eq!(bench.sequences(0), expected(pruned.first_index..640));
}

#[test]
fn numbers_that_a_power_cut_gave_to_other_records_are_sent_again() {
    let mut bench = Bench::file(1 << 30, 1);
    bench.log.settings.segment_size = 1 << 20;
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..40)).unwrap();
    caught_up(&sinks, 40);
    sinks.finish(40);
    writer.close().unwrap();
    // The unsigned tail did not reach the disk: the log was cut back to 30.
    let (path, text) = {
        let (_, path) = crate::log::Layout::new(&bench.log.dir()).segments().unwrap().pop().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    let kept: String = text.lines().take(30).map(|line| format!("{line}\n")).collect();
    for part in ["checkpoint", "tile"] {
        let at = bench.log.dir().join(part);
        if at.is_dir() { fs::remove_dir_all(at).unwrap() } else { fs::remove_file(at).unwrap() }
    }
    fs::write(path, kept).unwrap();
    let (mut writer, _) = bench.log.open();
    assert_eq!(writer.size(), 30);
    let mut sinks = bench.start(&writer);
    writer.append(&records(50..60)).unwrap();
    caught_up(&sinks, 40);
    sinks.finish(40);
    let uids: Vec<String> = fs::read_to_string(bench.output())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned())
        .collect();
    for number in expected(50..60) {
        assert!(uids.contains(&record(number).id), "record {number} was not sent");
    }
}

#[test]
fn a_sink_takes_only_the_types_it_is_for_and_a_reload_changes_it() {
    let mut bench = Bench::file(1 << 30, 1);
    let (mut writer, _) = bench.log.open();
    bench.wanted.get_mut("out").unwrap().types = vec!["cut".to_owned()];
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..30)).unwrap();
    caught_up(&sinks, 30);
    assert_eq!(state(&sinks).delivered, 0);
    bench.wanted.get_mut("out").unwrap().types = vec!["decision".to_owned()];
    sinks.apply(&bench.wanted);
    writer.append(&records(30..60)).unwrap();
    caught_up(&sinks, 60);
    sinks.apply(&BTreeMap::new());
    assert_eq!(sinks.states(), []);
    assert_eq!(bench.sequences(0), expected(30..60), "what was passed over is not sent later");
}

/// The fields of an entry, as the native protocol writes them.
fn fields(mut entry: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| matches!(byte, b'=' | b'\n')).unwrap();
        let name = String::from_utf8(entry[..end].to_vec()).unwrap();
        let value;
        if entry[end] == b'=' {
            let line = entry.iter().position(|byte| *byte == b'\n').unwrap();
            value = entry[end + 1..line].to_vec();
            entry = &entry[line + 1..];
        } else {
            let length = u64::from_le_bytes(entry[end + 1..end + 9].try_into().unwrap()) as usize;
            value = entry[end + 9..end + 9 + length].to_vec();
            entry = &entry[end + 10 + length..];
        }
        fields.push((name, value));
    }
    fields
}

#[test]
fn a_journal_entry_has_the_record_and_its_fields_and_no_process_can_add_one() {
    let mut evil = record(0);
    if let Body::Decision(judged) = &mut evil.body {
        let comm = "a\nWRIT_VERDICT=allow".to_owned();
        judged.process = Some(Process { pid: 7, comm, ..Process::default() });
    }
    let line = evil.to_line();
    let fields = fields(&entry(&line, "writ/x+00", 12));
    let of = |name: &str| -> Vec<String> {
        let found = fields.iter().filter(|(field, _)| field == name);
        found.map(|(_, value)| String::from_utf8(value.clone()).unwrap()).collect()
    };
    assert_eq!(of("WRIT_VERDICT"), ["deny"]);
    assert_eq!(of("WRIT_COMM"), ["a\nWRIT_VERDICT=allow"]);
    assert_eq!(of("WRIT_INDEX"), ["12"]);
    assert_eq!(of("WRIT_RECORD"), [String::from_utf8(line).unwrap()]);
    assert_eq!(of("PRIORITY"), ["4"]);
    assert_eq!(of("WRIT_DESTINATION_ADDRESS"), ["10.20.0.5"]);
    assert_eq!(of("MESSAGE_ID").len(), 1);
    assert!(!of("MESSAGE")[0].contains('\n'));
}

#[test]
fn a_journal_that_comes_late_gets_every_record_once_across_restarts() {
    let bench = Bench::new(|home| SinkKind::Journald { socket: home.join("journal").display().to_string() });
    let (mut writer, _) = bench.log.open();
    let mut sinks = bench.start(&writer);
    writer.append(&records(0..20)).unwrap();
    until("the failure is said", || state(&sinks).error.is_some());
    let journal = UnixDatagram::bind(bench.home.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut found = Vec::new();
    let mut take = |count: usize| {
        for _ in 0..count {
            let mut buffer = vec![0; 1 << 18];
            let length = journal.recv(&mut buffer).unwrap();
            let fields = fields(&buffer[..length]);
            let index = &fields.iter().find(|(name, _)| name == "WRIT_INDEX").unwrap().1;
            found.push(String::from_utf8(index.clone()).unwrap().parse::<u64>().unwrap());
        }
    };
    take(20);
    for round in 0..5u64 {
        caught_up(&sinks, 20 + round * 10);
        sinks.finish(0);
        writer.append(&records(20 + round * 10..30 + round * 10)).unwrap();
        sinks = bench.start(&writer);
        take(10);
    }
    sinks.finish(70);
    assert_eq!(found, (0..70).collect::<Vec<u64>>());
}

#[test]
fn a_sink_waits_for_an_earlier_one_that_hangs_in_the_same_file() {
    let bench = Bench::file(1 << 30, 1);
    let (mut writer, _) = bench.log.open();
    writer.append(&records(0..10)).unwrap();
    let mut sinks = bench.start(&writer);
    caught_up(&sinks, 10);
    sinks.apply(&BTreeMap::new());
    assert!(sinks.states().is_empty() && sinks.ending.is_empty(), "it ended when it was told to");
    writer.append(&records(10..20)).unwrap();
    // One that was told to, and is stuck in a write: a disk that hangs cannot be had here.
    let over = Arc::new(AtomicBool::new(false));
    let kind = bench.wanted["out"].kind.clone();
    sinks.ending.push(Ending { name: "before it was renamed".to_owned(), kind, over: Arc::clone(&over) });

    sinks.apply(&bench.wanted);

    let waits = |sinks: &Sinks| state(sinks).error.is_some_and(|why| why.contains("has not let go yet"));
    until("it says what it waits for", || waits(&sinks));
    assert_eq!(state(&sinks).next, 10);
    over.store(true, Ordering::Release);
    caught_up(&sinks, 20);
    sinks.finish(20);
    assert_eq!(bench.sequences(0), expected(0..20));
}
