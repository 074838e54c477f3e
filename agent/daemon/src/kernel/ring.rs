//! Reading the rings: whole entries of the right kind and ABI; anything else is counted and said.

use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use writ_abi::{DecisionEvent, ProcessEvent};

use super::bytes::{self, Malformed};

/// What was read in one go.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// Decisions, in ring order.
    pub decisions: Vec<DecisionEvent>,
    /// Process starts, in ring order.
    pub processes: Vec<ProcessEvent>,
    /// Entries that could not be read.
    pub malformed: Vec<Malformed>,
    /// Whether more is waiting.
    pub more: bool,
}

/// How many process starts are read for each decision that may be.
const STARTS_EACH: usize = 8;

/// Reads at most `limit` decisions, and the process starts that were made before them.
pub(super) fn drain(decisions: &mut RingBuf<MapData>, processes: &mut RingBuf<MapData>, limit: usize) -> Drained {
    let mut drained = Drained::default();
    while drained.decisions.len() < limit {
        let Some(entry) = decisions.next() else { break };
        match bytes::decision(&entry) {
            Ok(event) => drained.decisions.push(event),
            Err(malformed) => drained.malformed.push(malformed),
        }
    }
    // After the decisions: a process that decided something started before it did.
    // Bounded too: what starts processes without end must not keep the engine from its turn.
    while drained.processes.len() < limit * STARTS_EACH {
        let Some(entry) = processes.next() else { break };
        match bytes::process(&entry) {
            Ok(event) => drained.processes.push(event),
            Err(malformed) => drained.malformed.push(malformed),
        }
    }
    drained.more = drained.decisions.len() == limit || drained.processes.len() == limit * STARTS_EACH;
    drained
}

/// Waits for a ring to become readable, within a tokio runtime.
///
/// # Errors
/// The runtime cannot watch it.
pub(crate) fn watch(ring: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, is never replaced, and stays open until the watch is dropped with it.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}
