//! Faults that tests can switch on, to show that they would be noticed.

use std::cell::Cell;

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    /// As it should be.
    None,
    /// `context.port == n` does not cut after `n`.
    PortCut,
    /// Destinations add no prefixes to the address classes.
    DestinationAddresses,
    /// A fallback is made of the first state after expiry only.
    LaterStates,
}

thread_local! {
    static CURRENT: Cell<Mutation> = const { Cell::new(Mutation::None) };
}

pub(crate) fn current() -> Mutation {
    CURRENT.get()
}

/// Switches a fault on until the guard is dropped.
pub(crate) fn with(mutation: Mutation) -> Guard {
    CURRENT.set(mutation);
    Guard
}

pub(crate) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        CURRENT.set(Mutation::None);
    }
}
