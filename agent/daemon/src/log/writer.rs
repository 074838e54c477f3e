//! The one writer: lines first, then their tiles, then the signed head.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use writ_core::config::{Fsync, LogSettings};
use writ_core::log::{Checkpoint, Edge, NoteSigner, TILE_WIDTH, Vkey, hash_leaf};
use writ_core::record::MAX_LINE;

use super::file::{make_dir, open_for_writing, replace};
use super::regrow::{Damage, Outcome, Regrow};
use super::segment::Segment;
use super::settling::Settling;
use super::signing::{Pending, Signing};
use super::tiles::{TileWriter, partial_bundle};
use super::{AppendError, KeySource, Layout, LogError, Recovery, recovery};

/// A checkpoint is begun after so many lines, whatever the time: with the one that is being made, no more than a thousand or
/// so are without one.
const LINES_PER_CHECKPOINT: u64 = 2 * TILE_WIDTH;
/// No more lines are taken while so many wait for tiles that cannot be written.
const MOST_WAITING: u64 = 16 * 1024;

/// The log, open for writing. Only one process can have it.
pub(crate) struct LogWriter {
    pub(super) layout: Layout,
    pub(super) signer: NoteSigner,
    pub(super) settings: LogSettings,
    pub(super) edge: Edge,
    pub(super) tiles: TileWriter,
    pub(super) segment: Segment,
    /// Size at the last checkpoint; `None` before the first.
    pub(super) signed: Option<u64>,
    /// When the last one by count was made.
    pub(super) signed_by_count: Option<Instant>,
    /// Why the last checkpoint made by the way (not by [`Self::checkpoint`]) failed.
    pub(super) failure: Option<LogError>,
    /// Who makes checkpoints by the way, once one was due.
    pub(super) signing: Option<Signing>,
    /// The one that is being made.
    pub(super) pending: Option<Pending>,
    /// The tiles of the segment that was closed last, until they are on the disk.
    pub(super) settling: Option<Settling>,
    /// From which line on tiles may not be on the disk.
    pub(super) tiles_from: u64,
    _lock: Flock<File>,
}

impl LogWriter {
    /// Opens the log, makes it if there is none, repairs what a crash left. `origin` names the log, and with it the host:
    /// a log of another origin is moved to `old-ORIGIN` and a new one begun. What was done is in [`Recovery`], for a record
    /// of it.
    pub(crate) fn open(
        dir: &Path,
        key: &KeySource,
        settings: LogSettings,
        origin: &str,
    ) -> Result<(Self, Recovery), LogError> {
        make_dir(dir)?;
        let lock_path = dir.join("lock");
        let lock = Flock::lock(open_for_writing(&lock_path, true)?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| LogError::Locked { path: dir.to_owned() })?;
        let layout = Layout::new(dir);
        let (signer, state, recovery) = recovery::recover(&layout, key, origin)?;
        let segment = match state.segment {
            Some((first, len)) => Segment::open(&layout, first, len)?,
            None => Segment::create(&layout, state.edge.size())?,
        };
        let settles = settings.fsync != Fsync::Never && state.tiles_from < segment.first;
        let settling = settles.then(|| Settling::begin(&segment.file, segment.first));
        let writer = Self {
            layout,
            signer,
            settings,
            edge: state.edge,
            tiles: state.tiles,
            segment,
            signed: state.signed,
            signed_by_count: None,
            failure: None,
            signing: None,
            pending: None,
            settling,
            tiles_from: state.tiles_from,
            _lock: lock,
        };
        Ok((writer, recovery))
    }

    /// Appends lines (without newlines) and returns the index of the first. On an error, the lines that are in the log are
    /// counted in it; the others are not there, not even in part, and can be appended again.
    pub(crate) fn append<L: AsRef<[u8]>>(&mut self, lines: &[L]) -> Result<u64, AppendError> {
        let first = self.edge.size();
        let mut rest = lines;
        let mut written = 0;
        if let Err(error) = self.finish_checkpoint(false).and_then(|()| self.settled(false)) {
            self.failure = Some(error);
        }
        if self.segment.doubtful {
            return Err(AppendError { written, source: LogError::InDoubt { path: self.segment.path.clone() } });
        }
        for (place, line) in lines.iter().enumerate() {
            if let Some(reason) = unfit(line.as_ref()) {
                return Err(AppendError { written, source: LogError::Line { place, reason } });
            }
        }
        while !rest.is_empty() {
            if self.tiles.waiting() >= MOST_WAITING
                && let Err(source) = self.checkpoint()
            {
                let source = LogError::Backlog { waiting: self.tiles.waiting(), source: Box::new(source) };
                return Err(AppendError { written, source });
            }
            let until_checkpoint = self.next_checkpoint().saturating_sub(self.edge.size()).max(1);
            let most = self.segment.room(rest, self.settings.segment_size).min(until_checkpoint as usize);
            let (batch, after) = rest.split_at(rest.len().min(most));
            self.write_lines(batch).map_err(|error| AppendError { written: written + error.written, ..error })?;
            written += batch.len();
            rest = after;
            self.upkeep();
        }
        Ok(first)
    }

    /// Signs the tree's head, if there is something new under it; returns its size. Call it every second, and to be sure
    /// that what was appended survives (with `fsync` other than `never`).
    pub(crate) fn checkpoint(&mut self) -> Result<u64, LogError> {
        if let Err(error) = self.finish_checkpoint(true) {
            // What it was to write follows.
            self.failure = Some(error);
        }
        let size = self.edge.size();
        if self.signed == Some(size) && !self.segment.doubtful {
            return Ok(size);
        }
        let sync = self.settings.fsync != Fsync::Never;
        if sync {
            self.force_lines()?;
        }
        self.tiles.write(&self.layout, &self.edge)?;
        let head = Checkpoint { origin: self.origin().to_owned(), size, root: self.edge.root() };
        replace(&self.layout.checkpoint(), head.sign(&self.signer).as_bytes(), sync)?;
        self.signed = Some(size);
        self.failure = None;
        let partial = self.edge.partial().map(|(tile, _)| tile).chain(partial_bundle(size)).collect();
        self.tiles.remove_outdated(&self.layout, partial)?;
        Ok(size)
    }

    /// The last checkpoint, everything forced to the disk.
    pub(crate) fn close(mut self) -> Result<(), LogError> {
        self.checkpoint()?;
        self.settle_below(self.edge.size())?;
        self.segment.give_back_space();
        Ok(())
    }

    /// Closes the segment and begins the next. Done by [`Self::append`] when the segment is full.
    ///
    /// What recovery relies on: the lines of closed segments are on the disk, and all tiles but those of the last two segments.
    pub(crate) fn rotate(&mut self) -> Result<(), LogError> {
        if self.segment.first == self.edge.size() {
            return Ok(());
        }
        // Done long ago, unless the disk failed or is slower than the lines come.
        self.settle_below(self.segment.first)?;
        self.checkpoint()?;
        let next = Segment::create(&self.layout, self.edge.size())?;
        self.segment.give_back_space();
        let closed = std::mem::replace(&mut self.segment, next);
        if self.settings.fsync != Fsync::Never {
            self.settling = Some(Settling::begin(&closed.file, self.edge.size()));
        }
        Ok(())
    }

    /// How many lines the log has, the removed ones included.
    pub(crate) const fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The size that the last checkpoint signs; `None` before the first.
    pub(crate) const fn signed(&self) -> Option<u64> {
        self.signed
    }

    /// The root of all lines, signed or not.
    pub(crate) fn root(&self) -> writ_core::log::Hash {
        self.edge.root()
    }

    /// Which log it is.
    pub(crate) fn origin(&self) -> &str {
        self.signer.name()
    }

    /// Which log it is, and by which key: a text without spaces.
    pub(crate) fn identity(&self) -> String {
        format!("{}+{:08x}", self.origin(), self.vkey().id())
    }

    /// The public key.
    pub(crate) fn vkey(&self) -> Vkey {
        self.signer.vkey()
    }

    /// Where everything lies.
    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Why the last checkpoint or rotation that [`Self::append`] made by the way failed, if it did. The lines are written
    /// all the same, and it is tried again.
    pub(crate) const fn failure(&self) -> Option<&LogError> {
        self.failure.as_ref()
    }

    pub(super) const fn signer(&self) -> &NoteSigner {
        &self.signer
    }

    pub(super) const fn settings(&self) -> &LogSettings {
        &self.settings
    }

    /// Whether the file that lines are written to has no name any more: what it holds ends with this process.
    pub(crate) fn is_unlinked(&self) -> bool {
        self.segment.file.metadata().is_ok_and(|found| found.nlink() == 0)
    }

    /// Index of the first line of the segment being written, and when that was written.
    pub(super) const fn current_segment(&self) -> (u64, SystemTime) {
        (self.segment.first, self.segment.begun)
    }

    fn write_lines<L: AsRef<[u8]>>(&mut self, batch: &[L]) -> Result<(), AppendError> {
        let (written, result) = self.segment.write(batch);
        for line in batch.iter().take(written).map(AsRef::as_ref) {
            let tiles = &mut self.tiles;
            self.edge.push(hash_leaf(line), |tile| tiles.push_tile(tile));
            self.tiles.push_entry(line, self.edge.size());
        }
        let synced = if self.settings.fsync == Fsync::Always { self.force_lines() } else { Ok(()) };
        result.and(synced).map_err(|source| AppendError { written, source })
    }

    /// The size at which the next checkpoint is due by count: where a tile ends, so that under load no partial tile is made.
    fn next_checkpoint(&self) -> u64 {
        let begun = self.pending.as_ref().map(|pending| pending.size).or(self.signed);
        let last = begun.unwrap_or(0).saturating_add(LINES_PER_CHECKPOINT);
        last - last % TILE_WIDTH
    }

    /// What is due by count or size. Its failure does not undo the lines: it is kept for the daemon to see.
    fn upkeep(&mut self) {
        let due = self.edge.size() >= self.next_checkpoint();
        let full = self.segment.len >= self.settings.segment_size;
        let done = match (full, due) {
            (true, _) => self.rotate(),
            (false, true) if self.settings.fsync != Fsync::Always && self.edge.size().is_multiple_of(TILE_WIDTH) => {
                self.begin_checkpoint()
            }
            (false, true) => self.checkpoint().map(drop),
            _ => return,
        };
        self.failure = done.err();
    }

    /// Forces the segment's lines to the disk.
    ///
    /// Where that fails, Linux gives up what it could not write: the pages count as clean, the next `fsync` succeeds, and
    /// the lines are gone as soon as memory is short. Nor does writing them again in their place help on every file system
    /// (ext4 leaves space that was taken ahead marked as never written). So what was not on the disk before the failure is
    /// written to a segment of its own, from memory, and only when that is on the disk the old one is cut back.
    fn force_lines(&mut self) -> Result<(), LogError> {
        if !self.segment.doubtful {
            return self.segment.sync(self.edge.size());
        }
        let lines = self.tiles.entries_from(self.segment.certain.lines, self.edge.size());
        if let Some(moved) = self.segment.moved(&self.layout, lines, self.edge.size())? {
            self.segment = moved;
        }
        self.make_tiles_again()?;
        self.segment.doubtful = false;
        Ok(())
    }

    /// Writes every full tile again that may not be on the disk, from its lines; partial ones follow with the next checkpoint.
    fn make_tiles_again(&mut self) -> Result<(), LogError> {
        let regrow = Regrow { layout: &self.layout, checkpoint: None, total: self.edge.size(), anew: true };
        let near = self.tiles_from.min(self.segment.first) / TILE_WIDTH * TILE_WIDTH;
        // What the tree is loaded from may be lost too; the root in memory tells. Then it is grown from the first line.
        let right = |outcome: &Outcome| outcome.edge.root() == self.edge.root();
        let outcome = match regrow.run(near) {
            Ok(outcome) if right(&outcome) => Ok(outcome),
            Err(Damage::System(error)) => return Err(error),
            Ok(_) | Err(Damage::Log(_)) => regrow.run(0),
        };
        let outcome = match outcome {
            Ok(outcome) if right(&outcome) => outcome,
            Err(Damage::System(error)) => return Err(error),
            Ok(_) => return Err(LogError::invalid(&self.segment.path, "its lines are not those that were written")),
            Err(Damage::Log(reason)) => return Err(LogError::invalid(&self.segment.path, reason)),
        };
        if let Some((tile, _)) = outcome.owed.first() {
            return Err(LogError::invalid(&self.layout.tile(*tile), "it could not be written again"));
        }
        self.tiles.trust_nothing_on_disk();
        Ok(())
    }
}

/// Why a line cannot be a log entry.
fn unfit(line: &[u8]) -> Option<&'static str> {
    match line {
        [] => Some("it is empty"),
        long if long.len() > MAX_LINE => Some("it is longer than 65,535 bytes"),
        text if text.contains(&b'\n') => Some("it has a newline in it"),
        _ => None,
    }
}
