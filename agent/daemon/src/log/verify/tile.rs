//! Every tile on disk against the tree that the lines make, and every tile that must be there.

use std::path::Path;

use rayon::prelude::*;
use writ_core::log::{Hash, TILE_WIDTH, TileKind, TilePath, hash_leaf, root_of, widths};
use writ_core::record::Record;

use super::super::tiles::{partial_bundle, read_wide_enough};
use super::super::{Layout, LogError, SegmentLines};
use super::Finding;
use super::lines::Lines;

pub(super) fn check_tiles(
    layout: &Layout,
    lines: &Lines,
    signed: u64,
    signed_now: impl Fn() -> u64,
    findings: &mut Vec<Finding>,
) -> Result<(), LogError> {
    let levels = levels(&lines.hashes);
    let mut names = Vec::new();
    list(&layout.tiles(), "", &mut names)?;
    let first_kept = layout.segments()?.first().map_or(signed, |(first, _)| *first);
    let wrong: Vec<Finding> = names.par_iter().filter_map(|name| check_tile(layout, lines, &levels, name)).collect();
    findings.extend(wrong);
    for tile in needed(signed.min(lines.hashes.len() as u64), first_kept) {
        if read_wide_enough(layout, tile)?.is_none() {
            // A log that is being written has replaced its partial tiles by now.
            if tile.is_full() || signed_now() == signed {
                findings.push(Finding::of(&format!("tile/{tile}"), "it is missing"));
            }
        }
    }
    Ok(())
}

/// The hashes of each tile level.
fn levels(leaves: &[Hash]) -> Vec<Vec<Hash>> {
    let mut levels = Vec::new();
    let mut below = leaves;
    while below.len() >= TILE_WIDTH as usize {
        let level: Vec<Hash> = below.par_chunks_exact(TILE_WIDTH as usize).map(root_of).collect();
        levels.push(level);
        below = levels.last().map_or(&[], Vec::as_slice);
    }
    levels
}

/// The tiles that a checkpoint of this size needs; entries only of lines that were not removed.
fn needed(size: u64, first_kept: u64) -> Vec<TilePath> {
    let mut tiles = Vec::new();
    for (level, count) in widths(size) {
        let kind = TileKind::Hashes(level);
        tiles.extend((0..count / TILE_WIDTH).map(|index| TilePath::full(kind, index)));
        let width = (count % TILE_WIDTH) as u16;
        if width > 0 {
            tiles.push(TilePath { kind, index: count / TILE_WIDTH, width });
        }
    }
    let first = first_kept.div_ceil(TILE_WIDTH);
    tiles.extend((first..size / TILE_WIDTH).map(|index| TilePath::full(TileKind::Entries, index)));
    tiles.extend(partial_bundle(size).filter(|_| first_kept < size));
    tiles
}

/// What is wrong with one file below `tile/`.
fn check_tile(layout: &Layout, lines: &Lines, levels: &[Vec<Hash>], name: &str) -> Option<Finding> {
    let file = format!("tile/{name}");
    if name.ends_with(".tmp") {
        return None;
    }
    let Some(tile) = TilePath::parse(name) else { return Some(Finding::of(&file, "it is not a tile's name")) };
    if tile.kind == TileKind::Entries && tile.is_full() && lines.bundled.contains(&tile.index) {
        return None;
    }
    let content = match std::fs::read(layout.tile(tile)) {
        Ok(content) => content,
        // A partial tile of a log that is being written.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Finding::of(&file, error.to_string())),
    };
    let (level, hashes) = match tile.kind {
        TileKind::Hashes(0) => (0u32, Some(&lines.hashes)),
        TileKind::Hashes(level) => (u32::from(level), levels.get(usize::from(level) - 1)),
        TileKind::Entries => return check_bundle(layout, lines, tile, &content, &file),
    };
    let known = hashes.map_or(&[][..], Vec::as_slice);
    let begin = (tile.index * TILE_WIDTH) as usize;
    let expected = known.get(begin..).unwrap_or_default();
    let (found, rest) = content.as_chunks::<32>();
    if !rest.is_empty() || found.len() != usize::from(tile.width) {
        return Some(Finding::of(&file, "it has the wrong length"));
    }
    // The first difference says where a line was taken out; only if there is none are they missing at the end.
    let Some(place) = found.iter().zip(expected).position(|(found, expected)| found != expected) else {
        let end = (begin + found.len()) as u64;
        let ahead = end > known.len() as u64 && end > lines_now(layout) >> (level * 8);
        return ahead.then(|| Finding::of(&file, "it is of records that are not there"));
    };
    if level > 0 {
        let span = TILE_WIDTH.pow(level);
        let first = (begin + place) as u64 * span;
        return Some(Finding::of(
            &file,
            format!("records {first} to {} are not those it was made of", first + span - 1),
        ));
    }
    let index = (begin + place) as u64;
    if index < lines.confirmed {
        let problem = format!("its hash of record {index} is not that of the line, which is the one that was signed");
        return Some(Finding { index: Some(index), ..Finding::of(&file, problem) });
    }
    let (segment, line) = lines.locate(index);
    let id = line.and_then(|line| id_at(&layout.dir().join(&segment), line));
    let problem = format!("the line is not the one that {file} was made of");
    Some(Finding { line, index: Some(index), id, ..Finding::of(&segment, problem) })
}

fn check_bundle(layout: &Layout, lines: &Lines, tile: TilePath, content: &[u8], file: &str) -> Option<Finding> {
    let (entries, rest) = whole_entries(content);
    let begin = tile.index * TILE_WIDTH;
    let end = begin + entries.len() as u64;
    if entries.len() < usize::from(tile.width) {
        return Some(Finding::of(file, "it is torn, or has too few entries"));
    }
    let known = lines.hashes.get(begin as usize..).unwrap_or_default();
    let Some(differs) = entries.iter().zip(known).position(|(entry, hash)| hash_leaf(entry) != *hash) else {
        // A partial bundle that is being replaced grows: whatever is in it beyond its width must be lines all the same.
        let reaches = end + u64::from(!rest.is_empty());
        let ahead = reaches > lines.hashes.len() as u64 && reaches > lines_now(layout);
        return (ahead || tile.is_full() && !rest.is_empty())
            .then(|| Finding::of(file, "it is of records that are not there"));
    };
    let index = begin + differs as u64;
    let problem = format!("its entry {differs} is not record {index} of the log");
    Some(Finding { index: Some(index), ..Finding::of(file, problem) })
}

/// The whole entries of a bundle, and what is left after them.
pub(super) fn whole_entries(bundle: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut entries = Vec::new();
    let mut rest = bundle;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let Some((entry, after)) = after.split_at_checked(usize::from(u16::from_be_bytes(*length))) else { break };
        entries.push(entry);
        rest = after;
    }
    (entries, rest)
}

/// How many lines there are by now. Lines are written before their tiles, so no tile can be ahead of this.
fn lines_now(layout: &Layout) -> u64 {
    let last = layout.segments().ok().and_then(|mut segments| segments.pop());
    last.and_then(|(first, path)| {
        let content = std::fs::read(path).ok()?;
        Some(first + content.iter().filter(|byte| **byte == b'\n').count() as u64)
    })
    .unwrap_or(0)
}

/// The id that the line at a place now claims to have.
fn id_at(path: &Path, line: u64) -> Option<String> {
    let mut lines = SegmentLines::open(path).ok()?;
    for _ in 1..line {
        lines.next_line().ok()??;
    }
    let record = Record::from_line(lines.next_line().ok()??).ok()?;
    Some(record.id)
}

/// Names of all files below a directory.
fn list(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<(), LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LogError::io("read", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(LogError::io("read", dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // As the listing says it: a partial tile's directory may be gone by now.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}
