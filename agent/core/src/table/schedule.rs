//! Which rows a stance needs: what holds now, until when, and what holds in every state that time alone leads to.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Outlook;
use super::layout::Placed;
use crate::policy::{AccountState, Bundle, Classes, Moment, OfAccount, Row, StateKey};

/// How many states a fallback is made of before it denies everything instead.
const MOST_FALLBACK_STATES: usize = 64;

/// How many boundaries that change nothing a stance reaches over.
const MOST_IDLE_BOUNDARIES: usize = 32;

/// The states of an account whose strictest row is meant.
pub(super) type RowName = BTreeSet<StateKey>;

/// Where rows of an account lie.
pub(super) type PlacedRows = BTreeMap<RowName, Placed>;

/// What a row is known by, and for each of its state keys the index of a state that has it.
pub(super) fn row_name(of: &OfAccount<'_>, states: &[(&AccountState, Moment)]) -> (RowName, BTreeMap<StateKey, usize>) {
    let keys: BTreeMap<StateKey, usize> =
        states.iter().enumerate().map(|(index, (state, moment))| (of.state_key(state, moment), index)).collect();
    (keys.keys().cloned().collect(), keys)
}

/// The row that is as strict as the strictest of these states, cell by cell. `known` are rows of single states of the
/// account, not yet compacted.
pub(super) fn strictest(
    of: &OfAccount<'_>,
    classes: &Classes,
    states: &[(&AccountState, Moment)],
    keys: &BTreeMap<StateKey, usize>,
    known: &mut BTreeMap<StateKey, Row>,
) -> Row {
    let mut rows = keys.iter().filter_map(|(key, index)| {
        let (state, moment) = states.get(*index)?;
        let row = || of.row_over(classes, state, *moment);
        Some(known.entry(key.clone()).or_insert_with(row).clone())
    });
    let strictest = rows.next().and_then(|first| rows.try_fold(first, |strictest, row| strictest.tightened(&row)));
    strictest.unwrap_or_else(|| Row::denied(classes, None)).compacted()
}

/// The rows that one account's outlook needs and that are not laid out yet, each with its digest.
pub(super) fn rows_of(
    bundle: &Bundle,
    classes: &Classes,
    account: &str,
    outlook: &Outlook,
    placed: Option<&PlacedRows>,
) -> Vec<(RowName, (String, Row))> {
    let states: Vec<AccountState> =
        std::iter::once(&outlook.state).chain(&outlook.later).map(|state| bundle.canonical_state(state)).collect();
    let (Some(first), Some(of)) = (states.first(), bundle.of(account)) else { return Vec::new() };
    let mut made: BTreeMap<RowName, (String, Row)> = BTreeMap::new();
    let mut known = BTreeMap::new();
    let mut make = |asked: &[(&AccountState, Moment)]| -> Result<String, ()> {
        let (name, keys) = row_name(&of, asked);
        if let Some(placed) = placed.and_then(|placed| placed.get(&name)) {
            return Ok(placed.digest.clone());
        }
        if let Some((digest, _)) = made.get(&name) {
            return Ok(digest.clone());
        }
        let row = strictest(&of, classes, asked, &keys, &mut known);
        let digest = row.digest(classes);
        made.insert(name, (digest.clone(), row));
        Ok(digest)
    };
    let _ = schedule(&of, first, &states, &mut make);
    made.into_iter().collect()
}

/// What an account may do now, and what the kernel falls back to by itself, and when.
#[derive(Clone, Debug)]
pub(super) struct Schedule<T> {
    pub(super) now: T,
    /// Without a fallback everything is refused.
    pub(super) then: Option<(Timestamp, Option<T>)>,
}

/// Gives the row that allows what every one of these states and moments allows.
type Rows<'a, T, E> = dyn FnMut(&[(&AccountState, Moment)]) -> Result<T, E> + 'a;

/// Asks `row` for the rows of a stance, in whatever form it has them.
pub(super) fn schedule<T: PartialEq, E>(
    of: &OfAccount<'_>,
    first: &AccountState,
    states: &[AccountState],
    row: &mut Rows<'_, T, E>,
) -> Result<Schedule<T>, E> {
    let now = row(&[(first, of.moment(first))])?;
    let mut valid_until = None;
    let mut at = first.now;
    for _ in 0..MOST_IDLE_BOUNDARIES {
        valid_until = next_change(of, states, at);
        let Some(boundary) = valid_until else { break };
        at = boundary;
        let state = AccountState { now: at, ..state_at(states, at).clone() };
        if row(&[(&state, of.moment(&state))])? != now {
            break;
        }
    }
    let Some(until) = valid_until else { return Ok(Schedule { now, then: None }) };
    let Some(reachable) = reachable(of, states, until) else {
        return Ok(Schedule { now, then: Some((until, None)) });
    };
    // The present state too: what it closes must not be opened by time alone.
    let asked: Vec<(&AccountState, Moment)> = std::iter::once((first, of.moment(first)))
        .chain(reachable.iter().map(|(state, moment)| (state, *moment)))
        .collect();
    let fallback = row(&asked)?;
    Ok(Schedule { now, then: Some((until, Some(fallback))) })
}

/// The state that holds at an instant, of states in the order of their `now`.
fn state_at(states: &[AccountState], at: Timestamp) -> &AccountState {
    let holding = states.iter().rev().find(|state| state.now <= at);
    #[expect(clippy::indexing_slicing, reason = "the current state is always there")]
    holding.unwrap_or(&states[0])
}

/// The first instant after `at` at which time or expiry may change what the account may do.
fn next_change(of: &OfAccount<'_>, states: &[AccountState], at: Timestamp) -> Option<Timestamp> {
    let expiry = states.iter().skip(1).map(|state| state.now).filter(|now| *now > at).min();
    expiry.into_iter().chain(of.next_boundary(at)).min()
}

/// Every state that expiry alone leads to from `from` on; `None` if there are too many.
fn reachable(of: &OfAccount<'_>, states: &[AccountState], from: Timestamp) -> Option<Vec<(AccountState, Moment)>> {
    let mut found = Vec::new();
    let mut keys = BTreeSet::new();
    let mut at = from;
    loop {
        let state = AccountState { now: at, ..state_at(states, at).clone() };
        let next = states.iter().map(|state| state.now).filter(|now| *now > at).min();
        #[cfg(test)]
        let next =
            next.filter(|_| crate::policy::mutation::current() != crate::policy::mutation::Mutation::LaterStates);
        let until = next.map(Timestamp::as_millisecond);
        for moment in of.reachable(&of.moment(&state), until, MOST_FALLBACK_STATES)? {
            if keys.insert(of.state_key(&state, &moment)) {
                found.push((state.clone(), moment));
            }
        }
        if found.len() > MOST_FALLBACK_STATES {
            return None;
        }
        match next {
            Some(next) => at = next,
            None => return Some(found),
        }
    }
}
