//! The thread of one sink: reads the log, sends, remembers how far it came, and tries again what failed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::position::PositionFile;
use super::{Line, Progress, Target};
use crate::log::Follow;

/// How often the log is looked at while there is nothing to send.
const LOOK: Duration = Duration::from_millis(100);
/// The pause after a failure: from this, doubled each time, to that.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Lines that are sent in one go.
const BATCH: usize = 256;
/// How often what was sent is brought to the disk.
const SYNC: Duration = Duration::from_secs(1);

/// One sink at work.
pub(super) struct Worker {
    name: String,
    log: std::path::PathBuf,
    types: Vec<String>,
    target: Box<dyn Target>,
    position: PositionFile,
    progress: Arc<Progress>,
    stop: Receiver<u64>,
    /// Lines that were read, are for this sink, and were not sent.
    batch: Vec<Line>,
    /// Index of the next line to be read.
    read: u64,
    /// The log's size up to which it still sends before it ends.
    until: Option<u64>,
    synced: Instant,
    unsynced: bool,
}

impl Worker {
    pub(super) fn new(
        name: &str,
        log: &Path,
        types: &[String],
        target: Box<dyn Target>,
        position: PositionFile,
        progress: Arc<Progress>,
        stop: Receiver<u64>,
    ) -> Self {
        let mut worker = Self {
            name: name.to_owned(),
            log: log.to_owned(),
            types: types.to_vec(),
            target,
            position,
            progress,
            stop,
            batch: Vec::with_capacity(BATCH),
            read: 0,
            until: None,
            synced: Instant::now(),
            unsynced: false,
        };
        // Said before the first look, so that nobody reads a position of 0.
        worker.advance(worker.position.load().next);
        worker
    }

    /// Sends until it is told to stop: not before those have ended that were told to stop and could not, because whatever they
    /// write to hung.
    pub(super) fn run(mut self, earlier: &[Arc<AtomicBool>]) {
        while earlier.iter().any(|over| !over.load(Ordering::Acquire)) {
            self.says(Some("what was sent to before has not let go yet".to_owned()));
            match self.stop.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        let mut follow: Option<Follow> = None;
        let mut pause = PAUSES.0;
        loop {
            let wait = match self.turn(&mut follow) {
                Ok(more) => {
                    pause = PAUSES.0;
                    self.says(None);
                    let done = self.until.is_some_and(|until| !more || self.next() >= until);
                    if done {
                        break;
                    }
                    if more { Duration::ZERO } else { LOOK }
                }
                Err(error) => {
                    self.says(Some(error));
                    if self.until.is_some() {
                        break;
                    }
                    let wait = pause;
                    pause = (pause * 2).min(PAUSES.1);
                    wait
                }
            };
            match self.stop.recv_timeout(wait) {
                Ok(until) if self.next() >= until => break,
                Ok(until) => self.until = Some(until),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody is left who could say so.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(error) = self.sync() {
            self.says(Some(error));
        }
    }

    /// Sends some lines. Returns whether there may be more.
    fn turn(&mut self, follow: &mut Option<Follow>) -> Result<bool, String> {
        let follow = match follow {
            Some(follow) => follow,
            None => {
                let next = self.target.resume(&self.position.load()).map_err(|error| error.to_string())?;
                self.advance(next);
                self.read = next;
                follow.insert(Follow::from_index(&self.log, next))
            }
        };
        let mut taken = 0;
        while taken < BATCH && self.batch.len() < BATCH {
            let line = follow.next_line().map_err(|error| error.to_string())?;
            let index = line.as_ref().map_or(follow.index(), |(index, _)| *index);
            if index > self.read {
                // Retention removed them before they could be sent.
                let lost = index - self.read;
                self.progress.lost.fetch_add(lost, Ordering::Relaxed);
                tracing::error!(sink = self.name, lost, "records were removed from the log before the sink took them");
                self.read = index;
            }
            let Some((index, line)) = line else { break };
            self.read = index + 1;
            taken += 1;
            if self.types.is_empty() || self.types.iter().any(|kind| is_of(&line, kind)) {
                self.batch.push((index, line));
            }
        }
        let more = taken == BATCH || self.batch.len() == BATCH;
        self.send()?;
        if self.unsynced && self.synced.elapsed() >= SYNC {
            self.sync()?;
        }
        Ok(more)
    }

    fn send(&mut self) -> Result<(), String> {
        if self.read == self.next() {
            return Ok(());
        }
        let mut kept = Ok(());
        let mut mark = None;
        let (position, progress) = (&mut self.position, &self.progress);
        let mut done = |next: u64, said: &str| {
            kept = position.save(next, said);
            progress.next.store(next, Ordering::Release);
            mark = Some(said.to_owned());
        };
        let sent = self.target.deliver(&self.batch, &mut done);
        self.unsynced = true;
        let next = self.next();
        // What was not sent is tried again.
        self.batch.retain(|(index, _)| *index >= next);
        self.progress.delivered.fetch_add(*sent.as_ref().unwrap_or(&0), Ordering::Relaxed);
        sent.map_err(|error| error.to_string())?;
        if next < self.read {
            // The last lines were not for this sink, or are gone.
            kept = self.position.save(self.read, &mark.unwrap_or_else(|| self.position.load().mark));
            self.advance(self.read);
        }
        kept.map_err(|error| format!("the sink's position cannot be kept: {error}"))
    }

    fn sync(&mut self) -> Result<(), String> {
        self.target.sync().map_err(|error| error.to_string())?;
        self.position.sync().map_err(|error| format!("the sink's position cannot be brought to the disk: {error}"))?;
        (self.synced, self.unsynced) = (Instant::now(), false);
        Ok(())
    }

    fn next(&self) -> u64 {
        self.progress.next.load(Ordering::Acquire)
    }

    fn advance(&mut self, next: u64) {
        self.progress.next.store(next, Ordering::Release);
    }

    /// Says how it goes, in the journal only when that changed.
    fn says(&self, problem: Option<String>) {
        let mut last = self.progress.error.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*last, &problem) {
            (None, Some(problem)) => tracing::error!(sink = self.name, problem, "the sink does not take records"),
            (Some(_), None) => tracing::info!(sink = self.name, "the sink takes records again"),
            _ => {}
        }
        *last = problem;
    }
}

/// Whether a line is a record of this type. Lines are written with their type in front.
fn is_of(line: &[u8], kind: &str) -> bool {
    let says = format!("\"type\":\"{kind}\"");
    line.get(..96).unwrap_or(line).windows(says.len()).any(|part| part == says.as_bytes())
}
