//! Whose turn it is: the engine's own thread's, or that of an asker who finds the engine idle and spares both the wait for
//! the other to wake up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use tokio::sync::{Notify, mpsc};

use super::Engine;
use super::handle::Question;
use super::together::MOST_TOGETHER;

/// Whether somebody asks who found the seat taken: whoever has it does less at a time then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// It may have been answered by now: then less is done at a time once.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One at a time has it.
#[derive(Clone)]
pub(super) struct Seat(Arc<Shared>);

struct Shared {
    seated: Mutex<Option<Seated>>,
    /// Whether the engine's own thread waits for the seat: no asker takes it before it has been there.
    waits: AtomicBool,
    asked: Asked,
    /// Rung when there is something that only the engine's own thread does, or does in time.
    bell: Notify,
}

/// The engine, and what is asked of it that whoever has the seat may answer.
struct Seated {
    engine: Engine,
    brief: mpsc::Receiver<Question>,
}

/// The engine of whoever has the seat.
pub(super) struct Turn<'a>(MutexGuard<'a, Option<Seated>>);

impl Seat {
    pub(super) fn new(engine: Engine, brief: mpsc::Receiver<Question>) -> Self {
        let asked = engine.asked.clone();
        let seated = Mutex::new(Some(Seated { engine, brief }));
        Self(Arc::new(Shared { seated, waits: AtomicBool::new(false), asked, bell: Notify::new() }))
    }

    /// The engine's own thread takes the seat, as soon as an asker who has it is done; `None`: an asker did not come to an
    /// end, and nothing that the engine believes can be relied on.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        self.0.waits.store(true, Ordering::Release);
        let seated = self.0.seated.lock();
        self.0.waits.store(false, Ordering::Release);
        seated.ok().map(Turn)
    }

    /// Resolves when the engine's own thread is wanted.
    pub(super) async fn wanted(&self) {
        self.0.bell.notified().await;
    }

    /// Has the engine's own thread come once more.
    pub(super) fn want(&self) {
        self.0.bell.notify_one();
    }

    /// An asker answers what was asked, its own question too, unless the seat is taken: then whoever has it does, or the
    /// engine's own thread after them.
    pub(super) fn answer(&self) {
        if self.0.waits.load(Ordering::Acquire) {
            return self.wait_for_it();
        }
        match self.0.seated.try_lock() {
            Ok(mut seated) => {
                let Some(seated) = seated.as_mut() else { return };
                if !seated.answer() || seated.engine.wants_turn() {
                    self.want();
                }
            }
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => self.wait_for_it(),
        }
    }

    /// What was asked is answered by whoever has the seat, or comes next.
    fn wait_for_it(&self) {
        self.0.asked.0.store(true, Ordering::Release);
        self.want();
    }

    /// Nobody takes the seat any more, if somebody still could; what was not answered is not.
    pub(super) fn leave(&self) {
        Turn(self.0.seated.lock().unwrap_or_else(PoisonError::into_inner)).end();
    }
}

impl Seated {
    /// Answers what was asked up to now, then goes on with what is unsettled; `false` if more may be waiting.
    fn answer(&mut self) -> bool {
        // Before it is looked for: what is asked from here on says so again.
        self.engine.asked.0.store(false, Ordering::Release);
        let mut answered = 0;
        while answered < MOST_TOGETHER {
            let Ok(question) = self.brief.try_recv() else { break };
            if answered == 0 {
                // Before anything is judged by a clock that was set a moment ago.
                self.engine.compare_clocks();
            }
            question(&mut self.engine);
            answered += 1;
        }
        // What they recorded is written at once, with what was read before them.
        self.engine.settle_soon();
        answered < MOST_TOGETHER
    }
}

impl Turn<'_> {
    /// The last one: whoever comes for the seat finds nobody there.
    pub(super) fn end(mut self) {
        drop(self.0.take());
    }

    /// Answers what askers left, then goes on with what is unsettled; `false` if more may be waiting.
    pub(super) fn answer(&mut self) -> bool {
        self.0.as_mut().is_none_or(Seated::answer)
    }

    pub(super) fn engine(&mut self) -> Option<&mut Engine> {
        self.0.as_mut().map(|seated| &mut seated.engine)
    }
}
