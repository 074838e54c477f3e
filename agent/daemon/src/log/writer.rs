//! The one writer: lines first, then their tiles, then the signed head.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use writ_core::config::{Fsync, LogSettings};
use writ_core::log::{Checkpoint, Edge, NoteSigner, TILE_WIDTH, Vkey, hash_leaf};
use writ_core::record::{Head, MAX_LINE};

use super::file::{make_dir, open_for_writing, remove, replace, sync_dir_of};
use super::regrow::{Damage, Outcome, Regrow};
use super::tiles::TileWriter;
use super::{AppendError, KeySource, Layout, LogError, Recovery, SegmentLines, recovery};

/// A checkpoint is due after so many lines at most, whatever the time.
const LINES_PER_CHECKPOINT: u64 = 1000;
/// No more lines are taken while so many wait for tiles that cannot be written.
const MOST_WAITING: u64 = 16 * 1024;
/// Space is taken this far ahead, so that a full disk is met before a line is begun.
const AHEAD: u64 = 1024 * 1024;

/// The log, open for writing. Only one process can have it.
pub(crate) struct LogWriter {
    layout: Layout,
    signer: NoteSigner,
    settings: LogSettings,
    edge: Edge,
    tiles: TileWriter,
    segment: Segment,
    /// Size at the last checkpoint; `None` before the first.
    signed: Option<u64>,
    /// Why the last checkpoint made by the way (not by [`Self::checkpoint`]) failed.
    failure: Option<LogError>,
    _lock: Flock<File>,
}

/// A place in a segment: bytes of the file, lines of the log.
#[derive(Clone, Copy)]
struct Mark {
    bytes: u64,
    lines: u64,
}

/// The segment being written.
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    first: u64,
    /// Bytes of whole lines: what counts as written.
    len: u64,
    /// Bytes the file system has promised.
    allocated: u64,
    /// Whether there may be something after `len`.
    dirty: bool,
    /// What was forced to the disk.
    synced: Mark,
    /// What was forced the time before: Linux can report what one `fsync` lost to the next (ext4 does, of space that was
    /// taken ahead), so a failure puts the success before it in doubt too.
    certain: Mark,
    /// Whether forcing failed: what is after `certain` may be lost, whatever the file says when it is read.
    doubtful: bool,
    /// When its first line was written.
    begun: SystemTime,
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
        let writer = Self {
            layout,
            signer,
            settings,
            edge: state.edge,
            tiles: state.tiles,
            segment,
            signed: state.signed,
            failure: None,
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
        self.tiles.remove_outdated(&self.layout, &self.edge)?;
        Ok(size)
    }

    /// The last checkpoint, everything forced to the disk.
    pub(crate) fn close(mut self) -> Result<(), LogError> {
        self.checkpoint()?;
        if self.settings.fsync != Fsync::Never {
            self.sync_everything()?;
        }
        self.segment.give_back_space();
        Ok(())
    }

    /// Closes the segment and begins the next. Done by [`Self::append`] when the segment is full.
    pub(crate) fn rotate(&mut self) -> Result<(), LogError> {
        if self.segment.first == self.edge.size() {
            return Ok(());
        }
        self.checkpoint()?;
        if self.settings.fsync != Fsync::Never {
            // What recovery relies on: tiles of closed segments are on the disk, only those of the last are made again.
            self.sync_everything()?;
        }
        let next = Segment::create(&self.layout, self.edge.size())?;
        self.segment.give_back_space();
        self.segment = next;
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
        let last = self.signed.unwrap_or(0).saturating_add(LINES_PER_CHECKPOINT);
        last - last % TILE_WIDTH
    }

    /// What is due by count or size. Its failure does not undo the lines: it is kept for the daemon to see.
    fn upkeep(&mut self) {
        let due = self.edge.size() >= self.next_checkpoint();
        let full = self.segment.len >= self.settings.segment_size;
        let done = match (full, due) {
            (true, _) => self.rotate(),
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

    /// Writes every full tile of this segment again, from its lines; partial ones follow with the next checkpoint.
    fn make_tiles_again(&mut self) -> Result<(), LogError> {
        let regrow = Regrow { layout: &self.layout, checkpoint: None, total: self.edge.size(), anew: true };
        let near = self.segment.first / TILE_WIDTH * TILE_WIDTH;
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

    fn sync_everything(&mut self) -> Result<(), LogError> {
        let synced = nix::unistd::syncfs(&self.segment.file);
        // It also tells of tiles that could not be written back since this was asked last.
        self.segment.doubtful |= synced.is_err();
        synced.map_err(|error| LogError::io("sync the file system of", self.layout.dir())(error.into()))
    }
}

impl Segment {
    fn create(layout: &Layout, first: u64) -> Result<Self, LogError> {
        let path = layout.segment(first);
        make_dir(&layout.records())?;
        let segment = Self::open(layout, first, 0)?;
        sync_dir_of(&path)?;
        Ok(segment)
    }

    fn open(layout: &Layout, first: u64, len: u64) -> Result<Self, LogError> {
        let path = layout.segment(first);
        let file = open_for_writing(&path, true)?;
        // Its own first line says how old it is, so that a daemon that is restarted every day closes it all the same.
        let begun = if len > 0 { first_time(&path) } else { None };
        let begun = begun.unwrap_or_else(SystemTime::now);
        // What an earlier process left is forced with the first checkpoint.
        let none = Mark { bytes: 0, lines: first };
        let (synced, certain, doubtful) = (none, none, false);
        Ok(Self { file, path, first, len, allocated: len, dirty: true, synced, certain, doubtful, begun })
    }

    /// How many of the lines bring it to its size: at least one.
    fn room<L: AsRef<[u8]>>(&self, lines: &[L], size: u64) -> usize {
        let mut len = self.len;
        let fits = lines.iter().take_while(|line| {
            let before = len;
            len += line.as_ref().len() as u64 + 1;
            before < size
        });
        fits.count().max(1)
    }

    /// Writes whole lines; returns how many are in the file, and why the next one is not.
    fn write<L: AsRef<[u8]>>(&mut self, lines: &[L]) -> (usize, Result<(), LogError>) {
        let mut buffer = Vec::with_capacity(lines.iter().map(|line| line.as_ref().len() + 1).sum());
        for line in lines.iter().map(AsRef::as_ref) {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
        }
        if let Err(error) = self.clean().and_then(|()| self.allocate(buffer.len() as u64)) {
            return (0, Err(error));
        }
        let (bytes, result) = write_at(&self.file, &buffer, self.len);
        let mut written = 0;
        let mut end = 0;
        for line in lines {
            let next = end + line.as_ref().len() + 1;
            if next > bytes {
                break;
            }
            end = next;
            written += 1;
        }
        self.len += end as u64;
        self.dirty = bytes != end;
        if self.dirty {
            // A reader must not see half a line for longer than needed; if this fails, the next write begins with it.
            let _retried = self.clean();
        }
        (written, result.map_err(LogError::io("write", &self.path)))
    }

    /// Cuts off whatever is after the last whole line.
    fn clean(&mut self) -> Result<(), LogError> {
        if self.dirty {
            self.file.set_len(self.len).map_err(LogError::io("truncate", &self.path))?;
            self.dirty = false;
            self.allocated = self.len;
        }
        Ok(())
    }

    /// Takes space for what is to be written, and some ahead. A file system that cannot is no obstacle.
    fn allocate(&mut self, bytes: u64) -> Result<(), LogError> {
        let end = self.len + bytes;
        if end <= self.allocated {
            return Ok(());
        }
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let take = |bytes: u64| fallocate(&self.file, keep, self.len as i64, bytes as i64);
        let taken = take(bytes + AHEAD).map(|()| end + AHEAD).or_else(|_| take(bytes).map(|()| end));
        match taken {
            Ok(allocated) => self.allocated = allocated,
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => self.allocated = end,
            Err(error) => return Err(LogError::io("take space for", &self.path)(error.into())),
        }
        Ok(())
    }

    /// Forces what was written to the disk; `lines` is the size of the log.
    fn sync(&mut self, lines: u64) -> Result<(), LogError> {
        if self.synced.bytes < self.len {
            if let Err(error) = self.file.sync_data() {
                self.doubtful = true;
                return Err(LogError::io("sync", &self.path)(error));
            }
            (self.certain, self.synced) = (self.synced, Mark { bytes: self.len, lines });
        }
        Ok(())
    }

    /// What may be lost, these lines from memory, in a segment of its own that is on the disk; `None` if there is nothing.
    /// `size` is that of the log.
    fn moved(&self, layout: &Layout, lines: Vec<&[u8]>, size: u64) -> Result<Option<Self>, LogError> {
        let Mark { bytes: from, lines: first } = self.certain;
        if from >= self.len {
            return Ok(None);
        }
        let tail: Vec<u8> = lines.into_iter().flat_map(|line| [line, b"\n"].concat()).collect();
        // What was signed already, or an earlier process wrote, is not in memory any more; the file is all there is of it,
        // most likely still whole in the page cache. The tree's root tells.
        let before = (self.len - from).saturating_sub(tail.len() as u64);
        let mut bytes = vec![0; usize::try_from(before).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, from).map_err(LogError::io("read", &self.path))?;
        bytes.extend_from_slice(&tail);
        let path = layout.segment(first);
        let new = path.with_extension("tmp");
        let file = open_for_writing(&new, true)?;
        let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0)).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // Only to give the space back; a leftover is overwritten next time.
            let _unused = remove(&new);
            return Err(LogError::io("write", &new)(error));
        }
        if path != self.path {
            let cut = self.file.set_len(from).and_then(|()| self.file.sync_all());
            cut.map_err(LogError::io("truncate", &self.path))?;
        }
        std::fs::rename(&new, &path).map_err(LogError::io("rename", &path))?;
        sync_dir_of(&path)?;
        let (len, begun) = (bytes.len() as u64, SystemTime::now());
        let (certain, synced) = (Mark { bytes: 0, lines: first }, Mark { bytes: len, lines: size });
        let (allocated, dirty, doubtful) = (len, false, true);
        Ok(Some(Self { file, path, first, len, allocated, dirty, synced, certain, doubtful, begun }))
    }

    /// Gives back space that was taken ahead; if it cannot, it is only space.
    fn give_back_space(&self) {
        let _unused = self.file.set_len(self.len);
    }
}

/// The time of a segment's first line.
fn first_time(path: &Path) -> Option<SystemTime> {
    let mut lines = SegmentLines::open(path).ok()?;
    let time: jiff::Timestamp = Head::of(lines.next_line().ok()??).ok()?.time.parse().ok()?;
    SystemTime::try_from(time).ok()
}

/// Writes as much as it can; returns how many bytes that was.
fn write_at(file: &File, buffer: &[u8], offset: u64) -> (usize, std::io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = buffer.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, offset + written as u64) {
            Ok(0) => return (written, Err(std::io::ErrorKind::WriteZero.into())),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
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
