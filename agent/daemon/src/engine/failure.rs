//! A log that cannot be written: the kernel is told, so that whoever must be recorded is refused; what waits is bounded; and
//! when it can be written again, that is on record.

use jiff::Timestamp;
use writ_core::record::{Body, Lifecycle, Loss, Time};

use super::Engine;
use super::losses::Position;

/// What `status` names it.
pub(crate) const UNWRITABLE: &str = "log-unwritable";

impl Engine {
    /// Notes that the log cannot be written.
    pub(crate) fn log_fails(&mut self, error: String) {
        match &mut self.log_failure {
            // What the system says now; it can be another thing than in the beginning.
            Some((last, _)) => *last = error,
            None => {
                tracing::error!(error, waiting = self.waiting.len(), "the log cannot be written");
                self.log_failure = Some((error, Timestamp::now()));
            }
        }
        self.tell_log_fails(true);
    }

    /// Signs the log's head; where that and all lines before it went well, the log works.
    pub(crate) fn sign(&mut self) {
        if self.log_failure.is_none() && self.log.signs_by_count() {
            return;
        }
        match self.log.checkpoint() {
            Err(error) => self.log_fails(error.to_string()),
            Ok(_) if self.waiting.is_empty() => self.log_works(),
            Ok(_) => {}
        }
    }

    fn log_works(&mut self) {
        self.tell_log_fails(false);
        let Some((error, since)) = self.log_failure.take() else { return };
        tracing::warn!(error, "the log can be written again");
        let lost = self.waiting.take_dropped();
        if lost > 0 {
            self.note(Body::Loss(Box::new(Loss {
                count: lost,
                reason: "write-failed".to_owned(),
                detail: Some("the agent's own records: more than may wait for a log that cannot be written".to_owned()),
                ..Loss::default()
            })));
        }
        self.note_lifecycle(Lifecycle::WriteFailed { error, since: Time(since), lost });
        self.flush();
    }

    /// Lets the kernel refuse, or no longer refuse, accounts that must be recorded.
    fn tell_log_fails(&mut self, fails: bool) {
        if self.told_log_fails == Some(fails) {
            return;
        }
        match self.kernel.set_log_fails(fails) {
            Ok(()) => self.told_log_fails = Some(fails),
            Err(error) => tracing::error!(%error, "the kernel could not be told whether the log can be written"),
        }
    }

    /// Keeps what the log says about the kernel's numbers, so that the next daemon need not read all of it.
    pub(crate) fn keep_position(&mut self) {
        let lines = self.log.size();
        if !self.waiting.is_empty() || self.losses.holds() || lines == self.kept_position {
            return;
        }
        let position = Position { boot_id: self.host.boot_id.clone(), lines, losses: self.losses.clone() };
        match self.store.save_position(&position) {
            Ok(()) => self.kept_position = lines,
            Err(error) => tracing::debug!(%error, "the next start reads the log from further back"),
        }
    }
}
