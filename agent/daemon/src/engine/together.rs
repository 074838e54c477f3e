//! Signals that arrive at once share what is slow: each has its slot written in turn; then one grace period, one write of
//! records and one look at the sessions serve them all, and only then are they answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;
use writ_core::record::{Body, Record};

use super::Engine;
use super::evidence::VERSION;
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
    /// Each with the size that the log must have for what it answers to be in it.
    answers: Vec<(u64, Answer)>,
    /// Each in place of the record of its id, which says this, should that not be written before it is answered for.
    instead: Vec<(Body, Record)>,
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
}

impl Engine {
    /// Waits until no connect can still be judged as before, records what changed, ends what may not go on, and answers.
    pub(super) fn settle(&mut self) {
        let Unsettled { changed, began, answers, instead } = std::mem::take(&mut self.unsettled);
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
        // Those that are not in the log by now are answered with a refusal, and will be recorded as one.
        for (was, record) in instead {
            if self.waiting.replace(&record) {
                self.tally.uncount(&was);
                self.tally.count(&record.body);
            }
        }
        for (size, answer) in answers {
            answer(self.log.size() >= size);
        }
    }

    /// Answers once all that was recorded up to now is settled.
    pub(super) fn answer(&mut self, answer: Answer) {
        let size = self.log.size() + self.waiting.len() as u64;
        self.unsettled.answers.push((size, answer));
    }

    /// Should a record not be written before it is answered for, this one takes its place.
    pub(super) fn instead_of(&mut self, was: Body, id: &str, at: Timestamp, body: Body) {
        let record = Record::new(id.to_owned(), at, self.host.clone(), VERSION, body);
        self.unsettled.instead.push((was, record));
    }
}
