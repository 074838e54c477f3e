//! The engine's turn: whatever comes next, ring, question or time, one at a time, until it is told to stop.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use writ_core::record::{Body, Lifecycle};

use super::Engine;
use super::clock::Clocks;
use super::handle::{Handle, Question};
use crate::kernel::watch;

const SECOND: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(300);

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
            ready = ring.readable() => {
                if let Ok(mut ready) = ready {
                    // Cleared first: what arrives while we read makes it ready again.
                    ready.clear_ready();
                }
                while engine.pump() {
                    // Questions are answered between batches: a flood of connects must not hold up a revocation.
                    while let Ok(question) = questions.try_recv() {
                        question(&mut engine);
                    }
                }
            }
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
        // Under a flood the rest is for the next turns: a revocation must not wait for the ring to be empty.
        let enough = Instant::now() + SECOND / 20;
        let mut more = self.pump();
        while more && Instant::now() < enough {
            more = self.pump();
        }
        self.flush();
        if self.waiting.is_empty() && !more {
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
        self.note_counted_refusals(false);
        if self.live_unsaved {
            self.save_live();
        }
        if let Err(error) = self.live_journal.sync() {
            tracing::error!(%error, "signals could not be brought to the disk; the state is written whole instead");
            self.save_live();
        }
        self.flush();
        if let Err(error) = self.log.checkpoint() {
            tracing::error!(%error, "the log's head could not be signed");
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

    /// Ends the turn after this question.
    pub(crate) fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// Reads what is left, says so, signs the head. Enforcement stays.
    fn stop(&mut self) {
        while self.pump() {}
        self.note_counted_refusals(true);
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
        self.save_live();
        if let Err(error) = self.store.save_numbers(&self.numbers) {
            tracing::error!(%error, "account epochs could not be kept");
        }
    }
}
