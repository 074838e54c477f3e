//! C2SP tlog-tiles: which hashes lie in which file, and how to read any node of the tree out of them.

use std::fmt;

use super::tree::{Hash, root_of};
use super::{Nodes, ProofError};

/// Hashes in a full tile.
pub const TILE_WIDTH: u64 = 256;
/// Tree levels in a tile.
const TILE_HEIGHT: u8 = 8;

/// What a tile holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TileKind {
    /// Hashes of this tile level.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// The name of a tile below `tile/`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TilePath {
    /// What it holds.
    pub kind: TileKind,
    /// Its index within its level.
    pub index: u64,
    /// How many hashes or entries it holds: 1 to 256; fewer than 256 make it partial.
    pub width: u16,
}

impl TilePath {
    /// A full tile.
    pub const fn full(kind: TileKind, index: u64) -> Self {
        Self { kind, index, width: TILE_WIDTH as u16 }
    }

    /// Whether it is full.
    pub const fn is_full(&self) -> bool {
        self.width as u64 == TILE_WIDTH
    }

    /// Reads a name like `0/x001/x234/067.p/8`, relative to `tile/`.
    pub fn parse(text: &str) -> Option<Self> {
        let (level, rest) = text.split_once('/')?;
        let kind = match level {
            "entries" => TileKind::Entries,
            digits => TileKind::Hashes(plain_number(digits)?.try_into().ok().filter(|level| *level < 64)?),
        };
        let (digits, width) = match rest.split_once(".p/") {
            Some((digits, width)) => (digits, plain_number(width).filter(|width| (1..TILE_WIDTH).contains(width))?),
            None => (rest, TILE_WIDTH),
        };
        let mut index = 0u64;
        let groups: Vec<&str> = digits.split('/').collect();
        for (place, group) in groups.iter().enumerate() {
            let last = place + 1 == groups.len();
            let three = if last { group } else { group.strip_prefix('x')? };
            if three.len() != 3 || !three.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            index = index.checked_mul(1000)?.checked_add(three.parse().ok()?)?;
        }
        let path = Self { kind, index, width: u16::try_from(width).ok()? };
        // One name for each tile: no superfluous leading groups.
        (path.to_string() == text).then_some(path)
    }
}

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(f, "{level}/")?,
            TileKind::Entries => f.write_str("entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for (place, group) in groups.iter().enumerate().rev() {
            if place > 0 {
                write!(f, "x{group:03}/")?;
            } else {
                write!(f, "{group:03}")?;
            }
        }
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

fn plain_number(digits: &str) -> Option<u64> {
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// For a tree of this size, each tile level that has hashes with their number: `floor(size / 256^level)`.
pub fn widths(size: u64) -> impl Iterator<Item = (u8, u64)> {
    (0u8..8).map(move |level| (level, size >> (u32::from(level) * 8))).take_while(|(_, count)| *count > 0)
}

/// The tree's nodes, read from tiles: `fetch` returns the hashes of the widest tile with that level and index, of which
/// only the asked-for width is used.
pub struct TileNodes<F> {
    /// Size of the tree.
    pub size: u64,
    /// Reads a tile.
    pub fetch: F,
}

impl<F: Fn(TilePath) -> Result<Vec<Hash>, ProofError>> Nodes for TileNodes<F> {
    fn subtree(&self, level: u8, index: u64) -> Result<Hash, ProofError> {
        let missing = ProofError::Node { level, index };
        let tile_level = level / TILE_HEIGHT;
        let within = level % TILE_HEIGHT;
        let count = 1u64 << within;
        let first = index.checked_mul(count).ok_or(missing.clone())?;
        let tile = first / TILE_WIDTH;
        let available = (self.size >> (u32::from(tile_level) * 8)).saturating_sub(tile * TILE_WIDTH).min(TILE_WIDTH);
        let width = u16::try_from(available).map_err(|_| missing.clone())?;
        if width == 0 {
            return Err(missing);
        }
        let hashes = (self.fetch)(TilePath { kind: TileKind::Hashes(tile_level), index: tile, width })?;
        let offset = usize::try_from(first % TILE_WIDTH).map_err(|_| missing.clone())?;
        let end = offset + usize::try_from(count).map_err(|_| missing.clone())?;
        if end > usize::from(width) {
            return Err(missing);
        }
        hashes.get(offset..end).map(root_of).ok_or(missing)
    }
}
