//! Growing the tree again from what is on disk, to be compared with what was signed.

use writ_core::log::{Checkpoint, Edge, Hash, TILE_WIDTH, TileKind, TilePath, encode_entry, hash_leaf};

use super::tiles::{ensure_tile, partial_bundle, partials_at, read_entries, read_hashes, write_tile};
use super::{Layout, LineError, LogError, SegmentLines};

/// Why a log cannot be continued from what was tried.
pub(super) enum Damage {
    /// The system refused; nothing is said about the log.
    System(LogError),
    /// The log is not what its checkpoint signed.
    Log(String),
}

impl From<LogError> for Damage {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Invalid { .. } => Self::Log(error.to_string()),
            other => Self::System(other),
        }
    }
}

/// Growing the tree again from what is on disk.
pub(super) struct Regrow<'a> {
    pub(super) layout: &'a Layout,
    pub(super) checkpoint: Option<&'a Checkpoint>,
    pub(super) total: u64,
    /// Whether tiles are written whatever is on the disk: what is read there may be in memory only.
    pub(super) anew: bool,
}

/// The tree grown again, and what is to be done yet.
pub(super) struct Outcome {
    pub(super) edge: Edge,
    /// Entries of the last, incomplete bundle.
    pub(super) bundle: Vec<u8>,
    /// Partial tiles on disk.
    pub(super) partials: Vec<TilePath>,
    /// Full tiles that should be made again and could not: the disk is full, for instance. Lines come first.
    pub(super) owed: Vec<(TilePath, Vec<u8>)>,
    pub(super) tiles_made: u64,
}

impl Regrow<'_> {
    /// From leaf `start`, a multiple of 256, to the end; fails if the checkpoint does not confirm it.
    pub(super) fn run(&self, start: u64) -> Result<Outcome, Damage> {
        let mut outcome = Outcome {
            edge: Edge::load(start, |tile| read_hashes(self.layout, tile))?,
            bundle: Vec::new(),
            partials: Vec::new(),
            owed: Vec::new(),
            tiles_made: 0,
        };
        self.confirm(&mut outcome)?;
        let segments = self.layout.segments()?;
        let kept = segments.first().map_or(self.total, |(first, _)| *first);
        // Lines that were pruned: their hashes, and near the end their entries, are in tiles.
        while outcome.edge.size() < kept.min(self.total) {
            self.push_pruned(&mut outcome, kept)?;
        }
        let from = outcome.edge.size();
        let begin = segments.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        for (place, (first, path)) in segments.iter().enumerate().skip(begin) {
            let mut index = *first;
            let mut lines = SegmentLines::open(path)?;
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => {
                        if index >= from {
                            self.push(&mut outcome, line)?;
                        }
                        index += 1;
                    }
                    Ok(None) => break,
                    Err(LineError::Log(error)) => return Err(error.into()),
                    Err(torn) => return Err(Damage::Log(torn.to_string())),
                }
            }
            if segments.get(place + 1).is_some_and(|(next, _)| *next != index) {
                return Err(Damage::Log(format!("{}: the next segment does not begin where it ends", path.display())));
            }
        }
        let end = outcome.edge.size();
        if end != self.total {
            return Err(Damage::Log(format!("{end} lines were found where {} had been counted", self.total)));
        }
        outcome.partials = self.partials(start, end);
        Ok(outcome)
    }

    fn push(&self, outcome: &mut Outcome, line: &[u8]) -> Result<(), Damage> {
        if !encode_entry(&mut outcome.bundle, line) {
            return Err(Damage::Log(format!("line {} is longer than any record", outcome.edge.size())));
        }
        self.push_hash(outcome, hash_leaf(line));
        if outcome.edge.size().is_multiple_of(TILE_WIDTH) {
            let bundle = std::mem::take(&mut outcome.bundle);
            self.ensure(outcome, TilePath::full(TileKind::Entries, outcome.edge.size() / TILE_WIDTH - 1), &bundle);
        }
        self.confirm(outcome)
    }

    fn push_hash(&self, outcome: &mut Outcome, hash: Hash) {
        let mut full = Vec::new();
        outcome.edge.push(hash, |tile| full.push(tile));
        for tile in full {
            let path = TilePath::full(TileKind::Hashes(tile.level), tile.index);
            self.ensure(outcome, path, tile.hashes.as_flattened());
        }
    }

    /// Pushes pruned leaves up to the end of their tile.
    fn push_pruned(&self, outcome: &mut Outcome, kept: u64) -> Result<(), Damage> {
        let index = outcome.edge.size() / TILE_WIDTH;
        if (index + 1) * TILE_WIDTH <= kept {
            for hash in read_hashes(self.layout, TilePath::full(TileKind::Hashes(0), index))? {
                self.push_hash(outcome, hash);
            }
            return self.confirm(outcome);
        }
        let entries = read_entries(self.layout, index)?;
        let wanted = (kept - index * TILE_WIDTH) as usize;
        let Some(entries) = entries.get(..wanted) else {
            return Err(Damage::Log(format!("lines {} to {kept} are missing", index * TILE_WIDTH)));
        };
        entries.iter().try_for_each(|entry| self.push(outcome, entry))
    }

    /// At the size of the checkpoint, compares roots and makes the partial tiles it needs.
    fn confirm(&self, outcome: &mut Outcome) -> Result<(), Damage> {
        let Some(checkpoint) = self.checkpoint.filter(|checkpoint| checkpoint.size == outcome.edge.size()) else {
            return Ok(());
        };
        if checkpoint.root != outcome.edge.root() {
            return Err(Damage::Log("the lines are not those that the checkpoint signs".to_owned()));
        }
        let hashes: Vec<_> =
            outcome.edge.partial().map(|(tile, hashes)| (tile, hashes.as_flattened().to_vec())).collect();
        for (tile, content) in hashes {
            self.ensure(outcome, tile, &content);
        }
        if let Some(tile) = partial_bundle(checkpoint.size) {
            let bundle = outcome.bundle.clone();
            self.ensure(outcome, tile, &bundle);
        }
        Ok(())
    }

    fn ensure(&self, outcome: &mut Outcome, tile: TilePath, content: &[u8]) {
        let ensured = if self.anew {
            write_tile(&self.layout.tile(tile), content).map(|()| true)
        } else {
            ensure_tile(self.layout, tile, content)
        };
        match ensured {
            Ok(made) => outcome.tiles_made += u64::from(made),
            Err(_) if tile.is_full() => outcome.owed.push((tile, content.to_vec())),
            // The next checkpoint brings partial tiles of its own.
            Err(_) => {}
        }
    }

    /// The partial tiles on disk between two sizes of the tree.
    fn partials(&self, start: u64, end: u64) -> Vec<TilePath> {
        let mut found = Vec::new();
        for level in 0u8..7 {
            let shift = (u32::from(level) + 1) * 8;
            for index in (start.saturating_sub(1) >> shift)..=(end >> shift) {
                found.extend(partials_at(self.layout, TileKind::Hashes(level), index));
                if level == 0 {
                    found.extend(partials_at(self.layout, TileKind::Entries, index));
                }
            }
        }
        found
    }
}
