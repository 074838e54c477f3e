//! One class of attempts asked about, by number: the decision function over a generation without addresses.

use writ_abi::{AccountFlags, Active, Address, Attempt, Cell, Slot, Tables, Verdict, decide};

use super::Generation;
use super::reach::Held;

/// A generation asked about one class of attempts, by number.
pub(super) struct Asked<'a> {
    pub(super) generation: &'a Generation,
    pub(super) held: Held,
    pub(super) address: u32,
    pub(super) port: u32,
    pub(super) seen: bool,
}

/// Whether an attempt is let through, as the stance was made: before time has ended anything.
pub(super) fn reaches(asked: &Asked<'_>, account: u32, attempt: &Attempt) -> bool {
    let decision = decide(asked, account, attempt, 0);
    let tolerated = !decision.enforced && !decision.flags.has(AccountFlags::OBSERVE);
    decision.verdict == Verdict::Allow || tolerated
}

impl Tables for Asked<'_> {
    type Row = <Generation as Tables>::Row;

    fn active(&self) -> Active {
        self.generation.active()
    }

    fn flags(&self, _: u32) -> Option<AccountFlags> {
        Some(self.held.flags)
    }

    fn slot(&self, _: u32) -> Option<Slot> {
        Some(self.held.slot)
    }

    fn stance(&self, index: u32) -> Option<Self::Row> {
        self.generation.stance(index)
    }

    fn address_class(&self, _: &Address) -> Option<u32> {
        Some(self.address)
    }

    fn port_class(&self, _: u16) -> Option<u32> {
        Some(self.port)
    }

    fn projection(&self, index: u32) -> Option<u32> {
        self.generation.projection(index)
    }

    fn cell(&self, index: u32) -> Option<Cell> {
        self.generation.cell(index)
    }

    fn seen(&self, _: u32, _: &Address) -> bool {
        self.seen
    }
}

/// Where two lists of runs start another pair of classes: the start, and the class on either side.
pub(super) fn together<A: Copy + Ord, C: Copy>(before: &[(A, C)], after: &[(A, C)]) -> Vec<(A, C, C)> {
    let mut found = Vec::with_capacity(before.len().max(after.len()));
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let (mut was, mut is) = (None, None);
    while let Some(at) = match (old.peek(), new.peek()) {
        (Some((a, _)), Some((b, _))) => Some(*a.min(b)),
        (Some((a, _)), None) | (None, Some((a, _))) => Some(*a),
        (None, None) => None,
    } {
        if let Some((_, class)) = old.next_if(|(start, _)| *start == at) {
            was = Some(*class);
        }
        if let Some((_, class)) = new.next_if(|(start, _)| *start == at) {
            is = Some(*class);
        }
        if let (Some(was), Some(is)) = (was, is) {
            found.push((at, was, is));
        }
    }
    found
}
