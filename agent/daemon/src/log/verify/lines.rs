//! The lines: hashed and read in parallel, segment by segment.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use memchr::memchr;
use rayon::prelude::*;
use writ_core::log::{Hash, TILE_WIDTH, TileKind, TilePath, hash_leaf};
use writ_core::record::{MAX_LINE, Record};

use super::super::tiles::read_hashes;
use super::super::{Layout, LogError};
use super::sequence::{Place, Sequences};
use super::tile::whole_entries;
use super::{Finding, MOST_FINDINGS};

/// What is known of all lines.
pub(super) struct Lines {
    /// The leaf hash of each line; of removed lines, what the tiles say (the root confirms it).
    pub(super) hashes: Vec<Hash>,
    /// So many of them are those that the checkpoint signs: where a tile differs, it is the tile that is wrong.
    pub(super) confirmed: u64,
    /// Bytes after the last whole line.
    pub(super) torn_bytes: u64,
    /// Full bundles of entries that are, byte for byte, the lines that are there.
    pub(super) bundled: HashSet<u64>,
    /// Each segment: index of its first line, and its name relative to the log.
    segments: Vec<(u64, String)>,
}

impl Lines {
    /// Where a record lies: file and line number.
    pub(super) fn locate(&self, index: u64) -> (String, Option<u64>) {
        let place = self.segments.partition_point(|(first, _)| *first <= index).checked_sub(1);
        match place.and_then(|place| self.segments.get(place)) {
            Some((first, name)) => (name.clone(), Some(index - first + 1)),
            None => ("records".to_owned(), None),
        }
    }
}

/// Reads everything; what is wrong with a line on its own is found here.
pub(super) fn read_lines(
    layout: &Layout,
    pruned: u64,
    signed: u64,
    sequences: &mut Sequences,
    findings: &mut Vec<Finding>,
) -> Result<Lines, LogError> {
    let segments = layout.segments()?;
    let first = segments.first().map_or(pruned.min(signed), |(first, _)| *first);
    let mut lines = Lines {
        hashes: removed(layout, first.min(pruned), findings),
        confirmed: 0,
        torn_bytes: 0,
        bundled: HashSet::new(),
        segments: Vec::new(),
    };
    if first > pruned {
        let problem = format!("records {pruned} to {} are missing", first - 1);
        findings.push(Finding { index: Some(pruned), ..Finding::of("records", problem) });
        // So that what is there keeps its place.
        lines.hashes.resize(first as usize, [0; 32]);
    }
    // Two segments' memory serves all: the next one is read while this one is looked at.
    let (mut content, mut ahead) = (Vec::new(), Vec::new());
    let mut read = read_whole(segments.first(), &mut content);
    for (place, (first, path)) in segments.iter().enumerate() {
        read?;
        let name = format!("records/{}", path.file_name().unwrap_or_default().to_string_lossy());
        let index = lines.hashes.len() as u64;
        if *first != index {
            let problem = format!("its first record should be number {first} of the log, but is number {index}");
            findings.push(Finding { line: Some(1), index: Some(index.min(*first)), ..Finding::of(&name, problem) });
        }
        lines.segments.push((index, name.clone()));
        let last = place + 1 == segments.len();
        let look = || {
            let texts = read_segment(&content, &name, (last, signed), &mut lines, sequences, findings);
            lines.bundled.extend(bundled(layout, index, &texts));
        };
        ((), read) = rayon::join(look, || read_whole(segments.get(place + 1), &mut ahead));
        std::mem::swap(&mut content, &mut ahead);
    }
    read?;
    Ok(lines)
}

/// Reads a segment, if there is one, over what is in the memory.
fn read_whole(segment: Option<&(u64, PathBuf)>, content: &mut Vec<u8>) -> Result<(), LogError> {
    content.clear();
    let Some((_, path)) = segment else { return Ok(()) };
    let read = File::open(path).and_then(|mut file| file.read_to_end(content));
    read.map(drop).map_err(LogError::io("read", path))
}

/// Which full bundles of entries are the lines of this segment, of which the first has this index. Comparing them costs less
/// than hashing them once more; what is not the same is looked at with the other tiles.
fn bundled(layout: &Layout, first: u64, texts: &[&[u8]]) -> Vec<u64> {
    let full = first.div_ceil(TILE_WIDTH)..(first + texts.len() as u64) / TILE_WIDTH;
    full.into_par_iter().filter(|index| is_bundled(layout, *index, first, texts)).collect()
}

fn is_bundled(layout: &Layout, index: u64, first: u64, texts: &[&[u8]]) -> bool {
    thread_local! {
        static BUNDLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let begin = (index * TILE_WIDTH - first) as usize;
    let Some(lines) = texts.get(begin..begin + TILE_WIDTH as usize) else { return false };
    BUNDLE.with_borrow_mut(|bundle| {
        bundle.clear();
        let path = layout.tile(TilePath::full(TileKind::Entries, index));
        let read = File::open(path).and_then(|mut file| file.read_to_end(bundle));
        let (entries, rest) = whole_entries(bundle);
        read.is_ok() && rest.is_empty() && entries == lines
    })
}

/// Leaf hashes of removed lines, from their tiles.
fn removed(layout: &Layout, count: u64, findings: &mut Vec<Finding>) -> Vec<Hash> {
    let mut hashes = Vec::with_capacity(count as usize);
    while (hashes.len() as u64) < count {
        let index = hashes.len() as u64 / TILE_WIDTH;
        let width = (count - index * TILE_WIDTH).min(TILE_WIDTH) as u16;
        match read_hashes(layout, TilePath { kind: TileKind::Hashes(0), index, width }) {
            Ok(found) => hashes.extend(found),
            Err(error) => {
                findings.push(Finding::of("tile", error.to_string()));
                hashes.resize(count as usize, [0; 32]);
            }
        }
    }
    hashes
}

/// What one line says about itself.
struct Read {
    hash: Hash,
    place: Result<Place, (Option<String>, String)>,
}

fn read_segment<'c>(
    content: &'c [u8],
    name: &str,
    (last, signed): (bool, u64),
    lines: &mut Lines,
    sequences: &mut Sequences,
    findings: &mut Vec<Finding>,
) -> Vec<&'c [u8]> {
    let (mut texts, mut rest) = (Vec::new(), content);
    while let Some((line, after)) = memchr(b'\n', rest).and_then(|end| rest.split_at_checked(end)) {
        texts.push(line);
        rest = after.get(1..).unwrap_or_default();
    }
    let torn = rest;
    let first = lines.hashes.len() as u64;
    let read: Vec<Read> =
        texts.par_iter().with_min_len(64).map(|line| Read { hash: hash_leaf(line), place: read_line(line) }).collect();
    for (number, read) in (0u64..).zip(read) {
        lines.hashes.push(read.hash);
        let index = first + number;
        let finding = match read.place {
            Ok(place) => sequences.add(place, index >= signed).err().map(|problem| (None, problem)),
            Err(problem) => Some(problem),
        };
        if let Some((id, problem)) = finding.filter(|_| findings.len() < MOST_FINDINGS) {
            findings.push(Finding { line: Some(number + 1), index: Some(index), id, ..Finding::of(name, problem) });
        }
    }
    if !torn.is_empty() {
        let index = lines.hashes.len() as u64;
        if last && index >= signed {
            lines.torn_bytes = torn.len() as u64;
        } else {
            let problem = "its last line has no end".to_owned();
            findings.push(Finding {
                line: Some(texts.len() as u64 + 1),
                index: Some(index),
                ..Finding::of(name, problem)
            });
        }
    }
    texts
}

fn read_line(line: &[u8]) -> Result<Place, (Option<String>, String)> {
    if line.len() > MAX_LINE {
        return Err((None, format!("{} bytes are more than a line may have", line.len())));
    }
    Record::check(line).map(Place::of).map_err(|error| (None, error.to_string()))
}
