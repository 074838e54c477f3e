//! Every second: whether the programs are still attached. What root detached is recorded, attached again and shown.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use writ_core::record::{Lifecycle, Time};

use super::Engine;
use crate::kernel::judges_attempts;

/// Something is not attached, and could not be attached again.
const DETACHED: &str = "detached";

/// The last time that programs were found detached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Detachment {
    /// When it was found.
    pub at: Timestamp,
    /// When everything was last seen attached.
    pub since: Timestamp,
    /// The programs.
    pub programs: Vec<String>,
    /// Those that could not be attached again, and why.
    pub failed: Vec<String>,
    /// How often it has happened since the start.
    pub times: u64,
}

impl Engine {
    /// Whether connects or sockets that should be judged are not, and cannot be. The second line alone leaves the first.
    pub(super) fn is_detached(&self) -> bool {
        let lost = self.detachment.iter().flat_map(|detached| &detached.failed);
        let judges = lost.filter_map(|failed| failed.split_once(':')).any(|(name, _)| judges_attempts(name));
        judges && self.degraded.iter().any(|reason| reason == DETACHED)
    }

    /// Looks whether everything is attached, and attaches what is not.
    pub(super) fn check_attached(&mut self) {
        let now = Timestamp::now();
        let detached = self.kernel.detached();
        if detached.is_empty() {
            self.attached_at = now;
            self.degraded_by(DETACHED, false);
            return;
        }
        let mut failed = Vec::new();
        for name in &detached {
            if let Err(error) = self.kernel.reattach(name) {
                failed.push(format!("{name}: {error}"));
            }
        }
        self.degraded_by(DETACHED, !failed.is_empty());
        let times = self.detachment.as_ref().map_or(0, |before| before.times);
        // Said once: what cannot be attached again would otherwise be recorded every second.
        let known = self.detachment.as_ref().is_some_and(|before| {
            !before.failed.is_empty() && before.programs == detached && before.since == self.attached_at
        });
        if known {
            return;
        }
        tracing::error!(programs = ?detached, ?failed, "PROGRAMS WERE DETACHED: what was attempted since {} is not on record", self.attached_at);
        let record =
            Lifecycle::Detached { programs: detached.clone(), since: Time(self.attached_at), failed: failed.clone() };
        let id = self.note_lifecycle(record);
        self.detachment =
            Some(Detachment { at: now, since: self.attached_at, programs: detached, failed, times: times + 1 });
        // Cgroups that were made meanwhile are in no table, nor is who descends from whom.
        if let Err(error) = self.regenerate() {
            tracing::error!(%error, "what came meanwhile could not be looked at; the next generation does");
        }
        // What was connected meanwhile was judged by nobody.
        self.take_up_open_connections(&id);
        self.flush();
    }
}
