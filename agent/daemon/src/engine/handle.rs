//! How the API reaches the engine: a question is a closure that runs in the engine's turn.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Engine;
use super::seat::Seat;

/// A question; its answer is given once what it changed and recorded is settled.
pub(super) type Question = Box<dyn FnOnce(&mut Engine) + Send>;

/// How many questions of a kind are open at most; then askers wait.
const OPEN: usize = 256;

/// Where to ask.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Ways>);

struct Ways {
    /// For the engine's own thread.
    questions: mpsc::Sender<Question>,
    /// For whoever has the seat.
    brief: mpsc::Sender<Question>,
    seat: Seat,
    news: watch::Receiver<u64>,
}

/// The engine has stopped and answers no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the daemon is stopping")]
pub(crate) struct Stopped;

impl Handle {
    /// A handle to an engine, its seat, and the end its own thread listens to.
    pub(super) fn new(engine: Engine) -> (Self, Seat, mpsc::Receiver<Question>) {
        let news = engine.changes.news();
        let (questions, asked) = mpsc::channel(OPEN);
        let (brief, briefly_asked) = mpsc::channel(OPEN);
        let seat = Seat::new(engine, briefly_asked);
        (Self(Arc::new(Ways { questions, brief, seat: seat.clone(), news })), seat, asked)
    }

    /// Waits until the engine has stopped: written what was left, and signed it.
    pub(crate) async fn drained(self) {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(20), self.0.questions.closed()).await;
    }

    /// Changes whenever a change is written to the log; marked as seen now.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        let mut news = self.0.news.clone();
        news.mark_unchanged();
        news
    }

    /// Asks what may take its time, and waits for the answer.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.0.questions.send(settled(question, answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// Asks what is answered without much ado, on this very thread if nobody else has the engine, and waits for the answer.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) async fn ask_brief<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.briefly(settled(question, answer)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// The same of something that is recorded, without waiting for more than that: the records of many such questions are
    /// written at once. With the answer comes whether that could be done.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) async fn ask_recorded<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<(R, bool), Stopped> {
        let (answer, answered) = oneshot::channel();
        let question = move |engine: &mut Engine| {
            let given = question(engine);
            engine.answer_recorded(Box::new(move |written| drop(answer.send((given, written)))));
        };
        self.briefly(Box::new(question)).await?;
        answered.await.map_err(|_| Stopped)
    }

    async fn briefly(&self, question: Question) -> Result<(), Stopped> {
        self.0.brief.send(question).await.map_err(|_| Stopped)?;
        self.0.seat.answer();
        Ok(())
    }
}

/// A question whose answer waits until every connect is judged by what it changed. The asker may have gone away; what was
/// asked for is done all the same.
fn settled<R: Send + 'static>(
    question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    answer: oneshot::Sender<R>,
) -> Question {
    Box::new(move |engine| {
        let found = question(engine);
        engine.answer(Box::new(move |_| drop(answer.send(found))));
    })
}
