//! What time alone does to an account: how long its stance holds, and which states its fallback must withstand.
//!
//! The kernel keeps one fallback per stance and moves to it by itself at `valid_until`, with no daemon to ask. From
//! then on any of the later states may be the true one, and the fallback does not expire. So a fallback cell allows
//! only if it would allow in *every* state reachable by expiry alone, **the present one included**:
//! - a grant, an approval, a freshness, a window that opens access is missing from some later state: what it opened goes;
//! - a risk signal or a flag that closes access is there in the present state, which denies: what it closed stays
//!   closed, although the signal's own end would open it. Only a living daemon opens.
//!
//! No property of the policies is assumed: a policy that permits *because* of a signal is covered by the same rule,
//! since the state without the signal is among them.
//!
//! Expiry is a sequence, not a power set: ends come in the order of their instants, so n ends make at most n + 1
//! states. Time of day is independent of it (the wall clock can be set), so each of them is taken with every time
//! class.

use jiff::Timestamp;

use super::{AccountLive, Situation};

/// What the account's policies distinguish about time, as their compiler knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimeClasses {
    /// A stable name of the present class, for digests; empty where policies do not ask the time.
    pub class: String,
    /// The next instant at which the class can change.
    pub next: Option<Timestamp>,
    /// One instant of every class that can be reached from now on; empty where policies do not ask the time.
    pub representatives: Vec<Timestamp>,
}

/// One state of the sequence and the instant it begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExpiryStep {
    /// When.
    pub from: Timestamp,
    /// What then holds.
    pub situation: Situation,
}

/// The present state and each that follows from it by expiry alone, in order; `None` if there are more than `bound`.
pub fn expiry_steps(live: &AccountLive<'_>, now: Timestamp, bound: usize) -> Option<Vec<ExpiryStep>> {
    let mut steps = vec![ExpiryStep { from: now, situation: live.situation(now) }];
    for from in live.expiries(now) {
        let situation = live.situation(from);
        // Most ends change nothing: a lesser signal's, or one of two for the same flag.
        if steps.last().is_none_or(|last| !last.situation.same_but_for_time(&situation)) {
            steps.push(ExpiryStep { from, situation });
        }
        if steps.len() > bound {
            return None;
        }
    }
    (steps.len() <= bound).then_some(steps)
}

/// Every state reachable by expiry alone, the present one first; `None` if there are more than `bound`: the fallback
/// then denies everything.
pub fn expiry_states(
    live: &AccountLive<'_>,
    now: Timestamp,
    times: &TimeClasses,
    bound: usize,
) -> Option<Vec<Situation>> {
    let steps = expiry_steps(live, now, bound)?;
    let mut states = Vec::new();
    for ExpiryStep { from, situation } in steps {
        let instants =
            std::iter::once(from).chain(times.representatives.iter().copied().filter(|other| *other != from));
        for instant in instants {
            let mut state = situation.clone();
            state.state.now = instant;
            states.push(state);
            if states.len() > bound {
                return None;
            }
        }
    }
    Some(states)
}

/// When the present state ends by time alone: the first end of a signal, grant, approval or freshness that changes
/// what policy is told, or the next time boundary.
pub fn valid_until(live: &AccountLive<'_>, now: Timestamp, times: &TimeClasses) -> Option<Timestamp> {
    let present = live.situation(now);
    let change = live.expiries(now).into_iter().find(|end| !present.same_but_for_time(&live.situation(*end)));
    earliest(change, times.next)
}

/// The latest sound deadline for the present row, where rows are at hand to compare: the first step whose row denies
/// something the present row allows (`holds` says it does not), or the next time boundary.
///
/// Later than [`valid_until`] where an end only opens: until the deadline the present row, strict as it is, stays in
/// force instead of the still stricter fallback, so that the end of a risk signal costs nobody a connection while the
/// daemon writes the new row.
pub fn deadline(
    steps: &[ExpiryStep],
    times: &TimeClasses,
    mut holds: impl FnMut(&Situation) -> bool,
) -> Option<Timestamp> {
    let tightening = steps.iter().skip(1).find(|step| !holds(&step.situation)).map(|step| step.from);
    earliest(tightening, times.next)
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
