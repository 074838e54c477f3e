//! How the API reaches the engine: a question is a closure that runs in the engine's turn.

use tokio::sync::{mpsc, oneshot, watch};

use super::Engine;

/// A question; its answer is given once what it changed and recorded is settled.
pub(super) type Question = Box<dyn FnOnce(&mut Engine) + Send>;

/// Where to ask.
#[derive(Clone)]
pub(crate) struct Handle {
    questions: mpsc::Sender<Question>,
    news: watch::Receiver<u64>,
}

/// The engine has stopped and answers no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the daemon is stopping")]
pub(crate) struct Stopped;

impl Handle {
    /// A handle, and the end the engine listens to. Askers wait while many questions are open.
    pub(super) fn new(news: watch::Receiver<u64>) -> (Self, mpsc::Receiver<Question>) {
        let (questions, answers) = mpsc::channel(256);
        (Self { questions, news }, answers)
    }

    /// Waits until the engine has stopped: written what was left, and signed it.
    pub(crate) async fn drained(self) {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(20), self.questions.closed()).await;
    }

    /// Changes whenever a change is written to the log; marked as seen now.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        let mut news = self.news.clone();
        news.mark_unchanged();
        news
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |engine| {
            let found = question(engine);
            // The asker may have gone away; what was asked for is done all the same.
            engine.answer(Box::new(move |_| drop(answer.send(found))));
        });
        self.questions.send(question).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// Asks something that is recorded, and waits until it is: the records of many such questions are written at once. With
    /// the answer comes whether that could be done.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) async fn ask_recorded<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<(R, bool), Stopped> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |engine| {
            let given = question(engine);
            engine.answer_recorded(Box::new(move |written| drop(answer.send((given, written)))));
        });
        self.questions.send(question).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}
