//! The file that lines are written to: whole lines only, space taken ahead, and what of it is certain to be on the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::fcntl::{FallocateFlags, fallocate};
use writ_core::record::Head;

use super::file::{make_dir, open_for_writing, remove, sync_dir_of};
use super::{Layout, LogError, SegmentLines};

/// Space is taken this far ahead, so that a full disk is met before a line is begun.
const AHEAD: u64 = 1024 * 1024;

/// A place in a segment: bytes of the file, lines of the log.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    bytes: u64,
    pub(super) lines: u64,
}

/// The segment being written.
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) first: u64,
    /// Bytes of whole lines: what counts as written.
    pub(super) len: u64,
    /// Bytes the file system has promised.
    allocated: u64,
    /// Whether there may be something after `len`.
    dirty: bool,
    /// What was forced to the disk.
    synced: Mark,
    /// What was forced the time before: Linux can report what one `fsync` lost to the next (ext4 does, of space that was
    /// taken ahead), so a failure puts the success before it in doubt too.
    pub(super) certain: Mark,
    /// Whether forcing failed: what is after `certain` may be lost, whatever the file says when it is read.
    pub(super) doubtful: bool,
    /// When its first line was written.
    pub(super) begun: SystemTime,
}

impl Segment {
    pub(super) fn create(layout: &Layout, first: u64) -> Result<Self, LogError> {
        let path = layout.segment(first);
        make_dir(&layout.records())?;
        let segment = Self::open(layout, first, 0)?;
        sync_dir_of(&path)?;
        Ok(segment)
    }

    pub(super) fn open(layout: &Layout, first: u64, len: u64) -> Result<Self, LogError> {
        let path = layout.segment(first);
        let file = open_for_writing(&path, true)?;
        // Its own first line says how old it is, so that a daemon that is restarted every day closes it all the same.
        let begun = if len > 0 { first_time(&path) } else { None };
        let begun = begun.unwrap_or_else(SystemTime::now);
        // What an earlier process left is forced with the first checkpoint.
        let none = Mark { bytes: 0, lines: first };
        let (synced, certain, doubtful) = (none, none, false);
        let file = Arc::new(file);
        Ok(Self { file, path, first, len, allocated: len, dirty: true, synced, certain, doubtful, begun })
    }

    /// How many of the lines bring it to its size: at least one.
    pub(super) fn room<L: AsRef<[u8]>>(&self, lines: &[L], size: u64) -> usize {
        let mut len = self.len;
        let fits = lines.iter().take_while(|line| {
            let before = len;
            len += line.as_ref().len() as u64 + 1;
            before < size
        });
        fits.count().max(1)
    }

    /// Writes whole lines; returns how many are in the file, and why the next one is not.
    pub(super) fn write<L: AsRef<[u8]>>(&mut self, lines: &[L]) -> (usize, Result<(), LogError>) {
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
    pub(super) fn clean(&mut self) -> Result<(), LogError> {
        if self.dirty {
            self.file.set_len(self.len).map_err(LogError::io("truncate", &self.path))?;
            self.dirty = false;
            self.allocated = self.len;
        }
        Ok(())
    }

    /// Takes space for what is to be written, and some ahead. A file system that cannot is no obstacle.
    pub(super) fn allocate(&mut self, bytes: u64) -> Result<(), LogError> {
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
    pub(super) fn sync(&mut self, lines: u64) -> Result<(), LogError> {
        if self.synced.bytes < self.len {
            if let Err(error) = self.file.sync_data() {
                self.doubtful = true;
                return Err(LogError::io("sync", &self.path)(error));
            }
            (self.certain, self.synced) = (self.synced, Mark { bytes: self.len, lines });
        }
        Ok(())
    }

    /// Where it ends, in a log of this size.
    pub(super) const fn mark(&self, lines: u64) -> Mark {
        Mark { bytes: self.len, lines }
    }

    /// Its file, for another thread to force to the disk.
    pub(super) fn shared(&self) -> (Arc<File>, PathBuf) {
        (Arc::clone(&self.file), self.path.clone())
    }

    /// What was forced to the disk by another thread.
    pub(super) const fn forced(&mut self, mark: Mark) {
        if self.synced.bytes < mark.bytes {
            (self.certain, self.synced) = (self.synced, mark);
        }
    }

    /// Whether what was not on the disk before may be lost.
    pub(super) const fn doubt(&mut self, lost: bool) {
        self.doubtful |= lost;
    }

    /// What may be lost, these lines from memory, in a segment of its own that is on the disk; `None` if there is nothing.
    /// `size` is that of the log.
    pub(super) fn moved(&self, layout: &Layout, lines: Vec<&[u8]>, size: u64) -> Result<Option<Self>, LogError> {
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
        let (allocated, dirty, doubtful, file) = (len, false, true, Arc::new(file));
        Ok(Some(Self { file, path, first, len, allocated, dirty, synced, certain, doubtful, begun }))
    }

    /// Gives back space that was taken ahead; if it cannot, it is only space.
    pub(super) fn give_back_space(&self) {
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
