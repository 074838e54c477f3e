//! From a changed stance to the answer: first its record and the end of sessions it forbids, at once; then the grace period,
//! in which the engine goes on; then a second look at the sessions, and the answer. Changes that come meanwhile share the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use writ_core::record::{Body, Record};

use super::Engine;
use super::evidence::VERSION;
use super::refresh::Changed;
use super::sessions::Cause;
use crate::kernel::{InstallError, Passing};

/// How many questions are taken up before the ones before them are answered.
pub(super) const MOST_TOGETHER: usize = 64;

/// An answer; it is told whether what was recorded is written.
type Answer = Box<dyn FnOnce(bool) + Send>;

/// What is in the kernel, and not yet settled.
#[derive(Default)]
pub(crate) struct Unsettled {
    /// Not recorded yet.
    changed: Vec<Changed>,
    /// When the first of them began.
    began: Option<Instant>,
    /// Recorded; a grace period has to begin for them.
    recorded: Option<Together>,
    /// Those whose grace period has begun.
    passing: Option<(Passing, Together)>,
    /// Answers that need no grace period, each with the size that the log must have for what it answers to be in it.
    answers: Vec<(u64, Answer)>,
    /// Answers that do.
    later: Vec<(u64, Answer)>,
    /// Each in place of the record of its id, which says this, should that not be written before it is answered for.
    instead: Vec<(Body, Record)>,
}

/// Changes that share a grace period.
struct Together {
    began: Instant,
    /// Records of changes, by account.
    changes: BTreeMap<u16, String>,
    causes: BTreeSet<String>,
    tightened: BTreeSet<u16>,
    answers: Vec<(bool, Answer)>,
}

impl Together {
    fn since(began: Instant) -> Self {
        let (changes, causes, tightened) = Default::default();
        Self { began, changes, causes, tightened, answers: Vec::new() }
    }

    fn cause(&self) -> Cause {
        let causes: Vec<&str> = self.causes.iter().map(String::as_str).collect();
        Cause::Changes(self.changes.clone(), causes.join(", "), self.tightened.clone())
    }
}

impl Unsettled {
    /// Whether a change of this account is to be recorded before another one is made.
    pub(super) fn concerns(&self, account: &str) -> bool {
        self.changed.iter().any(|change| change.name == account)
    }

    /// Changes that are not recorded yet.
    pub(super) fn changed(&mut self) -> &mut Vec<Changed> {
        &mut self.changed
    }

    pub(super) fn take_up(&mut self, changed: Vec<Changed>, began: Instant) {
        self.began.get_or_insert(began);
        self.changed.extend(changed);
    }

    /// Whether a grace period is being waited for.
    pub(super) fn passes(&self) -> bool {
        self.passing.is_some()
    }
}

impl Engine {
    /// Records what has changed, and ends the sessions that it forbids.
    pub(super) fn record_changes(&mut self) {
        let Some(began) = self.unsettled.began.take() else { return };
        let mut changed = std::mem::take(&mut self.unsettled.changed);
        let mut now = Together::since(began);
        for change in changed.iter().filter(|change| !self.only_renews(change)) {
            now.changes.insert(change.index, String::new());
            now.causes.insert(change.cause().to_owned());
            if self.tightens(change) {
                now.tightened.insert(change.index);
            }
        }
        // What led to it is written first: a daemon that dies in between has said why. Then, before anything is compared or
        // described, the end of what may not go on. What only opens can wait for the look that follows the grace period.
        self.flush();
        let ended = if now.tightened.is_empty() { Vec::new() } else { self.end_sessions(&now.cause(), began, false) };
        (now.changes, now.causes) = Default::default();
        self.compare(&mut changed);
        for change in &changed {
            if let Some(id) = self.note_change(change) {
                now.changes.insert(change.index, id);
                now.causes.insert(change.cause().to_owned());
            }
        }
        let cause = now.cause();
        self.note_cuts(ended.into_iter().map(|ended| ended.named(&cause)).collect());
        self.flush();
        let all = self.unsettled.recorded.get_or_insert_with(|| Together::since(began));
        all.changes.extend(now.changes);
        all.causes.extend(now.causes);
        all.tightened.extend(now.tightened);
    }

    /// Goes on with what is unsettled, as far as it can be without waiting.
    pub(super) fn settle_soon(&mut self) {
        if let Some((passing, together)) = self.unsettled.passing.take() {
            match passing.poll() {
                Some(outcome) => self.passed(outcome, together),
                None => self.unsettled.passing = Some((passing, together)),
            }
        }
        // What is read along the way can be drift, which is a change too.
        while self.unsettled.began.is_some() {
            self.record_changes();
        }
        self.answer_now();
        self.begin_passing();
    }

    /// Waits until no connect can still be judged as before any change, ends what may not go on, and answers.
    pub(super) fn settle(&mut self) {
        loop {
            self.settle_soon();
            let Some((passing, together)) = self.unsettled.passing.take() else { return };
            self.passed(passing.wait(), together);
        }
    }

    fn begin_passing(&mut self) {
        if self.unsettled.passing.is_none()
            && let Some(together) = self.unsettled.recorded.take()
        {
            self.unsettled.passing = Some((self.kernel.begin_barrier(), together));
        }
    }

    /// Every connect is judged by what was changed: none that was judged before is missing on the list of sessions.
    fn passed(&mut self, outcome: Result<(), Arc<InstallError>>, together: Together) {
        if let Err(error) = outcome {
            tracing::error!(%error, "the kernel's grace period could not be awaited; a session could be missed");
        }
        self.judge_sessions(&together.cause(), together.began, true);
        self.flush();
        for (written, answer) in together.answers {
            answer(written);
        }
    }

    /// Answers what need not wait for a grace period, and has what must wait for the one that is still to come.
    fn answer_now(&mut self) {
        self.flush();
        // Those that are not in the log by now are answered with a refusal, and will be recorded as one.
        for (was, record) in std::mem::take(&mut self.unsettled.instead) {
            if self.waiting.replace(&record) {
                self.tally.uncount(&was);
                self.tally.count(&record.body);
            }
        }
        let size = self.log.size();
        for (needed, answer) in std::mem::take(&mut self.unsettled.answers) {
            answer(size >= needed);
        }
        let later = std::mem::take(&mut self.unsettled.later).into_iter();
        let later = later.map(|(needed, answer)| (size >= needed, answer));
        match (&mut self.unsettled.recorded, &mut self.unsettled.passing) {
            (Some(together), _) | (None, Some((_, together))) => together.answers.extend(later),
            (None, None) => later.for_each(|(written, answer)| answer(written)),
        }
    }

    /// Answers once whatever was changed up to now is how every connect is judged.
    pub(super) fn answer(&mut self, answer: Answer) {
        let size = self.log.size() + self.waiting.len() as u64;
        self.unsettled.later.push((size, answer));
    }

    /// Answers once what was recorded is written.
    pub(super) fn answer_recorded(&mut self, answer: Answer) {
        let size = self.log.size() + self.waiting.len() as u64;
        self.unsettled.answers.push((size, answer));
    }

    /// Should a record not be written before it is answered for, this one takes its place.
    pub(super) fn instead_of(&mut self, was: Body, id: &str, at: Timestamp, body: Body) {
        let record = Record::new(id.to_owned(), at, self.host.clone(), VERSION, body);
        self.unsettled.instead.push((was, record));
    }
}
