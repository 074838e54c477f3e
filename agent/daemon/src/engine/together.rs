//! Signals that arrive at once share what is slow: each has its slot written in turn; then one grace period, one write of
//! records and one look at the sessions serve them all, and only then are they answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Engine;
use super::refresh::Changed;
use super::sessions::Cause;

/// How many questions are taken up before the ones before them are answered.
pub(super) const MOST_TOGETHER: usize = 64;

/// An answer; it is told whether what was recorded is written.
type Answer = Box<dyn FnOnce(bool) + Send>;

/// What is in the kernel, and not yet recorded or answered.
#[derive(Default)]
pub(crate) struct Unsettled {
    changed: Vec<Changed>,
    began: Option<Instant>,
    answers: Vec<Answer>,
}

impl Unsettled {
    /// Whether a change of this account is among them.
    pub(super) fn concerns(&self, account: &str) -> bool {
        self.changed.iter().any(|change| change.name == account)
    }

    pub(super) fn take_up(&mut self, changed: Vec<Changed>, began: Instant) {
        self.began.get_or_insert(began);
        self.changed.extend(changed);
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        self.answers.push(answer);
    }
}

impl Engine {
    /// Waits until no connect can still be judged as before, records what changed, ends what may not go on, and answers.
    pub(super) fn settle(&mut self) {
        let Unsettled { changed, began, answers } = std::mem::take(&mut self.unsettled);
        if let Some(began) = began {
            // A connect that was judged before this must have returned before we answer.
            if let Err(error) = self.kernel.barrier() {
                tracing::error!(%error, "the kernel's grace period could not be awaited; a session could be missed");
            }
            let applied_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut changes = BTreeMap::new();
            let mut causes = Vec::new();
            let mut tightened = BTreeSet::new();
            for change in &changed {
                if self.tightens(change) {
                    tightened.insert(change.index);
                }
                if let Some(id) = self.note_change(change, applied_us) {
                    changes.insert(change.index, id);
                    causes.push(change.cause().to_owned());
                }
            }
            causes.dedup();
            self.flush();
            self.judge_sessions(&Cause::Changes(changes, causes.join(", "), tightened), began);
        }
        self.flush();
        let written = self.waiting.is_empty();
        for answer in answers {
            answer(written);
        }
    }
}
