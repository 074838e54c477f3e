//! Tiles of a segment that was closed, on their way to the disk beside the writer: that takes as long as everything else that
//! waits to be written to the same file system, and lines are taken meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use nix::unistd::syncfs;
use writ_core::config::Fsync;

use super::LogError;
use super::writer::LogWriter;

/// The tiles of all lines below `next` are on their way.
pub(super) struct Settling {
    next: u64,
    outcome: Receiver<io::Result<()>>,
}

impl Settling {
    /// Begins on a thread of its own; where none is free, it is done when this returns. The kernel tells of each tile that could
    /// not be written if `file` was open before, and in a log that was just opened if nobody has been told yet (`errseq_t`).
    pub(super) fn begin(file: &Arc<File>, next: u64) -> Self {
        let (told, outcome) = sync_channel(1);
        let sync = {
            let (file, told) = (Arc::clone(file), told.clone());
            move || drop(told.send(syncfs(&*file).map_err(io::Error::from)))
        };
        if std::thread::Builder::new().name("settling".into()).spawn(sync).is_err() {
            let _received_below = told.send(syncfs(&**file).map_err(io::Error::from));
        }
        Self { next, outcome }
    }

    /// What became of it; `None` if that is not known yet, and there is no `wait` for it.
    fn outcome(&self, wait: bool) -> Option<io::Result<()>> {
        let ended = || Err(io::Error::other("the thread that waited for it has ended"));
        if wait {
            return Some(self.outcome.recv().unwrap_or_else(|_| ended()));
        }
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(ended()),
        }
    }
}

impl LogWriter {
    /// Takes what became of the tiles of the segment that was closed last, if that is known or is to be waited for.
    ///
    /// # Errors
    /// Some may be lost: no line is taken until the next checkpoint has made them again.
    pub(super) fn settled(&mut self, wait: bool) -> Result<(), LogError> {
        let Some(settling) = self.settling.take() else { return Ok(()) };
        match settling.outcome(wait) {
            None => self.settling = Some(settling),
            Some(Ok(())) => self.tiles_from = self.tiles_from.max(settling.next),
            Some(Err(error)) => {
                self.segment.doubt(true);
                return Err(LogError::io("sync the file system of", self.layout.dir())(error));
            }
        }
        Ok(())
    }

    /// Waits until the tiles of all lines below `next` are on the disk, where anything is forced to it at all.
    ///
    /// # Errors
    /// As for [`LogWriter::settled`].
    pub(super) fn settle_below(&mut self, next: u64) -> Result<(), LogError> {
        self.settled(true)?;
        if self.settings.fsync == Fsync::Never || self.tiles_from >= next {
            return Ok(());
        }
        self.settling = Some(Settling::begin(&self.segment.file, next));
        self.settled(true)
    }
}

#[cfg(test)]
mod tests {
    use writ_core::log::{TILE_WIDTH, TileKind, TilePath};

    use super::super::tests::{Log, lines};
    use super::*;

    /// A log of several segments, forced to the disk.
    fn written() -> (Log, LogWriter) {
        let mut log = Log::new(40_000);
        log.settings.fsync = Fsync::Checkpoint;
        let (mut writer, _) = log.open();
        writer.append(&lines(0..2000)).unwrap();
        (log, writer)
    }

    #[test]
    fn tiles_that_could_not_be_brought_to_the_disk_are_made_again_before_another_line_is_taken() {
        let (log, mut writer) = written();
        writer.settled(true).unwrap();
        assert_eq!(writer.tiles_from, writer.segment.first, "all tiles of closed segments are on the disk");
        let segments = writer.layout.segments().unwrap();
        let (before, _) = segments[segments.len() - 2];
        // What a disk that fails does: the kernel says so, and what was in memory only is gone.
        let (told, outcome) = sync_channel(1);
        told.send(Err(io::Error::from_raw_os_error(5))).unwrap();
        writer.tiles_from = before;
        writer.settling = Some(Settling { next: writer.segment.first, outcome });
        let lost = writer.layout.tile(TilePath::full(TileKind::Entries, before / TILE_WIDTH));
        std::fs::remove_file(&lost).unwrap();
        let refused = writer.append(&lines(2000..2001)).unwrap_err();
        assert!(matches!(refused.source, LogError::InDoubt { .. }) && refused.written == 0, "{refused}");
        writer.checkpoint().unwrap();
        assert!(lost.exists());
        writer.append(&lines(2000..2010)).unwrap();
        // Recovery looks at the last two segments only.
        let last = writer.segment.first;
        writer.rotate().unwrap();
        assert!(writer.tiles_from >= last, "no segment is closed before the tiles of those before it are on the disk");
        writer.close().unwrap();
        assert_eq!(log.assert_sound(), 2010);
    }

    #[test]
    fn a_log_that_is_opened_brings_what_the_last_process_left_to_the_disk() {
        let (log, mut writer) = written();
        writer.checkpoint().unwrap();
        drop(writer);
        let (mut writer, recovery) = log.open();
        assert!(recovery.is_clean(), "{recovery:?}");
        assert!(writer.tiles_from < writer.segment.first);
        writer.settled(true).unwrap();
        assert_eq!(writer.tiles_from, writer.segment.first);
    }
}
