//! Claims about crashes and full disks.

use std::fs;
use std::path::{Path, PathBuf};

use writ_core::config::{Fsync, LogSettings};
use writ_core::log::{TILE_WIDTH, TileKind, TilePath};

use super::LogWriter;
use super::tests::{Log, ORIGIN, copy_dir, files_below, lines};

/// A generator good enough to choose places to break.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

#[test]
fn any_file_cut_anywhere_is_mended_and_said() {
    let whole = Log::new(60_000);
    let (mut writer, _) = whole.open();
    writer.append(&lines(0..1100)).unwrap();
    writer.checkpoint().unwrap();
    writer.append(&lines(1100..1123)).unwrap();
    drop(writer);
    let mut segments = super::Layout::new(&whole.dir()).segments().unwrap();
    let (last, before) = (segments.pop().unwrap(), segments.pop().unwrap());
    let mut dice = Dice(7);
    for round in 0..150 {
        let copy = Log::new(60_000);
        copy_dir(whole.home.path(), copy.home.path());
        let mut files = files_below(&copy.dir());
        // Closed segments were forced to the disk, and all tiles but those of the last of them; a crash cannot cut those.
        files.retain(|path| {
            let text = path.to_string_lossy();
            text.contains("checkpoint")
                || path.file_name() == last.1.file_name()
                || tile_from(path, before.0 / TILE_WIDTH)
        });
        let path = &files[dice.below(files.len() as u64) as usize];
        let length = fs::metadata(path).unwrap().len();
        let cut = dice.below(length);
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(cut).unwrap();
        let (mut writer, recovery) = copy.open();
        let said = format!("round {round}: {} cut to {cut} of {length}: {recovery:?}", path.display());
        assert!(!recovery.is_clean(), "{said}");
        assert_eq!(recovery.set_aside, None, "{said}");
        assert!(recovery.records >= 1100, "{said}");
        writer.append(&lines(5000..5010)).unwrap();
        writer.checkpoint().unwrap();
        assert_eq!(copy.assert_sound(), recovery.records + 10, "{said}");
    }
}

fn tile_from(path: &Path, index: u64) -> bool {
    let text = path.to_string_lossy();
    let name = text.split_once("/tile/").and_then(|(_, name)| TilePath::parse(name));
    name.is_some_and(|tile| matches!(tile.kind, TileKind::Hashes(0) | TileKind::Entries) && tile.index >= index)
}

/// Runs the test of this name again, alone, where `/mnt` is a file system of six megabytes.
fn on_a_small_disk(test: &str) {
    let script = "mount -t tmpfs -o size=6m tmpfs /mnt && WRIT_SMALL_DISK=/mnt exec \"$0\" --exact \"$1\"";
    let me = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(me).arg(test);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn a_full_disk_costs_no_written_line_and_writing_goes_on_when_there_is_space() {
    let Some(disk) = std::env::var_os("WRIT_SMALL_DISK").map(PathBuf::from) else {
        let name = "log::fault_tests::a_full_disk_costs_no_written_line_and_writing_goes_on_when_there_is_space";
        return on_a_small_disk(name);
    };
    let settings = LogSettings { fsync: Fsync::Checkpoint, segment_size: 100_000, ..LogSettings::default() };
    let key = super::KeySource::Own(disk.join("state/key"));
    let open = || LogWriter::open(&disk.join("log"), &key, settings.clone(), ORIGIN).unwrap();
    let (mut writer, _) = open();
    let real = super::verify::tests::records;
    fs::write(disk.join("ballast"), vec![0; 5_000_000]).unwrap();
    let mut size = 0;
    let mut failures = 0;
    while failures < 20 {
        match writer.append(&real(size..size + 7)) {
            Ok(first) => assert_eq!(first, size),
            Err(error) => {
                assert_eq!(error.source.errno(), Some(28), "{error}");
                size += error.written as u64;
                failures += 1;
                continue;
            }
        }
        size += 7;
        let _full_sooner_or_later = writer.checkpoint();
    }
    assert!(writer.signed() < Some(size), "lines were still taken when tiles could not be written");
    // Even a restart needs no space.
    drop(writer);
    let (mut writer, recovery) = open();
    assert_eq!((recovery.records, recovery.cut_bytes, recovery.set_aside), (size, 0, None));
    fs::remove_file(disk.join("ballast")).unwrap();
    writer.append(&real(size..size + 300)).unwrap();
    assert_eq!(writer.checkpoint().unwrap(), size + 300);
    let written = super::Layout::new(&disk.join("log")).segments().unwrap().into_iter().flat_map(|(_, path)| {
        let content = fs::read(path).unwrap();
        content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>()
    });
    assert_eq!(written.collect::<Vec<_>>(), real(0..size + 300));
    let report = super::verify(&disk.join("log"), &super::Trust::default()).unwrap();
    let problems: Vec<_> = report.findings.iter().map(|finding| &finding.problem).collect();
    // Record 5 of these is a heartbeat, so one number on CPU 1 has no record; everything else is complete.
    assert_eq!(problems, ["boot boot: attempts without record or loss: 1 on CPU 1 from 3"]);
}
