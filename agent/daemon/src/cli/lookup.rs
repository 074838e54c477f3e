//! Random access to a long log: records by index, and by id in a few reads, from the entry bundles of its tree.
//!
//! A bundle holds 256 records, so that an index names its file; ids are in the order of time, so that one is found by
//! halving. What is not in a bundle yet, the unsigned tail, is read from the last segment.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use writ_core::log::{TILE_WIDTH, TileKind, TilePath, decode_bundle};
use writ_core::record::{Head, time_of_id};

use crate::log::{Layout, SegmentLines, tile_entries as read_entries};

/// Bundles around the place where an id should be that are looked through: records are written in the order in which they
/// reach the daemon, which is nearly that of their times.
const NEAR: u64 = 24;
/// How much of the last segment is looked at for records that are not in a bundle yet: a second of a flood.
const TAIL: u64 = 8 << 20;
/// Bundles that are kept in memory.
const KEPT: usize = 64;

/// A log whose records are looked up.
pub(super) struct Lookup {
    layout: Layout,
    /// The first bundle that is retained.
    oldest: u64,
    /// How many bundles are full.
    full: u64,
    /// The records after those in full bundles.
    tail: Vec<Vec<u8>>,
    bundles: HashMap<u64, Vec<Vec<u8>>>,
}

impl Lookup {
    /// Opens a log directory.
    ///
    /// # Errors
    /// The records cannot be read.
    pub(super) fn open(log: &Path) -> anyhow::Result<Self> {
        let layout = Layout::new(log);
        let segments = layout.segments()?;
        let first = segments.first().map_or(0, |(first, _)| *first);
        let mut lookup =
            Self { layout, oldest: first / TILE_WIDTH, full: 0, tail: Vec::new(), bundles: HashMap::new() };
        // Bundles are written in order, and all of a segment's when it is closed.
        lookup.full = segments.last().map_or(0, |(first, _)| first / TILE_WIDTH);
        while lookup.exists(lookup.full) {
            lookup.full += 1;
        }
        lookup.tail = lookup.read_tail(&segments)?;
        Ok(lookup)
    }

    /// The records after the full bundles: those of the partial bundle, and the unsigned ones that follow in the segment.
    fn read_tail(&self, segments: &[(u64, PathBuf)]) -> anyhow::Result<Vec<Vec<u8>>> {
        let from = self.full * TILE_WIDTH;
        let mut tail = read_entries(&self.layout, self.full)?;
        let before = self.full.checked_sub(1).and_then(|last| read_entries(&self.layout, last).ok());
        let known = tail.last().or(before.as_ref().and_then(|entries| entries.last()));
        let last = segments.last().map(|(_, path)| path.as_path());
        if let (Some(known), Some(path)) = (known, last)
            && let Some(rest) = after(path, known)?
        {
            tail.extend(rest);
            return Ok(tail);
        }
        // A short log, or one whose last line was signed in another segment: everything from there on.
        tail.clear();
        let place = segments.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        for (first, path) in segments.iter().skip(place) {
            let mut lines = SegmentLines::open(path)?;
            let mut index = *first;
            while let Ok(Some(line)) = lines.next_line() {
                if index >= from {
                    tail.push(line.to_vec());
                }
                index += 1;
            }
        }
        Ok(tail)
    }

    /// The record with this id and its index; `None` if it is not where its time says, or there is none.
    pub(super) fn by_id(&mut self, id: &str) -> Option<(u64, Vec<u8>)> {
        let wanted = time_of_id(id)?;
        let needle = format!("\"id\":\"{id}\"");
        let is_it = |line: &[u8]| {
            // The id comes first in each line; parsing every line would take a hundred times longer.
            let start = line.get(..needle.len() + 1).unwrap_or_default();
            start.ends_with(needle.as_bytes()) && Head::of(line).is_ok_and(|head| head.id == id)
        };
        let from = self.full * TILE_WIDTH;
        let in_tail = self.tail.iter().position(|line| is_it(line));
        if let Some(place) = in_tail {
            return Some((from + place as u64, self.tail.get(place)?.clone()));
        }
        // The last bundle that begins before the id's time.
        let oldest = self.oldest;
        let (mut low, mut high) = (oldest, self.full);
        while low < high {
            let middle = low.midpoint(high);
            match self.first_id(middle).and_then(|id| time_of_id(&id)) {
                Some(time) if time <= wanted => low = middle + 1,
                _ => high = middle,
            }
        }
        let at = low.saturating_sub(1).max(oldest);
        let mut places: Vec<u64> = (at.saturating_sub(NEAR).max(oldest)..(at + NEAR).min(self.full)).collect();
        places.sort_by_key(|place| place.abs_diff(at));
        for bundle in places {
            let entries = self.bundle(bundle)?;
            if let Some(place) = entries.iter().position(|line| is_it(line)) {
                return Some((bundle * TILE_WIDTH + place as u64, entries.get(place)?.clone()));
            }
        }
        None
    }

    /// A record by its index.
    pub(super) fn line(&mut self, index: u64) -> Option<&[u8]> {
        let from = self.full * TILE_WIDTH;
        if index >= from {
            return self.tail.get(usize::try_from(index - from).ok()?).map(Vec::as_slice);
        }
        let place = usize::try_from(index % TILE_WIDTH).ok()?;
        self.bundle(index / TILE_WIDTH)?.get(place).map(Vec::as_slice)
    }

    fn bundle(&mut self, index: u64) -> Option<&Vec<Vec<u8>>> {
        if !self.bundles.contains_key(&index) {
            if self.bundles.len() >= KEPT {
                self.bundles.clear();
            }
            let content = std::fs::read(self.path(index)).ok()?;
            let entries = decode_bundle(&content)?.into_iter().map(<[u8]>::to_vec).collect();
            self.bundles.insert(index, entries);
        }
        self.bundles.get(&index)
    }

    /// The id of a bundle's first record, without reading the others.
    fn first_id(&self, bundle: u64) -> Option<String> {
        let mut start = Vec::with_capacity(128);
        File::open(self.path(bundle)).ok()?.take(128).read_to_end(&mut start).ok()?;
        let text = String::from_utf8_lossy(start.get(2..)?).into_owned();
        text.strip_prefix("{\"id\":\"")?.split('"').next().map(str::to_owned)
    }

    fn exists(&self, bundle: u64) -> bool {
        self.path(bundle).exists()
    }

    fn path(&self, bundle: u64) -> PathBuf {
        self.layout.tile(TilePath::full(TileKind::Entries, bundle))
    }
}

/// The whole lines of a segment after this one, looked for near its end.
fn after(path: &Path, known: &[u8]) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let needle = [known, b"\n"].concat();
    let Some(at) = memchr::memmem::rfind(&content, &needle) else { return Ok(None) };
    let rest = content.get(at + needle.len()..).unwrap_or_default();
    let end = rest.iter().rposition(|byte| *byte == b'\n');
    let Some(whole) = end.and_then(|end| rest.get(..end)) else { return Ok(Some(Vec::new())) };
    Ok(Some(whole.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()))
}
