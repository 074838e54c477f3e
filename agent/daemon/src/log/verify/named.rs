//! Each kind of tampering is not only noticed: what is said names it, and the file and record where it is.

use std::fs;
use std::path::{Path, PathBuf};

use writ_core::log::{Checkpoint, NoteSigner, hash_leaf, root_of};
use writ_core::record::Record;

use super::super::Layout;
use super::super::tests::{Log, ORIGIN, copy_dir};
use super::tests::{records, sound, trust};
use super::{Report, Trust, verify};

/// A copy of a sound log, and what its auditor trusts.
struct Case {
    log: Log,
    trust: Trust,
}

impl Case {
    fn new() -> Self {
        let sound = sound();
        let log = Log::new(100_000);
        copy_dir(sound.home.path(), log.home.path());
        Self { trust: trust(&sound), log }
    }

    fn segment(&self, place: usize) -> PathBuf {
        Layout::new(&self.log.dir()).segments().unwrap().swap_remove(place).1
    }

    fn edit(&self, place: usize, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> (String, u64) {
        let path = self.segment(place);
        let content = fs::read(&path).unwrap();
        let mut lines: Vec<Vec<u8>> = content.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.pop();
        change(&mut lines);
        fs::write(&path, lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect::<Vec<u8>>()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (format!("records/{name}"), name.trim_end_matches(".jsonl").parse().unwrap())
    }

    fn report(&self) -> Report {
        verify(&self.log.dir(), &self.trust).unwrap()
    }

    /// The first finding must be this one, there.
    #[track_caller]
    fn says(&self, problem: &str, file: &str, index: Option<u64>) {
        let report = self.report();
        assert!(!report.ok, "{problem}: unnoticed");
        let first = &report.findings[0];
        let told: Vec<String> =
            report.findings.iter().map(|found| format!("{}: {}", found.file, found.problem)).collect();
        assert!(first.problem.contains(problem), "expected `{problem}`: {told:#?}");
        assert_eq!((first.file.as_str(), first.index), (file, index), "{told:#?}");
    }

    /// One of the findings must be this one.
    #[track_caller]
    fn mentions(&self, problem: &str) {
        let report = self.report();
        assert!(!report.ok, "{problem}: unnoticed");
        let found = report.findings.iter().any(|found| found.problem.contains(problem));
        assert!(found, "expected `{problem}`: {:#?}", report.findings);
    }
}

#[test]
fn a_byte_of_any_member_that_was_changed_is_named_with_its_record() {
    for (from, to) in [
        ("\"verdict\":\"deny\"", "\"verdict\":\"allow\""),
        ("\"account\":\"billing\"", "\"account\":\"billinh\""),
        ("\"address\":\"10.20.0.5\"", "\"address\":\"10.20.0.6\""),
        ("\"port\":5432", "\"port\":5433"),
        ("\"policy_digest\":\"sha256-00\"", "\"policy_digest\":\"sha256-01\""),
        ("\"risk\":0", "\"risk\":1"),
        ("\"time\":\"2026", "\"time\":\"2025"),
        ("\"agent_version\":\"0.1.0\"", "\"agent_version\":\"0.1.1\""),
        ("\"pid\":100", "\"pid\":101"),
        ("{\"id\":\"0", "{\"id\":\"1"),
        ("\"boot_id\":\"boot\"", "\"boot_id\":\"boos\""),
    ] {
        let case = Case::new();
        let mut at = 0;
        let (file, first) = case.edit(1, |lines| {
            at = lines.iter().position(|line| String::from_utf8_lossy(line).contains(from)).unwrap();
            lines[at] = String::from_utf8_lossy(&lines[at]).replacen(from, to, 1).into_bytes();
        });
        case.says("the line is not the one that tile/", &file, Some(first + at as u64));
    }
}

#[test]
fn what_is_no_record_any_more_is_named_as_that() {
    for broken in [b"{}".to_vec(), b"\x00\xff".to_vec(), b"{\"id\":".to_vec()] {
        let case = Case::new();
        let (file, first) = case.edit(1, |lines| lines[3] = broken);
        case.says("not a record", &file, Some(first + 3));
    }
    // A newline where there was none, and none where there was one: two lines of one, one of two.
    let case = Case::new();
    let (file, first) = case.edit(1, |lines| {
        let at = lines[2].len() / 2;
        lines[2].insert(at, b'\n');
    });
    case.says("not a record", &file, Some(first + 2));
}

#[test]
fn lines_that_were_dropped_doubled_moved_or_added_are_named() {
    let case = Case::new();
    let (file, first) = case.edit(1, |lines| drop(lines.remove(4)));
    case.says("the line is not the one that tile/", &file, Some(first + 4));
    case.mentions("should be number");

    let case = Case::new();
    let (file, first) = case.edit(1, |lines| lines.insert(4, lines[4].clone()));
    case.says("is in the log twice", &file, Some(first + 5));

    let case = Case::new();
    let (file, first) = case.edit(1, |lines| lines.swap(6, 11));
    case.says("the line is not the one that tile/", &file, Some(first + 6));

    let case = Case::new();
    let (file, first) = case.edit(1, |lines| lines.insert(8, records(9000..9001).remove(0)));
    case.says("the line is not the one that tile/", &file, Some(first + 8));
}

#[test]
fn a_line_that_was_taken_out_of_the_last_tile_is_named_where_it_was() {
    let case = Case::new();
    let last = Layout::new(&case.log.dir()).segments().unwrap().len() - 1;
    let (file, first) = case.edit(last, |lines| drop(lines.remove(1)));
    assert!(first > 512, "the last whole tile ends before it");
    case.says("the line is not the one that tile/", &file, Some(first + 1));
    case.mentions("1 signed records are missing at the end of the log");
}

#[test]
fn an_end_that_was_cut_off_is_named_with_how_much_is_missing() {
    let case = Case::new();
    let last = Layout::new(&case.log.dir()).segments().unwrap().len() - 1;
    let (_, first) = case.edit(last, |lines| lines.truncate(lines.len() - 3));
    assert!(first < 597);
    case.says("3 signed records are missing at the end of the log", "records", Some(597));
    // Whole files, one in the middle and the last.
    let case = Case::new();
    fs::remove_file(case.segment(1)).unwrap();
    case.mentions("should be number");
    let case = Case::new();
    fs::remove_file(case.segment(0)).unwrap();
    case.mentions("are missing");
}

#[test]
fn two_hosts_logs_that_were_spliced_are_named() {
    let case = Case::new();
    // Another host's records at the same places, under the same numbers.
    let other = |line: &[u8]| {
        let mut record = Record::from_line(line).unwrap();
        record.host.id = "another".to_owned();
        record.to_line()
    };
    let (file, first) = case.edit(1, |lines| {
        for line in lines.iter_mut() {
            *line = other(line);
        }
    });
    case.says("the line is not the one that tile/", &file, Some(first));
    // With its tiles and checkpoint too: a whole other log, which is sound by itself.
    let stranger = Log::with(&records(0..700), 100_000);
    let swapped = Case::new();
    for part in ["records", "tile", "checkpoint"] {
        let (from, to) = (stranger.dir().join(part), swapped.log.dir().join(part));
        if to.is_dir() {
            fs::remove_dir_all(&to).unwrap();
        } else {
            fs::remove_file(&to).unwrap();
        }
        if from.is_dir() { copy_dir(&from, &to) } else { fs::copy(&from, &to).map(drop).unwrap() }
    }
    swapped.says("not signed by", "checkpoint", None);
}

#[test]
fn a_head_by_another_key_and_a_head_that_was_changed_are_named() {
    let resigned = |name: &str, vkey_too: bool| {
        let case = Case::new();
        let leaves: Vec<_> = case.log.lines().iter().map(|line| hash_leaf(line)).collect();
        let stranger = NoteSigner::from_seed(name, &[9; 32]).unwrap();
        let head = Checkpoint { origin: name.to_owned(), size: leaves.len() as u64, root: root_of(&leaves) };
        fs::write(case.log.dir().join("checkpoint"), head.sign(&stranger)).unwrap();
        if vkey_too {
            fs::write(case.log.dir().join("writ.vkey"), stranger.vkey().to_string()).unwrap();
        }
        case
    };
    resigned(ORIGIN, false).says("not signed by", "checkpoint", None);
    resigned(ORIGIN, true).says("not signed by", "checkpoint", None);
    resigned("writ.test/other", true).says("not signed by", "checkpoint", None);
    // A byte of the size, of the root, of the signature.
    for (from, to) in [("\n600\n", "\n599\n"), ("\n600\n", "\n601\n")] {
        let case = Case::new();
        change(&case.log.dir().join("checkpoint"), from, to);
        case.says("signature", "checkpoint", None);
    }
}

#[test]
fn an_older_state_under_the_right_key_is_named_by_what_was_signed_later() {
    let mut case = Case::new();
    case.trust.against = Some(fs::read_to_string(case.log.dir().join("checkpoint")).unwrap());
    assert!(case.report().ok);
    // Rolled back as a backup would: a sound log of 500 records, by the same key.
    let lines = case.log.lines();
    fs::remove_dir_all(case.log.dir()).unwrap();
    let (mut writer, _) = case.log.open();
    writer.append(&lines[..500]).unwrap();
    writer.close().unwrap();
    case.says("rolled back: 600 records were signed then, 500 are there now", "checkpoint", None);
}

#[test]
fn a_tile_or_bundle_that_was_changed_is_named() {
    for (tile, problem) in [("tile/0/000", "its hash of record 255"), ("tile/entries/000", "is not record 255")] {
        let case = Case::new();
        let path = case.log.dir().join(tile);
        let mut content = fs::read(&path).unwrap();
        let at = content.len() - 5;
        content[at] ^= 1;
        fs::write(&path, content).unwrap();
        case.says(problem, tile, Some(255));
        fs::remove_file(&path).unwrap();
        case.mentions("it is missing");
    }
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
