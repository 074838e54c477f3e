//! Claims about the writer: what it wrote verifies, what a crash left is mended and said, what failed can be tried again.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use writ_core::config::{Fsync, LogSettings};
use writ_core::log::{Checkpoint, Edge, TILE_WIDTH, TileKind, TilePath, hash_leaf, widths};

use super::{LogError, LogWriter, Recovery, SegmentLines};

pub(crate) const ORIGIN: &str = "writ.test/host-1";

/// A log in a directory of its own.
pub(crate) struct Log {
    pub(crate) home: TempDir,
    pub(crate) settings: LogSettings,
}

impl Log {
    pub(crate) fn new(segment_size: u64) -> Self {
        let settings = LogSettings { fsync: Fsync::Never, segment_size, ..LogSettings::default() };
        Self { home: TempDir::new().unwrap(), settings }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("log")
    }

    pub(crate) fn open(&self) -> (LogWriter, Recovery) {
        self.open_as(ORIGIN).unwrap()
    }

    pub(crate) fn open_as(&self, origin: &str) -> Result<(LogWriter, Recovery), LogError> {
        let key = super::KeySource::Own(self.home.path().join("state/key"));
        LogWriter::open(&self.dir(), &key, self.settings.clone(), origin)
    }

    /// A log of so many records, closed.
    pub(crate) fn of(records: u64, segment_size: u64) -> Self {
        Self::with(&lines(0..records), segment_size)
    }

    /// A log of these lines, closed.
    pub(crate) fn with(lines: &[Vec<u8>], segment_size: u64) -> Self {
        let log = Self::new(segment_size);
        let (mut writer, _) = log.open();
        writer.append(lines).unwrap();
        writer.close().unwrap();
        log
    }

    /// Every line, segments in order.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for (first, path) in super::Layout::new(&self.dir()).segments().unwrap() {
            assert_eq!(first, found.len() as u64, "{}", path.display());
            let mut lines = SegmentLines::open(&path).unwrap();
            while let Some(line) = lines.next_line().unwrap() {
                found.push(line.to_vec());
            }
        }
        found
    }

    /// The checkpoint, checked against the lines and against every tile its size needs.
    pub(crate) fn assert_sound(&self) -> u64 {
        let signer =
            writ_core::log::NoteSigner::parse(fs::read_to_string(self.home.path().join("state/key")).unwrap().trim());
        let note = fs::read_to_string(self.dir().join("checkpoint")).unwrap();
        let checkpoint = Checkpoint::open(&note, &signer.unwrap().vkey()).unwrap();
        let lines = self.lines();
        let mut edge = Edge::default();
        for line in lines.iter().take(checkpoint.size as usize) {
            edge.push(hash_leaf(line), |_| {});
        }
        assert_eq!((edge.size(), edge.root()), (checkpoint.size, checkpoint.root));
        let mut wanted = Vec::new();
        for (level, count) in widths(checkpoint.size) {
            wanted.extend((0..count / TILE_WIDTH).map(|index| TilePath::full(TileKind::Hashes(level), index)));
            let width = (count % TILE_WIDTH) as u16;
            if width > 0 {
                wanted.push(TilePath { kind: TileKind::Hashes(level), index: count / TILE_WIDTH, width });
            }
        }
        wanted.extend((0..checkpoint.size / TILE_WIDTH).map(|index| TilePath::full(TileKind::Entries, index)));
        wanted.extend(super::tiles::partial_bundle(checkpoint.size));
        for tile in wanted {
            let content = fs::read(self.dir().join("tile").join(tile.to_string())).unwrap_or_else(|_| panic!("{tile}"));
            match tile.kind {
                TileKind::Hashes(_) => assert_eq!(content.len(), usize::from(tile.width) * 32, "{tile}"),
                TileKind::Entries => {
                    let first = (tile.index * TILE_WIDTH) as usize;
                    let entries = writ_core::log::decode_bundle(&content).unwrap();
                    assert_eq!(entries, &lines[first..first + usize::from(tile.width)], "{tile}");
                }
            }
        }
        checkpoint.size
    }
}

/// Lines that are records as far as a log cares.
pub(crate) fn lines(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let line = |number: u64| {
        format!(
            "{{\"id\":\"{number:026}\",\"type\":\"decision\",\"time\":\"2026-11-23T00:00:00.000000000Z\",\"schema\":1,\
             \"host\":{{\"id\":\"m\",\"boot_id\":\"b\"}},\"kernel\":{{\"cpu\":{},\"sequence\":{}}}}}",
            number % 2,
            number / 2 + 1
        )
        .into_bytes()
    };
    numbers.map(line).collect()
}

pub(super) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_new_log_has_a_key_that_only_root_reads_and_a_clean_recovery() {
    use std::os::unix::fs::PermissionsExt;
    let log = Log::new(1 << 20);
    let (mut writer, recovery) = log.open();
    assert!(recovery.is_clean());
    assert_eq!(writer.append(&lines(0..3)).unwrap(), 0);
    assert_eq!(writer.checkpoint().unwrap(), 3);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(log.home.path().join("state/key")), 0o600);
    assert_eq!(mode(log.dir().join("checkpoint")), 0o640);
    assert_eq!(mode(log.dir().join("records/00000000000000000000.jsonl")), 0o640);
    assert_eq!(mode(log.dir().join("records")), 0o750);
    assert_eq!(log.assert_sound(), 3);
    assert!(matches!(log.open_as(ORIGIN), Err(LogError::Locked { .. })));
}

#[test]
fn every_size_of_a_log_has_its_tiles_and_no_others_but_full_ones() {
    let log = Log::new(1 << 20);
    let (mut writer, _) = log.open();
    let mut size = 0;
    for step in [1, 1, 253, 1, 1, 255, 300, 1, 999, 65_536 - 1812, 1, 3] {
        writer.append(&lines(size..size + step)).unwrap();
        size += step;
        writer.checkpoint().unwrap();
        assert_eq!(log.assert_sound(), size);
        let partial: Vec<PathBuf> = files_below(&log.dir().join("tile"))
            .into_iter()
            .filter(|path| path.to_string_lossy().contains(".p/"))
            .collect();
        let levels = widths(size).filter(|(_, count)| count % TILE_WIDTH != 0).count();
        let bundles = usize::from(size % TILE_WIDTH != 0);
        assert_eq!(partial.len(), levels + bundles, "{partial:?}");
    }
    assert!(log.lines().len() == size as usize && super::Layout::new(&log.dir()).segments().unwrap().len() > 1);
}

#[test]
fn a_checkpoint_is_made_by_the_way_whenever_two_tiles_are_full() {
    let log = Log::new(1 << 30);
    let (mut writer, _) = log.open();
    writer.append(&lines(0..2500)).unwrap();
    // Each where a tile ends, and made beside the next lines.
    writer.finish_checkpoint(true).unwrap();
    assert_eq!(writer.signed(), Some(2048));
    assert_eq!(log.assert_sound(), 2048);
}

#[test]
fn a_stopped_log_goes_on_where_it_ended() {
    for records in [1, 255, 256, 257, 2000] {
        let log = Log::of(records, 40_000);
        let (mut writer, recovery) = log.open();
        assert!(recovery.is_clean(), "{recovery:?}");
        assert_eq!(writer.append(&lines(records..records + 300)).unwrap(), records);
        writer.close().unwrap();
        assert_eq!(log.assert_sound(), records + 300);
        assert_eq!(log.lines(), lines(0..records + 300));
    }
}

#[test]
fn lines_after_the_last_checkpoint_are_kept_and_counted() {
    let log = Log::new(1 << 20);
    let (mut writer, _) = log.open();
    writer.append(&lines(0..10)).unwrap();
    writer.checkpoint().unwrap();
    writer.append(&lines(10..17)).unwrap();
    drop(writer);
    let (mut writer, recovery) = log.open();
    assert_eq!((recovery.records, recovery.unsigned_tail, recovery.cut_bytes), (17, 7, 0));
    let mut ledger = writ_core::record::Ledger::default();
    super::replay_attempts(writer.layout(), 0, "b", &mut ledger).unwrap();
    assert_eq!((ledger.highest()[&0], ledger.highest()[&1]), (9, 8));
    writer.checkpoint().unwrap();
    assert_eq!(log.assert_sound(), 17);
}

#[test]
fn a_torn_last_line_is_cut_off_and_said() {
    let log = Log::new(1 << 20);
    let (mut writer, _) = log.open();
    writer.append(&lines(0..10)).unwrap();
    drop(writer);
    let segment = log.dir().join("records/00000000000000000000.jsonl");
    let mut content = fs::read(&segment).unwrap();
    content.truncate(content.len() - 5);
    fs::write(&segment, &content).unwrap();
    let (mut writer, recovery) = log.open();
    assert_eq!(recovery.records, 9);
    assert_eq!(recovery.cut_bytes as usize, lines(9..10)[0].len() + 1 - 5);
    assert_eq!(recovery.repairs.len(), 2, "{recovery:?}");
    writer.append(&lines(9..12)).unwrap();
    writer.checkpoint().unwrap();
    assert_eq!(log.assert_sound(), 12);
}

#[test]
fn zeros_that_a_power_cut_left_are_cut_off() {
    let log = Log::of(10, 1 << 20);
    let segment = log.dir().join("records/00000000000000000000.jsonl");
    let mut content = fs::read(&segment).unwrap();
    content.extend_from_slice(&[0; 300]);
    content.extend_from_slice(b"\n{}\n");
    fs::write(&segment, &content).unwrap();
    let (_, recovery) = log.open();
    assert_eq!((recovery.records, recovery.cut_bytes), (10, 304));
    assert_eq!(log.assert_sound(), 10);
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

#[test]
fn a_log_whose_signed_lines_were_changed_is_set_aside_and_not_signed_over() {
    let log = Log::of(600, 1 << 20);
    let segment = log.dir().join("records/00000000000000000000.jsonl");
    let mut content = fs::read(&segment).unwrap();
    let place = content.len() / 2;
    content[place] = if content[place] == b'1' { b'2' } else { b'1' };
    fs::write(&segment, &content).unwrap();
    let (mut writer, recovery) = log.open();
    assert_eq!((recovery.records, recovery.set_aside.as_deref()), (0, Some("damaged")));
    writer.append(&lines(0..1)).unwrap();
    writer.close().unwrap();
    assert_eq!(log.assert_sound(), 1);
    assert_eq!(fs::read(log.dir().join("damaged/records/00000000000000000000.jsonl")).unwrap(), content);
}

#[test]
fn a_cloned_host_begins_its_own_log_with_its_own_key() {
    let log = Log::of(5, 1 << 20);
    let before = fs::read_to_string(log.dir().join("writ.vkey")).unwrap();
    let (writer, recovery) = log.open_as("writ.test/host-2").unwrap();
    assert_eq!(recovery.set_aside.as_deref(), Some("old-writ.test_host-1"));
    assert_eq!((recovery.records, writer.size()), (0, 0));
    assert_eq!(fs::read_to_string(log.dir().join("old-writ.test_host-1/writ.vkey")).unwrap(), before);
    let after = fs::read_to_string(log.dir().join("writ.vkey")).unwrap();
    // NAME+HASH+KEY; the key is base64, which has a `+` too.
    assert_ne!(before.splitn(3, '+').nth(2), after.splitn(3, '+').nth(2));
}

#[test]
fn a_lost_tile_of_the_edge_is_made_again_from_all_lines() {
    let log = Log::of(70_000, 1 << 20);
    fs::remove_file(log.dir().join("tile/2/000.p/1")).unwrap();
    let (_, recovery) = log.open();
    assert_eq!(recovery.set_aside, None, "{recovery:?}");
    assert!(!recovery.is_clean());
    assert_eq!(log.assert_sound(), 70_000);
}

#[test]
fn lines_that_cannot_be_entries_are_refused_whole() {
    let log = Log::new(1 << 20);
    let (mut writer, _) = log.open();
    for bad in [vec![], b"{}\n".to_vec(), vec![b'x'; 65_536]] {
        let error = writer.append(&[b"{}".to_vec(), bad]).unwrap_err();
        assert!(matches!(error.source, LogError::Line { place: 1, .. }) && error.written == 0);
    }
    assert_eq!(writer.size(), 0);
    writer.append(&[vec![b'x'; 65_535]]).unwrap();
}

#[test]
fn a_segment_is_closed_by_age_also_by_a_writer_that_is_younger_than_it() {
    let mut log = Log::new(1 << 20);
    log.settings.segment_age = std::time::Duration::from_secs(3600);
    let (mut writer, _) = log.open();
    let now = std::time::SystemTime::now();
    let old = super::verify::tests::record(0);
    let time = jiff::Timestamp::try_from(now - std::time::Duration::from_secs(4000)).unwrap();
    let old = writ_core::record::Record { time: writ_core::record::Time(time), ..old };
    writer.append(&[old.to_line()]).unwrap();
    writer.close().unwrap();
    let segments = || super::Layout::new(&log.dir()).segments().unwrap().len();
    let (mut writer, _) = log.open();
    assert_eq!(segments(), 1);
    assert_eq!(writer.prune(now).unwrap(), None);
    assert_eq!(segments(), 2, "its first line is more than an hour old");
    assert_eq!(writer.prune(now).unwrap(), None);
    assert_eq!(segments(), 2, "an empty segment is not closed");
}

#[test]
fn old_segments_are_removed_only_after_saying_so_and_their_hashes_stay() {
    let mut log = Log::new(40_000);
    log.settings.retention = Some(std::time::Duration::from_secs(3600));
    let (mut writer, _) = log.open();
    writer.append(&lines(0..2000)).unwrap();
    writer.checkpoint().unwrap();
    assert_eq!(writer.prune(std::time::SystemTime::now()).unwrap(), None);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(7200);
    let pruned = writer.prune(later).unwrap().unwrap();
    assert!(pruned.first_index > 1000 && !pruned.files.is_empty(), "{pruned:?}");
    let root = writer.root();
    drop(writer);
    let kept = super::Layout::new(&log.dir()).segments().unwrap();
    assert_eq!(kept.first().unwrap().0, pruned.first_index);
    // The tree grows again from hashes, both the near way and, with a tile lost, from the beginning.
    let (writer, recovery) = log.open();
    assert!(recovery.is_clean(), "{recovery:?}");
    assert_eq!((writer.size(), writer.root()), (2000, root));
    drop(writer);
    fs::remove_file(log.dir().join("tile/1/000.p/7")).unwrap();
    let (writer, recovery) = log.open();
    assert_eq!((writer.size(), writer.root(), recovery.set_aside), (2000, root, None));
}
