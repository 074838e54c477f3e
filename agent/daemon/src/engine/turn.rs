//! The engine's turn: whatever comes next, ring, question or time, one at a time, until it is told to stop.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use writ_core::record::{Body, Lifecycle};

use super::Engine;
use super::clock::Clocks;
use super::handle::{Handle, Question};
use crate::kernel::watch;
use crate::log::PruneOutcome;

const SECOND: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How long a tick may read before the rest of it is due.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How long the ring is read at the end.
const LAST_READ: Duration = Duration::from_secs(2);
/// How often the log is looked through for lines that may go.
const PRUNE: Duration = Duration::from_secs(60);

/// Starts the engine on a thread of its own. The second part resolves when it has stopped.
///
/// # Errors
/// No thread or descriptor is free.
pub(crate) fn run(engine: Engine) -> std::io::Result<(Handle, oneshot::Receiver<()>)> {
    let (handle, questions) = Handle::new();
    let (stopped, stopping) = oneshot::channel();
    let ring = engine.kernel.readiness()?;
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(turn(engine, questions, ring)),
            Err(error) => tracing::error!(%error, "the engine cannot run"),
        }
        let _ = stopped.send(());
    })?;
    Ok((handle, stopping))
}

async fn turn(mut engine: Engine, mut questions: mpsc::Receiver<Question>, ring: OwnedFd) {
    let ring = match watch(ring) {
        Ok(ring) => ring,
        Err(error) => {
            tracing::error!(%error, "the ring cannot be waited for");
            return;
        }
    };
    let mut tick = tokio::time::interval(SECOND);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    // What was left over at the start does not make the ring ready again.
    let mut more = true;
    while !engine.stopping {
        let deadline = engine.next_deadline().map(|at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(Duration::from_secs(3600))
        });
        tokio::select! {
            question = questions.recv() => match question {
                Some(question) => question(&mut engine),
                None => break,
            },
            ready = ring.readable(), if !more => {
                if let Ok(mut ready) = ready {
                    // Cleared first: what arrives while we read makes it ready again.
                    ready.clear_ready();
                }
                more = engine.pump();
            }
            // Between batches everything else has its turn: a flood of connects must hold up neither a revocation nor
            // the clock.
            () = tokio::task::yield_now(), if more => more = engine.pump(),
            () = sleep(deadline) => engine.expire(),
            _ = tick.tick() => engine.tick(),
        }
    }
    engine.stop();
    // Only now do those who wait for us see the end: see `Handle::drained`.
    drop(questions);
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl Engine {
    /// What happens every second: lines retried, gaps counted, the head signed, the clocks compared.
    fn tick(&mut self) {
        let caught_up = self.catch_up(CATCH_UP);
        self.flush();
        // While something waits in the ring, a number that did not come is not lost.
        if caught_up && self.waiting.is_empty() {
            let counters = self.kernel.counters().unwrap_or_default();
            for loss in self.losses.reconcile(&counters) {
                self.note(Body::Loss(Box::new(loss)));
            }
        }
        let reading = Clocks::read().reading(&self.host.boot_id.clone());
        if let Some(step) = self.live.read_clock(reading) {
            tracing::warn!(%step, "the wall clock was set; everything that ends by time was moved along");
            if let Err(error) = self.regenerate() {
                tracing::error!(%error, "the kernel could not be told about the new time");
            }
        }
        if Instant::now() >= self.heartbeat_due {
            self.heartbeat_due = Instant::now() + HEARTBEAT;
            self.heartbeat();
        }
        if Instant::now() >= self.prune_due {
            self.prune_due = Instant::now() + PRUNE;
            self.prune();
        }
        self.flush();
        if let Err(error) = self.log.checkpoint() {
            tracing::error!(%error, "the log's head could not be signed");
        }
    }

    /// Lets the oldest lines go, where a retention is set, and says so.
    fn prune(&mut self) {
        match self.log.prune(SystemTime::now()) {
            Ok(Some(pruned)) => {
                let PruneOutcome { first_index, files } = pruned;
                tracing::info!(first_index, segments = files.len(), "records older than the retention were removed");
                self.note_lifecycle(Lifecycle::Pruned { first_index, files });
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "old records could not be removed"),
        }
    }

    fn heartbeat(&mut self) {
        let Some(status) = self.status() else { return };
        let records = status.records;
        self.note_lifecycle(Lifecycle::Heartbeat {
            seen: records.seen,
            recorded: records.recorded,
            lost: records.lost,
            in_flight: records.in_flight,
        });
    }

    /// Reads the ring until it is empty, or for so long: under a flood it never is. Returns whether it is.
    pub(super) fn catch_up(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while self.pump() {
            if Instant::now() >= until {
                return false;
            }
        }
        true
    }

    /// Ends the turn after this question.
    pub(crate) fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// Reads what is left, says so, signs the head. Enforcement stays.
    fn stop(&mut self) {
        // What is left after that stays in the pinned ring, for the next daemon.
        self.catch_up(LAST_READ);
        self.note_lifecycle(Lifecycle::Stop { reason: "asked to".into() });
        self.flush();
        if let Err(error) = self.log.checkpoint() {
            tracing::error!(%error, "the last checkpoint could not be written");
        }
        if !self.waiting.is_empty() {
            tracing::error!(
                lines = self.waiting.len(),
                "the log could not be written before the end; these decisions are counted as lost by the next daemon"
            );
        }
        self.save_explained();
    }
}
