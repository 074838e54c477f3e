//! Signals that end sessions: what was opened before a credential was rotated was opened with the old one.

use std::collections::BTreeMap;
use std::time::Instant;

use writ_abi::{Attempt, Endpoint, Protocol, SESSION_FOUND_CPU, decide};
use writ_core::config::CREDENTIAL_ROTATED;
use writ_core::signal::Signal;

use super::Engine;
use super::clock::Clocks;
use super::sessions::{Doomed, InForce, class_of};
use crate::kernel::boot_ns;

impl Engine {
    /// Cuts the account's sessions that were opened before the signal was observed, if its kind says so. `record`: the
    /// signal's.
    pub(super) fn end_earlier_sessions(&mut self, signal: &Signal, record: &str) {
        let began = Instant::now();
        let Some(current) = self.current() else { return };
        let ends = match current.config.signals.get(&signal.kind) {
            Some(kind) => kind.ends_sessions,
            None => signal.kind == CREDENTIAL_ROTATED,
        };
        let Some(index) = current.indices.get(&signal.account).copied().filter(|_| ends) else { return };
        // What the signal changed is on record before what it ended.
        self.record_changes();
        // A connect that was judged before has to be on the list.
        if let Err(error) = self.kernel.barrier() {
            tracing::error!(%error, "the kernel's grace period could not be awaited; a session could be missed");
        }
        let before = Clocks::read().boot_of(signal.at);
        let sessions = match self.kernel.sessions() {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::error!(%error, "live sessions could not be listed: those from before the rotation go on");
                return;
            }
        };
        let mut doomed: BTreeMap<u64, Vec<Doomed>> = BTreeMap::new();
        let Some(current) = self.current() else { return };
        let tables = InForce { generation: &current.generation, kernel: &self.kernel };
        // When one that was found began is not known: before it was found.
        let earlier = |opened: u64, cpu: u32| opened < before || cpu == SESSION_FOUND_CPU;
        for session in sessions {
            if !session.accounts.contains(&index) || !earlier(session.opened, session.cpu) {
                continue;
            }
            let protocol = Protocol::from_bits(session.protocol).unwrap_or(Protocol::Tcp);
            let endpoint = Endpoint { address: session.address, port: session.port, protocol };
            let attempt = Attempt::Connect { endpoint, executable: class_of(current, &session) };
            let decision = decide(&tables, u32::from(index), &attempt, boot_ns());
            doomed.entry(session.netns).or_default().push(Doomed {
                session,
                decision,
                account: index,
                change: record.to_owned(),
                reason: format!("opened before `{}`", signal.kind),
            });
        }
        if doomed.is_empty() {
            return;
        }
        let mut ended = Vec::new();
        for (netns, doomed) in doomed {
            ended.extend(self.cut(netns, doomed, began, true));
        }
        self.note_cuts(ended);
    }
}
