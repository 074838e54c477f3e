//! The engine's turn: whatever comes next, ring, question or time, one at a time, until it is told to stop.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use writ_core::record::Lifecycle;

use super::clock::Clocks;
use super::handle::{Handle, Question};
use super::refresh::{Why, micros_since};
use super::seat::{Seat, Turn};
use super::together::MOST_TOGETHER;
use super::{Actor, Engine, Refusal};
use crate::kernel::{ClockSet, give_back_memory, watch};
use crate::log::PruneOutcome;
use crate::stack::STACK;

const SECOND: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How long a stop reads on: what a flood puts into the ring after that is the next daemon's.
const CATCHING_UP: Duration = Duration::from_secs(5);
/// So many records between two seconds of rest are a flood.
const FLOOD: u64 = 10_000;
/// How long the ring is left alone once it was read until it was empty. The first decision after that has the kernel wake us
/// from within the connect, which costs the caller more than the decision does; those that follow meanwhile do not.
const REST: Duration = Duration::from_millis(1);
/// The kernel was not told that the wall clock was set: windows end there by the clock as it was.
const CLOCK_UNTOLD: &str = "clock-untold";
/// The file that is written to was removed from the log directory.
const LOG_REMOVED: &str = "log-removed";
/// How often the log is looked through for lines that may go.
const PRUNE: Duration = Duration::from_secs(60);

/// Why the engine takes no more turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// It was asked to stop; enforcement stays.
    Asked,
    /// Enforcement was taken away.
    Uninstalled,
    /// It could not go on.
    Failed,
}

/// Starts the engine on a thread of its own. The second part resolves when it has stopped.
///
/// # Errors
/// No thread or descriptor is free.
pub(crate) fn run(engine: Engine) -> std::io::Result<(Handle, oneshot::Receiver<Ended>)> {
    let (stopped, stopping) = oneshot::channel();
    let ring = engine.kernel.readiness()?;
    let (handle, seat, questions) = Handle::new(engine);
    std::thread::Builder::new().name("engine".into()).stack_size(STACK).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = match runtime {
            Ok(runtime) => runtime.block_on(turns(&seat, questions, ring)),
            Err(error) => {
                tracing::error!(%error, "the engine cannot run");
                Ended::Failed
            }
        };
        seat.leave();
        let _ = stopped.send(ended);
    })?;
    Ok((handle, stopping))
}

async fn turns(seat: &Seat, mut questions: mpsc::Receiver<Question>, ring: OwnedFd) -> Ended {
    let ring = match watch(ring) {
        Ok(ring) => ring,
        Err(error) => {
            tracing::error!(%error, "the ring cannot be waited for");
            return Ended::Failed;
        }
    };
    let set = ClockSet::watch().and_then(|set| Ok((watch(set.readiness()?)?, set)));
    let set = match set {
        Ok(set) => Some(set),
        Err(error) => {
            tracing::warn!(%error, "the wall clock cannot be watched; it is compared every second");
            None
        }
    };
    let mut tick = tokio::time::interval(SECOND);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    // Whether the ring holds more than one batch took. It is read batch by batch, between everything else: a flood of
    // connects must not hold up a question, an expiry or the second's upkeep.
    let mut behind = true;
    let rest = tokio::time::sleep(REST);
    tokio::pin!(rest);
    let mut rests = false;
    let prepared = Arc::new(Notify::new());
    let passed = match seat.take().as_mut().and_then(Turn::engine) {
        Some(engine) => {
            engine.neighbours.start(Arc::clone(&prepared));
            engine.kernel.barrier_over()
        }
        None => return Ended::Failed,
    };
    loop {
        let Some(waits) = seat.take().as_mut().and_then(Turn::engine).map(Engine::waits) else { return broken() };
        let Waits { deadline, passes, ending } = waits;
        if ending {
            break;
        }
        let next = tokio::select! {
            question = questions.recv() => match question {
                Some(question) => Next::Question(question),
                None => break,
            },
            () = seat.wanted() => Next::Wanted,
            () = &mut rest, if rests => {
                rests = false;
                continue;
            }
            ready = ring.readable(), if !behind && !rests => {
                if let Ok(mut ready) = ready {
                    // Cleared first: what arrives while we read makes it ready again.
                    ready.clear_ready();
                }
                Next::Ring
            }
            () = tokio::task::yield_now(), if behind => Next::MoreOfRing,
            () = passed.notified(), if passes => Next::Passed,
            () = prepared.notified() => Next::Prepared,
            () = sleep(deadline) => Next::Expiry,
            () = clock_set(set.as_ref()) => Next::Expiry,
            _ = tick.tick() => Next::Second,
        };
        if matches!(next, Next::Wanted) {
            // A bell that rings again and again costs nothing of what tokio lets a task do in one go: without this, a flood of
            // questions would keep the ring, the second and every deadline from being noticed.
            tokio::task::yield_now().await;
        }
        let mut turn = seat.take();
        let Some(engine) = turn.as_mut().and_then(Turn::engine) else { return broken() };
        let (due, expires) = (deadline.is_some_and(|left| left.is_zero()), matches!(next, Next::Expiry));
        match next {
            Next::Question(question) => {
                // Before anything is judged, or begins, by a clock that was set a moment ago.
                engine.compare_clocks();
                question(engine);
                // What came meanwhile shares the grace period.
                for _ in 1..MOST_TOGETHER {
                    match questions.try_recv() {
                        Ok(question) => question(engine),
                        Err(_) => break,
                    }
                }
            }
            Next::Ring => {
                behind = engine.pump_unless_asked();
                rest.as_mut().reset(tokio::time::Instant::now() + REST);
                rests = !behind;
            }
            // Whole batches: a flood of questions does not have the ring fill up.
            Next::MoreOfRing => behind = engine.pump(),
            Next::Prepared => engine.take_prepared(),
            Next::Expiry => engine.expire(),
            Next::Second => behind |= engine.tick(),
            // Nothing else reads on while it is behind and is wanted each time.
            Next::Wanted | Next::Passed if behind => behind = engine.pump(),
            Next::Wanted | Next::Passed => {}
        }
        if due && !expires {
            // What waits for a deadline is made anew each turn: one that has passed is not left to it.
            engine.expire();
        }
        if turn.as_mut().is_some_and(|turn| !turn.answer()) {
            seat.want();
        }
    }
    let Some(mut turn) = seat.take() else { return broken() };
    let Some(engine) = turn.engine() else { return broken() };
    engine.settle();
    engine.stop();
    let ended = engine.ending.unwrap_or(Ended::Asked);
    // In the same turn: nothing is answered after the last record.
    turn.end();
    // Only now do those who wait for us see the end: see `Handle::drained`.
    drop(questions);
    ended
}

/// What the engine's own thread waits for.
struct Waits {
    /// How long until something ends by time.
    deadline: Option<Duration>,
    /// Whether a grace period passes.
    passes: bool,
    /// Nothing any more.
    ending: bool,
}

/// What came.
enum Next {
    Question(Question),
    Wanted,
    Ring,
    MoreOfRing,
    Passed,
    Prepared,
    Expiry,
    Second,
}

/// An asker's question did not come to an end.
fn broken() -> Ended {
    tracing::error!("a question broke off: what is in force stays, and the daemon must be started anew");
    Ended::Failed
}

/// Resolves when the wall clock was set or the host woke: the deadline above counts neither.
async fn clock_set(set: Option<&(AsyncFd<OwnedFd>, ClockSet)>) {
    let Some((ready, set)) = set else { return std::future::pending().await };
    loop {
        if let Ok(mut ready) = ready.readable().await {
            ready.clear_ready();
        }
        if set.was_set() {
            return;
        }
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl Engine {
    /// What its own thread waits for now.
    fn waits(&mut self) -> Waits {
        if self.neighbours.wait() {
            self.prepare_neighbour();
        }
        let deadline = self.next_deadline().map(|at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(Duration::from_secs(3600))
        });
        Waits { deadline, passes: self.unsettled.passes(), ending: self.ending.is_some() }
    }

    /// Whether its own thread would wait for something else now than before.
    pub(super) fn wants_turn(&self) -> bool {
        self.deadline.is_news() || self.unsettled.passes() || self.ending.is_some()
    }

    /// What happens every second: lines retried, gaps counted, the head signed, the clocks compared. Returns whether the
    /// ring holds more.
    fn tick(&mut self) -> bool {
        let behind = self.pump();
        self.flush();
        self.look_at_counters(true);
        self.account_for(&[], &Clocks::read());
        self.compare_clocks();
        self.check_attached();
        self.check_log();
        self.take_dropped();
        self.look_at_fingerprints();
        let failing = self.hook.status().failing;
        self.degraded_by("on-escalation-failing", failing);
        self.degraded_by("on-escalation-dropped", self.hook.drops());
        if Instant::now() >= self.heartbeat_due {
            self.heartbeat_due = Instant::now() + HEARTBEAT;
            self.heartbeat();
        }
        if Instant::now() >= self.prune_due {
            self.prune_due = Instant::now() + PRUNE;
            self.prune();
            self.forget_closed();
        }
        self.let_go();
        self.resolve_again();
        self.apply_again();
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
        self.rest_after_a_flood();
        behind
    }

    /// Notices that somebody took the log away from under the daemon, which goes on writing to what is left of it.
    fn check_log(&mut self) {
        let gone = self.log.is_unlinked();
        if gone && !self.degraded.iter().any(|reason| reason == LOG_REMOVED) {
            tracing::error!(
                "THE LOG WAS REMOVED: its files are gone from the log directory; restart the daemon, which begins anew from what is left"
            );
        }
        self.degraded_by(LOG_REMOVED, gone);
    }

    /// Gives back the memory that many records took, in the first second without any.
    fn rest_after_a_flood(&mut self) {
        let size = self.log.size();
        if size == self.rested.1 && size - self.rested.0 >= FLOOD {
            give_back_memory();
            self.rested.0 = size;
        }
        self.rested.1 = size;
    }

    /// Looks whether the wall clock was set; if so, everything that ends by time is moved along. What the kernel could not be
    /// told is told by the next look.
    pub(super) fn compare_clocks(&mut self) {
        let reading = Clocks::read().reading(&self.host.boot_id.clone());
        let id = self.live.read_clock(reading).map(|step| {
            tracing::warn!(%step, "the wall clock was set; everything that ends by time was moved along");
            let step_ms =
                i64::try_from(step.as_millis()).unwrap_or(if step.is_negative() { i64::MIN } else { i64::MAX });
            self.note_lifecycle(Lifecycle::ClockSet { step_ms })
        });
        if id.is_none() && !self.degraded.iter().any(|reason| reason == CLOCK_UNTOLD) {
            return;
        }
        if id.is_some() {
            // With the reading it was moved to: a daemon after this one must not move it once more.
            self.save_live();
        }
        let (began, before) = (Instant::now(), self.moments_now());
        let told = self.supersede();
        self.degraded_by(CLOCK_UNTOLD, told.is_err());
        match told {
            Ok(()) => {
                let why = Why { cause: "clock-set".to_owned(), id: id.clone(), ..Why::default() };
                self.note_policy_changes(&before, &why, micros_since(began));
                self.judge_all_sessions(id.unwrap_or_default(), "the wall clock was set", began);
            }
            Err(error) => tracing::error!(%error, "the kernel could not be told about the new time; it is tried again"),
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
        self.ending = Some(Ended::Uninstalled);
        Ok(removed)
    }

    /// Ends the turn after this question.
    pub(crate) fn begin_stop(&mut self) {
        self.ending.get_or_insert(Ended::Asked);
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
        self.sinks.finish(self.log.size());
        self.save_explained();
        self.save_live();
        if let Err(error) = self.store.save_numbers(&self.numbers) {
            tracing::error!(%error, "account epochs could not be kept");
        }
    }
}
