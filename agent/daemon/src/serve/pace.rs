//! Whether a caller asks one question after another: then the next one is worth a moment awake.
//!
//! A thread that waits in the kernel lets its processor fall asleep, and where that is a virtual one it takes tens of microseconds
//! to be woken: as long as a question takes to be answered. So who asked again at once is looked at a moment longer.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How soon after an answer the next question has to come, and how long it is waited for.
const SOON: Duration = Duration::from_micros(100);
/// How many questions are waited for awake in a row. Meanwhile nobody else is listened to on this thread.
const MOST: u32 = 3;

/// Who asked last of all, so that nobody is waited for while others ask too.
#[derive(Clone, Debug)]
pub(super) struct Askers(Arc<Last>);

#[derive(Debug)]
struct Last {
    asker: AtomicU64,
    known: AtomicU64,
    /// Where there is one processor, a caller could not even ask while it is waited for.
    several_processors: bool,
}

/// The pace of one connection.
#[derive(Debug)]
pub(super) struct Pace {
    askers: Askers,
    own: u64,
    /// Since when nothing has been asked.
    answered: Option<Instant>,
    /// Whether the next question is likely to come soon.
    soon: bool,
    in_a_row: u32,
}

impl Askers {
    /// Nobody yet, on this host.
    pub(super) fn here() -> Self {
        Self::on(available_parallelism().map_or(1, NonZero::get))
    }

    fn on(processors: usize) -> Self {
        let (asker, known) = Default::default();
        Self(Arc::new(Last { asker, known, several_processors: processors > 1 }))
    }

    /// One more of them.
    pub(super) fn pace(&self) -> Pace {
        let own = self.0.known.fetch_add(1, Ordering::Relaxed) + 1;
        Pace { askers: self.clone(), own, answered: None, soon: false, in_a_row: 0 }
    }
}

impl Pace {
    /// A question has come.
    pub(super) fn asked(&mut self) {
        let alone = self.askers.0.asker.swap(self.own, Ordering::Relaxed) == self.own;
        self.soon = alone && self.answered.take().is_some_and(|at| at.elapsed() < SOON);
    }

    /// It was answered.
    pub(super) fn answered(&mut self) {
        self.answered = Some(Instant::now());
    }

    /// Looks for the next question until one comes, if it is likely to come soon. In between, whoever else has something to do on
    /// this processor does it.
    pub(super) fn wait<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let answered = self.answered.filter(|_| self.soon && self.askers.0.several_processors)?;
        if self.in_a_row == MOST {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        while answered.elapsed() < SOON {
            if let Some(found) = look() {
                return Some(found);
            }
            std::thread::yield_now();
        }
        self.soon = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment that was just now for as long as a test can take.
    fn just_now() -> Option<Instant> {
        Instant::now().checked_add(Duration::from_secs(3_600))
    }

    /// A caller that has just asked a second time at once.
    fn quick(askers: &Askers) -> Pace {
        let mut pace = askers.pace();
        pace.asked();
        pace.answered = just_now();
        pace.asked();
        pace
    }

    #[test]
    fn who_asks_again_at_once_is_waited_for_and_nobody_else() {
        let askers = Askers::on(2);
        let mut first = askers.pace();
        first.asked();
        first.answered();
        assert_eq!(first.wait(|| Some(1)), None, "nothing is known of it yet");
        let mut quick = quick(&askers);
        assert!(quick.soon);
        assert_eq!(quick.wait(|| Some(1)), None, "it is not answered yet");
        quick.answered = just_now();
        assert_eq!(quick.wait(|| Some(1)), Some(1));
        first.answered = just_now();
        first.asked();
        assert!(!first.soon, "another one asked in between");
    }

    #[test]
    fn a_wait_in_vain_is_the_last_and_many_are_followed_by_a_rest() {
        let mut pace = quick(&Askers::on(2));
        pace.answered = just_now();
        for _ in 0..MOST {
            assert!(pace.wait(|| Some(())).is_some());
        }
        assert!(pace.wait(|| Some(())).is_none(), "others are listened to");
        assert!(pace.wait(|| Some(())).is_some());
        pace.answered();
        assert!(pace.wait(|| None::<()>).is_none());
        assert!(pace.wait(|| Some(())).is_none(), "it did not come");
    }
    #[test]
    fn nobody_is_waited_for_on_the_only_processor_there_is() {
        let mut pace = quick(&Askers::on(1));
        pace.answered = just_now();
        assert_eq!(pace.wait(|| Some(1)), None);
    }
}
