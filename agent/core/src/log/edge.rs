//! The right edge of the tree: all that must be kept in memory to append, to sign and to write tiles.

use super::tile::{TILE_WIDTH, TileKind, TilePath};
use super::tree::{EMPTY_ROOT, Hash, hash_children, root_of};

/// For each tile level the hashes of its last, incomplete tile: at most 255 each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

/// A tile that an append completed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FullTile {
    /// Its tile level.
    pub level: u8,
    /// Its index within the level.
    pub index: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

impl Edge {
    /// The edge of a tree of that size, from its partial tiles: `fetch` gives the first `width` hashes of a tile.
    pub fn load<E>(size: u64, mut fetch: impl FnMut(TilePath) -> Result<Vec<Hash>, E>) -> Result<Self, E> {
        let mut levels = Vec::new();
        for (level, count) in super::widths(size) {
            let width = u16::try_from(count % TILE_WIDTH).unwrap_or(0);
            let tile = TilePath { kind: TileKind::Hashes(level), index: count / TILE_WIDTH, width };
            levels.push(if width == 0 { Vec::new() } else { fetch(tile)? });
        }
        Ok(Self { size, levels })
    }

    /// How many leaves the tree has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf's hash; what it completes is handed to `full`.
    pub fn push(&mut self, leaf: Hash, mut full: impl FnMut(FullTile)) {
        self.size += 1;
        let mut carried = leaf;
        for level in 0u8..8 {
            let place = usize::from(level);
            if self.levels.len() == place {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(place) else { return };
            hashes.push(carried);
            if (hashes.len() as u64) < TILE_WIDTH {
                return;
            }
            let index = self.size.checked_shr((u32::from(level) + 1) * 8).unwrap_or(1).saturating_sub(1);
            let hashes = std::mem::take(hashes);
            carried = root_of(&hashes);
            full(FullTile { level, index, hashes });
        }
    }

    /// The tree's root: the complete subtrees of the edge, folded from the smallest to the largest.
    pub fn root(&self) -> Hash {
        let mut root: Option<Hash> = None;
        for hashes in &self.levels {
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                // The lowest set bit of the count is the size of the last complete subtree.
                let last = 1usize << rest.len().trailing_zeros();
                let (before, subtree) = rest.split_at(rest.len() - last);
                let subtree = root_of(subtree);
                root = Some(match root {
                    Some(right) => hash_children(&subtree, &right),
                    None => subtree,
                });
                rest = before;
            }
        }
        root.unwrap_or(EMPTY_ROOT)
    }

    /// The partial tiles of this size, with their hashes.
    pub fn partial(&self) -> impl Iterator<Item = (TilePath, &[Hash])> {
        self.levels.iter().zip(0u8..).filter(|(hashes, _)| !hashes.is_empty()).map(|(hashes, level)| {
            let index = self.size.checked_shr((u32::from(level) + 1) * 8).unwrap_or(0);
            let width = u16::try_from(hashes.len()).unwrap_or(0);
            (TilePath { kind: TileKind::Hashes(level), index, width }, hashes.as_slice())
        })
    }
}
