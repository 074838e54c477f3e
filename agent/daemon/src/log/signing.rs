//! Checkpoints that are due by count, made beside the writer: forcing lines to the disk and writing their tiles takes
//! milliseconds, in which the next lines can be written.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use writ_core::config::Fsync;
use writ_core::log::{Checkpoint, TilePath};

use super::file::replace;
use super::segment::Mark;
use super::tiles::write_tile;
use super::writer::LogWriter;
use super::{Layout, LogError};

/// Where lines come so fast that a checkpoint by count was made this lately, none is due by time.
const LATELY: Duration = Duration::from_millis(200);

/// A tile and its content.
pub(super) type Tile = (TilePath, Vec<u8>);

/// Everything that a checkpoint needs on the disk, in the order in which it is written.
struct Job {
    /// The lines' file, if lines are to be forced to the disk.
    lines: Option<(Arc<File>, PathBuf)>,
    layout: Layout,
    /// Full tiles.
    tiles: Vec<Tile>,
    /// Partial ones.
    partial: Vec<Tile>,
    /// The signed head.
    checkpoint: String,
}

/// What became of a [`Job`].
struct Done {
    /// The full tiles, to be written again where something failed.
    tiles: Vec<Tile>,
    outcome: Result<(), Failure>,
}

/// What failed.
struct Failure {
    /// Whether lines may be lost that were to be forced to the disk.
    of_lines: bool,
    error: LogError,
}

impl Job {
    fn run(self) -> Done {
        let outcome = self.write();
        Done { tiles: self.tiles, outcome }
    }

    fn write(&self) -> Result<(), Failure> {
        if let Some((file, path)) = &self.lines {
            let forced = file.sync_data().map_err(LogError::io("sync", path));
            forced.map_err(|error| Failure { of_lines: true, error })?;
        }
        let rest = || -> Result<(), LogError> {
            for (tile, content) in self.tiles.iter().chain(&self.partial) {
                write_tile(&self.layout.tile(*tile), content)?;
            }
            replace(&self.layout.checkpoint(), self.checkpoint.as_bytes(), self.lines.is_some())
        };
        rest().map_err(|error| Failure { of_lines: false, error })
    }
}

/// The thread that does it, one at a time.
pub(super) struct Signing {
    jobs: mpsc::Sender<Job>,
    done: mpsc::Receiver<Done>,
}

impl Signing {
    /// Starts the thread; it ends with this.
    ///
    /// # Errors
    /// No thread is free.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (answers, done) = mpsc::channel();
        std::thread::Builder::new().name("signing".into()).spawn(move || {
            for job in work {
                if answers.send(job.run()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// Hands over a job; gives back its full tiles if the thread has ended.
    fn begin(&self, job: Job) -> Result<(), Vec<Tile>> {
        self.jobs.send(job).map_err(|refused| refused.0.tiles)
    }

    /// What became of the job that was handed over; `None` if it is not done yet, and there is no `wait` for it.
    fn finish(&self, wait: bool) -> Option<Done> {
        let ended = || {
            let error = LogError::Io {
                operation: "sign",
                path: "checkpoint".into(),
                source: io::Error::other("its thread has ended"),
            };
            Done { tiles: Vec::new(), outcome: Err(Failure { of_lines: true, error }) }
        };
        if wait {
            return Some(self.done.recv().unwrap_or_else(|_| ended()));
        }
        match self.done.try_recv() {
            Ok(done) => Some(done),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(ended()),
        }
    }
}

/// A checkpoint that is being made.
pub(super) struct Pending {
    /// What it signs.
    pub(super) size: u64,
    mark: Mark,
    partial: Vec<TilePath>,
}

impl LogWriter {
    /// Begins a checkpoint of what is written, which must end where a tile ends; first waits for the one before it.
    ///
    /// # Errors
    /// That one failed. Everything it was to write is still there to be written.
    pub(super) fn begin_checkpoint(&mut self) -> Result<(), LogError> {
        self.finish_checkpoint(true)?;
        if self.signing.is_none() {
            self.signing = Signing::start().ok();
        }
        let Some(signing) = &self.signing else { return self.checkpoint().map(drop) };
        let size = self.edge.size();
        let head = Checkpoint { origin: self.origin().to_owned(), size, root: self.edge.root() };
        let partial: Vec<Tile> =
            self.edge.partial().map(|(tile, hashes)| (tile, hashes.as_flattened().to_vec())).collect();
        let pending =
            Pending { size, mark: self.segment.mark(size), partial: partial.iter().map(|(tile, _)| *tile).collect() };
        let job = Job {
            lines: (self.settings.fsync != Fsync::Never).then(|| self.segment.shared()),
            layout: self.layout.clone(),
            tiles: self.tiles.take_owed(),
            partial,
            checkpoint: head.sign(&self.signer),
        };
        match signing.begin(job) {
            Ok(()) => self.pending = Some(pending),
            Err(tiles) => {
                self.signing = None;
                self.tiles.give_back(tiles);
                return self.checkpoint().map(drop);
            }
        }
        Ok(())
    }

    /// Takes what became of the checkpoint that is being made, if there is one, and if it is done or is to be waited for.
    ///
    /// # Errors
    /// It failed. Everything it was to write is still there to be written.
    pub(super) fn finish_checkpoint(&mut self, wait: bool) -> Result<(), LogError> {
        let Some((pending, signing)) = self.pending.take().zip(self.signing.as_ref()) else { return Ok(()) };
        let Some(Done { tiles, outcome }) = signing.finish(wait) else {
            self.pending = Some(pending);
            return Ok(());
        };
        if let Err(Failure { of_lines, error }) = outcome {
            self.tiles.give_back(tiles);
            self.segment.doubt(of_lines);
            return Err(error);
        }
        if self.settings.fsync != Fsync::Never {
            self.segment.forced(pending.mark);
        }
        self.signed = Some(pending.size);
        self.signed_by_count = Some(Instant::now());
        self.failure = None;
        self.tiles.remove_outdated(&self.layout, pending.partial)
    }

    /// Whether checkpoints are made by count at this moment, so that none is due by time.
    pub(crate) fn signs_by_count(&self) -> bool {
        self.failure.is_none() && self.signed_by_count.is_some_and(|at| at.elapsed() < LATELY)
    }
}

impl Drop for LogWriter {
    /// What is being written is written before anybody else can open the log.
    fn drop(&mut self) {
        if let Err(error) = self.finish_checkpoint(true) {
            tracing::error!(%error, "a checkpoint could not be written");
        }
    }
}
