//! Sinks: the log's records sent on, each sink by a thread of its own that reads the log and remembers how far it came.
//!
//! Nothing here is on the way of a decision: a sink that fails or hangs falls behind, by a number that `status` shows.
//! docs/export.md says what each sink promises.

mod journald;
mod ocsf_file;
mod position;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use writ_core::config::{Sink, SinkKind};

use self::journald::Journald;
use self::ocsf_file::OcsfFile;
use self::position::{PositionFile, Resumed};
use self::worker::Worker;

/// How long a stop waits for sinks to send what is in the log.
const DRAINING: Duration = Duration::from_secs(2);

/// A line of the log and its index.
type Line = (u64, Vec<u8>);

/// A delivery that failed; it is made again.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
struct SinkError {
    operation: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl SinkError {
    fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self { operation, path: path.to_owned(), source }
    }
}

/// Where lines are sent.
trait Target: Send {
    /// Opens it, finds out what reached it, and says from which index to go on.
    fn resume(&mut self, from: &Resumed) -> Result<u64, SinkError>;
    /// Sends lines in order, and says after each, or after several, how far it came: the next index, and a text that
    /// [`Target::resume`] will be given again. Returns how many events that made.
    fn deliver(&mut self, lines: &[Line], done: &mut dyn FnMut(u64, &str)) -> Result<u64, SinkError>;
    /// Brings what was sent to the disk, where it is this process that has to.
    fn sync(&mut self) -> Result<(), SinkError>;
}

/// How far a sink is.
#[derive(Debug, Default)]
struct Progress {
    /// Index of the next line to be sent.
    next: AtomicU64,
    /// Events sent since the start.
    delivered: AtomicU64,
    /// Records that were removed from the log before they could be sent, since the start.
    lost: AtomicU64,
    /// Why the last attempt failed, if it did.
    error: Mutex<Option<String>>,
}

/// How a sink fares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SinkState {
    /// Its name.
    pub name: String,
    /// `ocsf-file` or `journald`.
    pub kind: &'static str,
    /// Index of the next record it will be sent.
    pub next: u64,
    /// Events it was sent since the daemon started.
    pub delivered: u64,
    /// Records it will never be sent: they were removed from the log first.
    pub lost: u64,
    /// Why it does not work.
    pub error: Option<String>,
}

/// What tells a worker to end, and when it has.
struct Running {
    settings: Sink,
    progress: Arc<Progress>,
    /// The size of the log up to which it still sends.
    stop: Sender<u64>,
    ended: Receiver<()>,
    over: Arc<AtomicBool>,
}

/// A worker that did not end in time.
struct Ending {
    name: String,
    kind: SinkKind,
    over: Arc<AtomicBool>,
}

impl Ending {
    /// Whether a sink of this name and kind must wait for it: two that write the same would send twice.
    fn hinders(&self, name: &str, kind: &SinkKind) -> bool {
        let same_place = match (&self.kind, kind) {
            (SinkKind::OcsfFile { path: one, .. }, SinkKind::OcsfFile { path: other, .. }) => one == other,
            (SinkKind::Journald { socket: one }, SinkKind::Journald { socket: other }) => one == other,
            _ => false,
        };
        same_place || self.name == name
    }
}

/// The sinks that run.
pub(crate) struct Sinks {
    log: PathBuf,
    /// Which log: its name and key.
    identity: String,
    positions: PathBuf,
    running: BTreeMap<String, Running>,
    ending: Vec<Ending>,
}

impl Sinks {
    /// No sink yet. `size` is that of the log as it was opened: what a crash took from its end was sent already, and its
    /// numbers will be given to other records.
    pub(crate) fn new(log: &Path, state: &Path, identity: &str, size: u64) -> Self {
        let positions = state.join("sinks");
        position::rewind_all(&positions, identity, size);
        Self {
            log: log.to_owned(),
            identity: identity.to_owned(),
            positions,
            running: BTreeMap::new(),
            ending: Vec::new(),
        }
    }

    /// Makes the running sinks those of the configuration; one that did not change goes on undisturbed.
    pub(crate) fn apply(&mut self, wanted: &BTreeMap<String, Sink>) {
        let gone: Vec<String> = self
            .running
            .iter()
            .filter(|(name, running)| wanted.get(*name) != Some(&running.settings))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                // At once: what is in the log is sent when there is such a sink again.
                self.ending.extend(running.end(0, Instant::now() + DRAINING, &name));
            }
        }
        self.ending.retain(|ending| !ending.over.load(Ordering::Acquire));
        for (name, settings) in wanted {
            if self.running.contains_key(name) {
                continue;
            }
            match self.start(name, settings) {
                Ok(running) => drop(self.running.insert(name.clone(), running)),
                Err(error) => tracing::error!(sink = name, %error, "the sink cannot run"),
            }
        }
    }

    fn start(&self, name: &str, settings: &Sink) -> std::io::Result<Running> {
        let progress = Arc::new(Progress::default());
        let (stop, stopping) = channel();
        let (ends, ended) = channel();
        let target: Box<dyn Target> = match &settings.kind {
            SinkKind::OcsfFile { path, rotate_size, keep } => {
                Box::new(OcsfFile::new(Path::new(path), &self.identity, *rotate_size, *keep))
            }
            SinkKind::Journald { socket } => Box::new(Journald::new(Path::new(socket), &self.identity)),
        };
        let position = PositionFile::new(&self.positions, name, &self.identity);
        let worker = Worker::new(name, &self.log, &settings.types, target, position, Arc::clone(&progress), stopping);
        let over = Arc::new(AtomicBool::new(false));
        let earlier = self.ending.iter().filter(|ending| ending.hinders(name, &settings.kind));
        let earlier: Vec<Arc<AtomicBool>> = earlier.map(|ending| Arc::clone(&ending.over)).collect();
        let ended_too = Arc::clone(&over);
        std::thread::Builder::new().name(format!("sink {name}")).spawn(move || {
            worker.run(&earlier);
            ended_too.store(true, Ordering::Release);
            // Whoever waits for it may have given up.
            let _ = ends.send(());
        })?;
        Ok(Running { settings: settings.clone(), progress, stop, ended, over })
    }

    /// Lets every sink send what the log has, for a little while, and ends them.
    pub(crate) fn finish(&mut self, size: u64) {
        let until = Instant::now() + DRAINING;
        for running in self.running.values() {
            let _ = running.stop.send(size);
        }
        for (name, running) in std::mem::take(&mut self.running) {
            running.end(size, until, &name);
        }
    }

    /// How each sink fares.
    pub(crate) fn states(&self) -> Vec<SinkState> {
        let of = |(name, running): (&String, &Running)| SinkState {
            name: name.clone(),
            kind: match running.settings.kind {
                SinkKind::OcsfFile { .. } => "ocsf-file",
                SinkKind::Journald { .. } => "journald",
            },
            next: running.progress.next.load(Ordering::Acquire),
            delivered: running.progress.delivered.load(Ordering::Relaxed),
            lost: running.progress.lost.load(Ordering::Relaxed),
            error: running.progress.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        self.running.iter().map(of).collect()
    }
}

impl Running {
    /// Ends the worker once the log up to `size` is sent, or when it is time: then it is given back.
    fn end(self, size: u64, until: Instant, name: &str) -> Option<Ending> {
        let _ = self.stop.send(size);
        let left = until.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left).is_err() {
            let next = self.progress.next.load(Ordering::Acquire);
            tracing::warn!(sink = name, next, "the sink did not take all records in time; it goes on from there");
            return Some(Ending { name: name.to_owned(), kind: self.settings.kind, over: self.over });
        }
        None
    }
}
