//! The engine's turn: whatever comes next, ring, question or time, one at a time, until it is told to stop.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use writ_core::record::Lifecycle;

use super::clock::Clocks;
use super::handle::{Handle, Question};
use super::{Actor, Engine, Refusal};
use crate::kernel::watch;
use crate::log::PruneOutcome;

const SECOND: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How long a stop reads on: what a flood puts into the ring after that is the next daemon's.
const CATCHING_UP: Duration = Duration::from_secs(5);
/// How many questions are answered before the ring has its turn.
const TOGETHER: usize = 64;
/// How often the log is looked through for lines that may go.
const PRUNE: Duration = Duration::from_secs(60);

/// Starts the engine on a thread of its own. The second part resolves when it has stopped.
///
/// # Errors
/// No thread or descriptor is free.
pub(crate) fn run(engine: Engine) -> std::io::Result<(Handle, oneshot::Receiver<()>)> {
    let (handle, questions) = Handle::new(engine.changes.news());
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
    // Whether the ring holds more than one batch took. It is read batch by batch, between everything else: a flood of
    // connects must not hold up a question, an expiry or the second's upkeep.
    let mut behind = true;
    while !engine.stopping {
        let deadline = engine.next_deadline().map(|at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(Duration::from_secs(3600))
        });
        tokio::select! {
            question = questions.recv() => match question {
                Some(question) => answer(&mut engine, question, &mut questions),
                None => break,
            },
            ready = ring.readable(), if !behind => {
                if let Ok(mut ready) = ready {
                    // Cleared first: what arrives while we read makes it ready again.
                    ready.clear_ready();
                }
                behind = engine.pump();
            }
            () = tokio::task::yield_now(), if behind => {
                behind = engine.pump();
                if deadline.is_some_and(|left| left.is_zero()) {
                    engine.expire();
                }
            }
            () = sleep(deadline) => engine.expire(),
            _ = tick.tick() => behind |= engine.tick(),
        }
    }
    engine.stop();
    // Only now do those who wait for us see the end: see `Handle::drained`.
    drop(questions);
}

/// Answers a question, and those that wait behind it, up to so many that connects do not wait long. What they recorded is
/// written once, and only then are those answered that wait for it.
fn answer(engine: &mut Engine, first: Question, questions: &mut mpsc::Receiver<Question>) {
    let mut recorded = Vec::new();
    let mut next = Some(first);
    let mut left = TOGETHER;
    while let Some(question) = next {
        recorded.extend(question(engine));
        left -= 1;
        next = if left == 0 || engine.stopping { None } else { questions.try_recv().ok() };
    }
    if recorded.is_empty() {
        return;
    }
    engine.flush();
    let written = engine.waiting.is_empty();
    for answer in recorded {
        answer(written);
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl Engine {
    /// What happens every second: lines retried, gaps counted, the head signed, the clocks compared. Returns whether the
    /// ring holds more.
    fn tick(&mut self) -> bool {
        let behind = self.pump();
        self.flush();
        self.look_at_counters(true);
        self.account_for(&[], &Clocks::read());
        let reading = Clocks::read().reading(&self.host.boot_id.clone());
        if let Some(step) = self.live.read_clock(reading) {
            tracing::warn!(%step, "the wall clock was set; everything that ends by time was moved along");
            match self.regenerate() {
                // No record of its own says so yet: the sessions' own cuts do.
                Ok(()) => self.judge_all_sessions(String::new(), "the wall clock was set", Instant::now()),
                Err(error) => tracing::error!(%error, "the kernel could not be told about the new time"),
            }
        }
        if Instant::now() >= self.heartbeat_due {
            self.heartbeat_due = Instant::now() + HEARTBEAT;
            self.heartbeat();
        }
        if Instant::now() >= self.prune_due {
            self.prune_due = Instant::now() + PRUNE;
            self.prune();
            self.forget_closed();
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
        self.sign();
        self.keep_position();
        behind
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

    /// Takes enforcement away, says so in the log, and stops: a daemon without enforcement would only look like one.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub(crate) fn uninstall(&mut self, actor: &Actor) -> Result<usize, Refusal> {
        let Some(pins) = self.current().map(|current| PathBuf::from(&current.config.agent.paths.pins)) else {
            return Err(Refusal::NotReady);
        };
        let removed = crate::kernel::uninstall(&pins).map_err(|error| Refusal::Kernel(error.to_string()))?;
        while self.pump() {}
        self.note_lifecycle(Lifecycle::Uninstall { by: actor.recorded() });
        self.flush();
        self.stopping = true;
        Ok(removed)
    }

    /// Ends the turn after this question.
    pub(crate) fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// Reads what is left, says so, signs the head. Enforcement stays.
    fn stop(&mut self) {
        let until = Instant::now() + CATCHING_UP;
        while self.pump() && Instant::now() < until {}
        // Whatever else there is to know of what was read.
        self.look_at_counters(true);
        self.pump();
        self.account_for_the_rest();
        self.note_counted_refusals(true);
        self.note_lifecycle(Lifecycle::Stop { reason: "asked to".into() });
        self.flush();
        if let Err(error) = self.log.checkpoint() {
            tracing::error!(%error, "the last checkpoint could not be written");
        }
        self.keep_position();
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
