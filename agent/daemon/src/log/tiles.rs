//! Tiles on disk: written once when full, replaced while partial, read as the widest file that covers what is asked.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use writ_core::log::{Edge, FullTile, Hash, TILE_WIDTH, TileKind, TilePath, decode_bundle, encode_entry};

use super::file::{make_dir, read_if_there, remove, replace, temporary_of};
use super::signing::Tile;
use super::{Layout, LogError};

/// Tiles that wait for their checkpoint, and what is known of the partial ones on disk.
#[derive(Default)]
pub(super) struct TileWriter {
    /// Full tiles and bundles that are not on disk yet.
    owed: Vec<Tile>,
    /// The entries of the last, incomplete bundle.
    bundle: Vec<u8>,
    /// The partial tiles that the last checkpoint needs.
    partial: Vec<TilePath>,
    /// How many bytes of `bundle` are in the partial bundle on disk.
    on_disk: usize,
}

impl TileWriter {
    /// Takes over an entry that was just pushed onto the edge, `size` leaves large since.
    pub(super) fn push_entry(&mut self, entry: &[u8], size: u64) {
        // The writer has refused longer lines already.
        let _fits = encode_entry(&mut self.bundle, entry);
        if size.is_multiple_of(TILE_WIDTH) {
            let tile = TilePath::full(TileKind::Entries, size / TILE_WIDTH - 1);
            // The next one will be about as long.
            let next = Vec::with_capacity(self.bundle.len());
            self.owed.push((tile, std::mem::replace(&mut self.bundle, next)));
            self.on_disk = 0;
        }
    }

    /// Takes over a tile that a push completed.
    pub(super) fn push_tile(&mut self, tile: FullTile) {
        let path = TilePath::full(TileKind::Hashes(tile.level), tile.index);
        self.owed.push((path, tile.hashes.as_flattened().to_vec()));
    }

    /// The last lines of a log of this size, from the line with index `first`, as far back as they are in memory. Lines
    /// that no checkpoint covers yet are.
    pub(super) fn entries_from(&self, first: u64, size: u64) -> Vec<&[u8]> {
        let full = self.owed.iter().filter(|(tile, _)| tile.kind == TileKind::Entries);
        let full: BTreeMap<u64, &[u8]> = full.map(|(tile, content)| (tile.index, content.as_slice())).collect();
        let mut found = Vec::new();
        let mut index = size / TILE_WIDTH;
        let mut bundle = Some(self.bundle.as_slice());
        // From the end backwards, without a gap.
        while let Some(entries) = bundle.and_then(decode_bundle) {
            let skip = usize::try_from(first.saturating_sub(index * TILE_WIDTH)).unwrap_or(usize::MAX);
            found.extend(entries.into_iter().skip(skip).rev());
            if first >= index * TILE_WIDTH {
                break;
            }
            index -= 1;
            bundle = full.get(&index).copied();
        }
        found.reverse();
        found
    }

    /// Has the next checkpoint write partial tiles whole: what is on the disk of them may be lost.
    pub(super) fn trust_nothing_on_disk(&mut self) {
        self.on_disk = 0;
    }

    /// How many lines wait for their full tiles.
    pub(super) fn waiting(&self) -> u64 {
        self.owed.iter().filter(|(tile, _)| tile.kind == TileKind::Entries).count() as u64 * TILE_WIDTH
    }

    /// Writes everything that a checkpoint of this edge needs.
    pub(super) fn write(&mut self, layout: &Layout, edge: &Edge) -> Result<(), LogError> {
        while let Some((tile, content)) = self.owed.last() {
            write_tile(&layout.tile(*tile), content)?;
            self.owed.pop();
        }
        for (tile, hashes) in edge.partial() {
            write_tile(&layout.tile(tile), hashes.as_flattened())?;
        }
        self.write_partial_bundle(layout, edge.size())
    }

    /// A partial bundle grows in place under its next name: rewriting it each second would cost far more than the lines.
    fn write_partial_bundle(&mut self, layout: &Layout, size: u64) -> Result<(), LogError> {
        let Some(tile) = partial_bundle(size) else { return Ok(()) };
        let path = layout.tile(tile);
        let before = self.partial.iter().find(|old| old.kind == TileKind::Entries && old.index == tile.index);
        let grown = match before.map(|old| layout.tile(*old)) {
            Some(old) if self.on_disk > 0 => grow(&old, &path, &self.bundle, self.on_disk),
            _ => Ok(false),
        };
        if !matches!(grown, Ok(true)) {
            self.on_disk = 0;
            write_tile(&path, &self.bundle)?;
        }
        self.on_disk = self.bundle.len();
        Ok(())
    }

    /// Hands over the full tiles that are not on the disk, for another thread to write.
    pub(super) fn take_owed(&mut self) -> Vec<Tile> {
        std::mem::take(&mut self.owed)
    }

    /// Takes back those that could not be written.
    pub(super) fn give_back(&mut self, tiles: Vec<Tile>) {
        self.owed.splice(..0, tiles);
    }

    /// Removes the partial tiles that the checkpoint before this one needed, and this one, which needs these, does not.
    pub(super) fn remove_outdated(&mut self, layout: &Layout, current: Vec<TilePath>) -> Result<(), LogError> {
        for old in std::mem::take(&mut self.partial) {
            if !current.contains(&old) {
                let path = layout.tile(old);
                remove(&path)?;
                if let Some(dir) = path.parent().filter(|_| !current.iter().any(|tile| same_place(tile, &old))) {
                    // Fails while another partial tile is in there, which is as it should be.
                    let _unused = std::fs::remove_dir(dir);
                }
            }
        }
        self.partial = current;
        Ok(())
    }

    /// Takes over what recovery found: the entries of the last bundle, and every partial tile on disk, whose content is
    /// not relied on and which the next checkpoint replaces.
    pub(super) fn resume(bundle: Vec<u8>, partial: Vec<TilePath>, owed: Vec<(TilePath, Vec<u8>)>) -> Self {
        Self { bundle, partial, owed, ..Self::default() }
    }
}

const fn same_place(one: &TilePath, other: &TilePath) -> bool {
    let same_kind = match (one.kind, other.kind) {
        (TileKind::Entries, TileKind::Entries) => true,
        (TileKind::Hashes(a), TileKind::Hashes(b)) => a == b,
        _ => false,
    };
    same_kind && one.index == other.index
}

/// The partial entry bundle of a tree of this size, if it has one.
pub(super) fn partial_bundle(size: u64) -> Option<TilePath> {
    let width = u16::try_from(size % TILE_WIDTH).ok().filter(|width| *width > 0)?;
    Some(TilePath { kind: TileKind::Entries, index: size / TILE_WIDTH, width })
}

/// The directory of a tile's partial forms, `N.p`.
fn partial_dir(layout: &Layout, tile: TilePath) -> PathBuf {
    let mut name = layout.tile(TilePath::full(tile.kind, tile.index)).into_os_string();
    name.push(".p");
    PathBuf::from(name)
}

/// The partial tiles on disk at one place.
pub(super) fn partials_at(layout: &Layout, kind: TileKind, index: u64) -> Vec<TilePath> {
    let Ok(entries) = std::fs::read_dir(partial_dir(layout, TilePath::full(kind, index))) else { return Vec::new() };
    let width = |name: std::ffi::OsString| name.to_str()?.parse::<u16>().ok().filter(|width| (1..256).contains(width));
    entries
        .flatten()
        .filter_map(|entry| width(entry.file_name()))
        .map(|width| TilePath { kind, index, width })
        .collect()
}

/// Makes a tile what it should be; `true` if it was not.
pub(super) fn ensure_tile(layout: &Layout, tile: TilePath, content: &[u8]) -> Result<bool, LogError> {
    let path = layout.tile(tile);
    if read_if_there(&path)?.is_some_and(|there| there == content) {
        return Ok(false);
    }
    write_tile(&path, content).map(|()| true)
}

pub(super) fn write_tile(path: &Path, content: &[u8]) -> Result<(), LogError> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    replace(path, content, false)
}

/// Links the old partial bundle, appends what is new and gives it its new name then: under that name nobody finds fewer
/// entries than it says. `false`: it was not as it should be.
fn grow(old: &Path, new: &Path, bundle: &[u8], on_disk: usize) -> Result<bool, LogError> {
    let Some(added) = bundle.get(on_disk..) else { return Ok(false) };
    if old == new {
        return Ok(added.is_empty());
    }
    let growing = temporary_of(new);
    remove(&growing)?;
    remove(new)?;
    let grown = (|| {
        std::fs::hard_link(old, &growing)?;
        let mut file = OpenOptions::new().write(true).open(&growing)?;
        if file.metadata()?.len() != on_disk as u64 {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(on_disk as u64))?;
        match file.write_all(added).and_then(|()| std::fs::rename(&growing, new)) {
            Ok(()) => Ok(true),
            // Both names share the content: give the old one back what it had.
            Err(error) => file.set_len(on_disk as u64).and(Err(error)),
        }
    })();
    if !matches!(grown, Ok(true)) {
        remove(&growing)?;
    }
    grown.map_err(LogError::io("write", new))
}

/// The bytes of the narrowest file that holds at least `tile.width`: the tile itself, a wider partial one, the full one.
pub(super) fn read_wide_enough(layout: &Layout, tile: TilePath) -> Result<Option<Vec<u8>>, LogError> {
    if let Some(content) = read_if_there(&layout.tile(tile))? {
        return Ok(Some(content));
    }
    for width in tile.width.saturating_add(1)..=TILE_WIDTH as u16 {
        if let Some(content) = read_if_there(&layout.tile(TilePath { width, ..tile }))? {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// The first `tile.width` hashes of a hash tile.
pub(crate) fn read_hashes(layout: &Layout, tile: TilePath) -> Result<Vec<Hash>, LogError> {
    let path = layout.tile(tile);
    let content = read_wide_enough(layout, tile)?.ok_or_else(|| LogError::invalid(&path, "it is missing"))?;
    let (hashes, rest) = content.as_chunks::<32>();
    match hashes.get(..usize::from(tile.width)) {
        Some(hashes) if rest.is_empty() => Ok(hashes.to_vec()),
        _ => Err(LogError::invalid(&path, "it has the wrong length")),
    }
}

/// The entries of the bundle at this place, as many as its widest file holds.
pub(crate) fn read_entries(layout: &Layout, index: u64) -> Result<Vec<Vec<u8>>, LogError> {
    let mut widest = Vec::new();
    for width in (1..=TILE_WIDTH as u16).rev() {
        let path = layout.tile(TilePath { kind: TileKind::Entries, index, width });
        let Some(content) = read_if_there(&path)? else { continue };
        // A torn bundle may still hold what is wanted, up to where it is torn.
        let mut end = content.len();
        let entries = loop {
            match content.get(..end).and_then(decode_bundle) {
                Some(entries) => break entries,
                None => end = whole_prefix(&content),
            }
        };
        if entries.len() > widest.len() {
            widest = entries.into_iter().map(<[u8]>::to_vec).collect();
        }
    }
    Ok(widest)
}

/// Where the last whole entry of a torn bundle ends.
fn whole_prefix(bundle: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = bundle.get(end..).and_then(<[u8]>::first_chunk::<2>) {
        let next = end + 2 + usize::from(u16::from_be_bytes(*length));
        if next > bundle.len() {
            break;
        }
        end = next;
    }
    end
}
