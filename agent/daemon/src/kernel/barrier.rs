//! The kernel's grace period: when it is over, every program that was running when it began has returned. It takes ten
//! milliseconds and more, so it is waited for on a thread of its own.

use std::io;
use std::sync::{Arc, mpsc};

use tokio::sync::Notify;

use super::generation::{InstallError, Words, failed, words};

type Outcome = Result<(), Arc<InstallError>>;

/// Where grace periods are asked for.
#[derive(Debug)]
pub(super) struct Barrier {
    asks: mpsc::Sender<mpsc::Sender<Outcome>>,
    over: Arc<Notify>,
}

/// A grace period that was asked for.
#[derive(Debug)]
pub(crate) struct Passing(mpsc::Receiver<Outcome>);

impl Barrier {
    /// Starts the thread; it ends with this.
    ///
    /// # Errors
    /// No thread is free.
    pub(super) fn start(mut map: Words) -> io::Result<Self> {
        let (asks, asked) = mpsc::channel::<mpsc::Sender<Outcome>>();
        let over = Arc::new(Notify::new());
        let notify = Arc::clone(&over);
        std::thread::Builder::new().name("grace".into()).spawn(move || {
            while let Ok(first) = asked.recv() {
                // One that begins after all of these were asked for serves them all.
                let together: Vec<_> = std::iter::once(first).chain(asked.try_iter()).collect();
                let outcome = pass(&mut map).map_err(Arc::new);
                for waiting in together {
                    // Nobody may be waiting any more.
                    let _ = waiting.send(outcome.clone());
                }
                notify.notify_one();
            }
        })?;
        Ok(Self { asks, over })
    }

    /// Asks for a grace period that begins after this.
    pub(super) fn begin(&self) -> Passing {
        let (answer, passed) = mpsc::channel();
        // Without the thread nothing is ever answered, which whoever waits is told.
        let _ = self.asks.send(answer);
        Passing(passed)
    }

    /// Told whenever a grace period is over.
    pub(super) fn over(&self) -> Arc<Notify> {
        Arc::clone(&self.over)
    }
}

impl Passing {
    /// Waits until it is over.
    ///
    /// # Errors
    /// It could not be waited for.
    pub(crate) fn wait(self) -> Outcome {
        self.0.recv().unwrap_or_else(|_| Err(Arc::new(ended())))
    }

    /// Whether it is over, and how it went; `None`: not yet.
    pub(crate) fn poll(&self) -> Option<Outcome> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(Arc::new(ended()))),
        }
    }
}

fn ended() -> InstallError {
    InstallError { table: "BARRIER", error: "its thread has ended".into() }
}

fn pass(map: &mut Words) -> Result<(), InstallError> {
    // The update of an outer map waits for a grace period (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c).
    let nothing = words("BARRIER", &[0u64], 0)?;
    map.set(0, &nothing, 0).map_err(failed("BARRIER"))
}
