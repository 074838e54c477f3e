//! The claim that no tampering goes unnoticed, over random tampering.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use writ_core::log::{Checkpoint, NoteSigner, hash_leaf, root_of};
use writ_core::record::Record;

use super::super::tests::{Log, ORIGIN, copy_dir};
use super::tests::{records, sound, trust};
use super::{Trust, verify};

/// What somebody with root could do to the files.
#[derive(Clone, Debug)]
enum Tampering {
    FlipByte(usize, u8),
    DropLine(usize),
    DoubleLine(usize),
    SwapLines(usize, usize),
    ReplaceLine(usize, usize),
    InsertLine(usize),
    CutBytes(usize),
    RemoveFile(usize),
    FlipTile(usize, usize, u8),
    CutTile(usize, usize),
    /// Lines of another host in the place of this one's.
    Splice(usize, usize),
    Resign,
    ForgeCheckpoint,
    /// An older state of the log, under its own key: only a checkpoint kept elsewhere tells.
    RollBack(usize),
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let place = any::<usize>;
    prop_oneof![
        (place(), 1u8..).prop_map(|(at, mask)| Tampering::FlipByte(at, mask)),
        place().prop_map(Tampering::DropLine),
        place().prop_map(Tampering::DoubleLine),
        (place(), place()).prop_map(|(one, two)| Tampering::SwapLines(one, two)),
        (place(), place()).prop_map(|(one, two)| Tampering::ReplaceLine(one, two)),
        place().prop_map(Tampering::InsertLine),
        place().prop_map(Tampering::CutBytes),
        place().prop_map(Tampering::RemoveFile),
        (place(), place(), 1u8..).prop_map(|(file, at, mask)| Tampering::FlipTile(file, at, mask)),
        (place(), place()).prop_map(|(file, at)| Tampering::CutTile(file, at)),
        (place(), 1usize..200).prop_map(|(at, count)| Tampering::Splice(at, count)),
        Just(Tampering::Resign),
        Just(Tampering::ForgeCheckpoint),
        place().prop_map(Tampering::RollBack),
    ]
}

/// Does it; `false` if nothing was changed after all.
fn apply(log: &Log, what: &Tampering) -> bool {
    let segments = super::super::Layout::new(&log.dir()).segments().unwrap();
    let whole: Vec<Vec<u8>> = segments.iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    let all = log.lines();
    let edit = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines = all.clone();
        change(&mut lines);
        // Each segment keeps as many lines as it had; what is left over goes to the last.
        let mut rest = lines.as_slice();
        for (place, (_, path)) in segments.iter().enumerate() {
            let had = whole[place].iter().filter(|byte| **byte == b'\n').count();
            let take = if place + 1 == segments.len() { rest.len() } else { had.min(rest.len()) };
            let (here, after) = rest.split_at(take);
            fs::write(path, here.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect::<Vec<u8>>())
                .unwrap();
            rest = after;
        }
        lines != all
    };
    let count = all.len();
    let mut tiles = Vec::new();
    list(&log.dir().join("tile"), &mut tiles);
    match what {
        Tampering::FlipByte(at, mask) => {
            let at = at % whole.iter().map(Vec::len).sum::<usize>();
            let mut before = 0;
            let place = whole
                .iter()
                .position(|content| {
                    before += content.len();
                    at < before
                })
                .unwrap();
            let mut content = whole[place].clone();
            let offset = at - (before - content.len());
            content[offset] ^= mask;
            fs::write(&segments[place].1, content).unwrap();
            true
        }
        Tampering::DropLine(at) => edit(&|lines| drop(lines.remove(at % count))),
        Tampering::DoubleLine(at) => edit(&|lines| lines.insert(at % count, lines[at % count].clone())),
        Tampering::SwapLines(one, two) => edit(&|lines| lines.swap(one % count, two % count)),
        Tampering::ReplaceLine(one, two) => edit(&|lines| lines[one % count] = lines[two % count].clone()),
        Tampering::InsertLine(at) => edit(&|lines| lines.insert(at % count, records(9000..9001).remove(0))),
        Tampering::Splice(at, how_many) => edit(&|lines| {
            for line in lines.iter_mut().skip(at % count).take(*how_many) {
                let mut record = Record::from_line(line).unwrap();
                record.host.id = "another".to_owned();
                *line = record.to_line();
            }
        }),
        Tampering::RollBack(size) => {
            fs::remove_dir_all(log.dir()).unwrap();
            let (mut writer, _) = log.open();
            writer.append(&all[..size % count]).unwrap();
            writer.close().unwrap();
            true
        }
        Tampering::CutBytes(by) => {
            let (_, path) = segments.last().unwrap();
            let length = fs::metadata(path).unwrap().len();
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length - 1 - *by as u64 % length).unwrap();
            true
        }
        Tampering::RemoveFile(which) => {
            let mut files = tiles;
            files.extend(segments.into_iter().map(|(_, path)| path));
            files.push(log.dir().join("checkpoint"));
            fs::remove_file(&files[which % files.len()]).unwrap();
            true
        }
        Tampering::FlipTile(file, at, mask) => {
            let path = &tiles[file % tiles.len()];
            let mut content = fs::read(path).unwrap();
            let at = at % content.len();
            content[at] ^= mask;
            fs::write(path, content).unwrap();
            true
        }
        Tampering::CutTile(file, at) => {
            let path = &tiles[file % tiles.len()];
            let length = fs::metadata(path).unwrap().len();
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(*at as u64 % length).unwrap();
            true
        }
        Tampering::Resign | Tampering::ForgeCheckpoint => {
            let leaves: Vec<_> = all.iter().map(|line| hash_leaf(line)).collect();
            let stranger = NoteSigner::from_seed(ORIGIN, &[9; 32]).unwrap();
            let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size: count as u64, root: root_of(&leaves) };
            if matches!(what, Tampering::Resign) {
                fs::write(log.dir().join("writ.vkey"), stranger.vkey().to_string()).unwrap();
            }
            fs::write(log.dir().join("checkpoint"), checkpoint.sign(&stranger)).unwrap();
            true
        }
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_tampering_goes_unnoticed(what in tampering()) {
        thread_local!(static SOUND: (Log, Trust) = { let log = sound(); let trust = trust(&log); (log, trust) });
        SOUND.with(|(log, trust)| {
            let copy = Log::new(100_000);
            copy_dir(log.home.path(), copy.home.path());
            if apply(&copy, &what) {
                let kept = || Some(fs::read_to_string(log.dir().join("checkpoint")).unwrap());
                let against = matches!(what, Tampering::RollBack(_)).then(kept).flatten();
                let report = verify(&copy.dir(), &Trust { against, ..trust.clone() }).unwrap();
                assert!(!report.ok, "{what:?}");
            }
        });
    }
}
