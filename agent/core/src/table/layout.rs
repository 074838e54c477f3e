//! Rows placed in a generation's tables, each distinct part once, and stances made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::Timestamp;
use thiserror::Error;
use writ_abi::{Cell, NEVER, STANCE_WORDS, Stance};

use super::outlook::deadline;
use super::{Explanation, Generation, Outlook};
use crate::policy::{AccountState, Approval, Bundle, Classes, Moment, Row, RowCell, StateKey};

/// How many states a fallback is made of before it denies everything instead.
const MOST_FALLBACK_STATES: usize = 64;

/// How many boundaries that change nothing a stance reaches over.
const MOST_IDLE_BOUNDARIES: usize = 32;

/// Why a stance cannot be added to a generation. A new generation can hold it.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum StanceError {
    /// The bundle does not know the account.
    #[error("account `{0}` is not in this policy bundle")]
    UnknownAccount(String),
    /// The state has an approval that the generation's classes do not tell apart.
    #[error("the generation has no class for an approved endpoint of `{0}`: build a new generation")]
    NewApproval(String),
    /// An index would not fit 32 bits.
    #[error("the generation's tables are full: build a new generation")]
    Full,
}

/// What building and extending a generation needs besides the tables: what is where already.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub(super) classes: Arc<Classes>,
    cells: HashMap<u64, Vec<(u32, usize)>>,
    projections: HashMap<Vec<u16>, u32>,
    explanations: HashMap<Explanation, u32>,
    stances: HashMap<[u64; STANCE_WORDS as usize], u32>,
    rows: BTreeMap<(String, BTreeSet<StateKey>), Placed>,
}

/// Where a row lies.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Placed {
    cells: u32,
    families: u32,
    executable_base: u32,
    address_base: u32,
    port_base: u32,
    addresses: u32,
    ports: u32,
    digest: String,
}

impl Generation {
    /// Adds the stance of an account's state, and its fallback's, and says its index. Equal stances are shared, so asking
    /// again for a state costs a lookup.
    pub fn append_stance(
        &mut self,
        bundle: &Bundle,
        account: &str,
        outlook: &Outlook,
        boot_ns_of: &dyn Fn(Timestamp) -> u64,
    ) -> Result<u32, StanceError> {
        if !bundle.has_account(account) {
            return Err(StanceError::UnknownAccount(account.to_owned()));
        }
        let states: Vec<AccountState> =
            std::iter::once(&outlook.state).chain(&outlook.later).map(|state| bundle.canonical_state(state)).collect();
        let known = self.layout.classes.approvals_of(account);
        if states
            .iter()
            .flat_map(|state| &state.approvals)
            .any(|approval| !known.is_some_and(|known| known.contains(approval)))
        {
            return Err(StanceError::NewApproval(account.to_owned()));
        }
        let Some(first) = states.first() else { return Err(StanceError::UnknownAccount(account.to_owned())) };
        let placed = self.place_states(bundle, account, &[(first, bundle.moment(first))])?;

        let mut valid_until = None;
        let mut at = first.now;
        for _ in 0..MOST_IDLE_BOUNDARIES {
            valid_until = next_change(bundle, account, &states, at);
            let Some(boundary) = valid_until else { break };
            at = boundary;
            let state = AccountState { now: at, ..state_at(&states, at).clone() };
            if self.place_states(bundle, account, &[(&state, bundle.moment(&state))])? != placed {
                break;
            }
        }
        let observe_until = deadline(outlook.observe_until, 0, boot_ns_of);
        let learning_until = deadline(outlook.learning_until, 0, boot_ns_of);
        let timed = |placed: &Placed| Stance {
            valid_until: NEVER,
            observe_until,
            learning_until,
            fallback: 0,
            cells: placed.cells,
            families: placed.families,
            executable_base: placed.executable_base,
            address_base: placed.address_base,
            port_base: placed.port_base,
            addresses: placed.addresses,
            ports: placed.ports,
        };
        let mut stance = timed(&placed);
        if let Some(until) = valid_until {
            let reachable = reachable(bundle, account, &states, until);
            let fallback = match &reachable {
                Some(reachable) => {
                    // The present state too: what it closes must not be opened by time alone.
                    let asked: Vec<(&AccountState, Moment)> = std::iter::once((first, bundle.moment(first)))
                        .chain(reachable.iter().map(|(state, moment)| (state, *moment)))
                        .collect();
                    self.place_states(bundle, account, &asked)?
                }
                None => self.place(&Row::denied(&self.layout.classes, None))?,
            };
            stance.valid_until = boot_ns_of(until);
            stance.fallback = self.add(timed(&fallback), &fallback.digest)?;
        }
        self.add(stance, &placed.digest)
    }

    /// Adds the stance that refuses everything, as index 0 of an empty generation.
    pub(super) fn add_refusal(&mut self, classes: Arc<Classes>) -> Result<(), StanceError> {
        let row = Row::denied(&classes, None);
        self.layout.classes = classes;
        let placed = self.place(&row)?;
        let stance = Stance {
            valid_until: NEVER,
            cells: placed.cells,
            families: placed.families,
            executable_base: placed.executable_base,
            address_base: placed.address_base,
            port_base: placed.port_base,
            addresses: placed.addresses,
            ports: placed.ports,
            ..Stance::default()
        };
        self.add(stance, &placed.digest).map(drop)
    }

    fn add(&mut self, stance: Stance, digest: &str) -> Result<u32, StanceError> {
        let words = stance.to_words();
        if let Some(index) = self.layout.stances.get(&words) {
            return Ok(*index);
        }
        let index = u32::try_from(self.stances.len()).map_err(|_| StanceError::Full)?;
        self.stances.push(stance);
        self.digests.push(digest.to_owned());
        self.layout.stances.insert(words, index);
        Ok(index)
    }

    /// Places the row that is as strict as the strictest of these states, cell by cell.
    fn place_states(
        &mut self,
        bundle: &Bundle,
        account: &str,
        states: &[(&AccountState, Moment)],
    ) -> Result<Placed, StanceError> {
        let keys: BTreeMap<StateKey, usize> = states
            .iter()
            .enumerate()
            .filter_map(|(index, (state, moment))| Some((bundle.state_key(account, state, moment)?, index)))
            .collect();
        let name = (account.to_owned(), keys.keys().cloned().collect());
        if let Some(placed) = self.layout.rows.get(&name) {
            return Ok(placed.clone());
        }
        let classes = Arc::clone(&self.layout.classes);
        let mut rows = keys
            .values()
            .filter_map(|index| states.get(*index))
            .map(|(state, moment)| bundle.row_over(&classes, account, state, *moment));
        let strictest = rows.next().and_then(|first| rows.try_fold(first, |strictest, row| strictest.tightened(&row)));
        let placed = self.place(&strictest.unwrap_or_else(|| Row::denied(&classes, None)).compacted())?;
        self.layout.rows.insert(name, placed.clone());
        Ok(placed)
    }

    fn place(&mut self, row: &Row) -> Result<Placed, StanceError> {
        let mut explanations = Vec::with_capacity(row.explanations.len());
        for explanation in &row.explanations {
            explanations.push(self.place_explanation(explanation)?);
        }
        let packed = |cell: &RowCell| {
            let explanation = explanations.get(cell.explanation as usize).copied().unwrap_or(0);
            Cell::new(cell.verdict, cell.would, cell.reason, explanation).0
        };
        let cells: Vec<u64> = row.cells.iter().map(packed).collect();
        let families: Vec<u64> = row.families.iter().map(packed).collect();
        Ok(Placed {
            cells: self.place_cells(&cells)?,
            families: self.place_cells(&families)?,
            executable_base: self.place_projection(&row.executables.of)?,
            address_base: self.place_projection(&row.addresses.of)?,
            port_base: self.place_projection(&row.ports.of)?,
            addresses: row.addresses.count,
            ports: row.ports.count,
            digest: row.digest(),
        })
    }

    fn place_explanation(&mut self, explanation: &Explanation) -> Result<u32, StanceError> {
        if let Some(index) = self.layout.explanations.get(explanation) {
            return Ok(*index);
        }
        let index = u32::try_from(self.explanations.len()).map_err(|_| StanceError::Full)?;
        self.explanations.push(explanation.clone());
        self.layout.explanations.insert(explanation.clone(), index);
        Ok(index)
    }

    fn place_cells(&mut self, cells: &[u64]) -> Result<u32, StanceError> {
        let mut hasher = DefaultHasher::new();
        cells.hash(&mut hasher);
        let same = self.layout.cells.entry(hasher.finish()).or_default();
        for (start, length) in same.iter() {
            let first = *start as usize;
            if self.cells.get(first..first + length) == Some(cells) {
                return Ok(*start);
            }
        }
        let start = u32::try_from(self.cells.len()).map_err(|_| StanceError::Full)?;
        u32::try_from(self.cells.len() + cells.len()).map_err(|_| StanceError::Full)?;
        same.push((start, cells.len()));
        self.cells.extend(cells);
        Ok(start)
    }

    fn place_projection(&mut self, projection: &[u16]) -> Result<u32, StanceError> {
        if let Some(base) = self.layout.projections.get(projection) {
            return Ok(*base);
        }
        let base = u32::try_from(self.projections.len()).map_err(|_| StanceError::Full)?;
        self.projections.extend(projection);
        self.layout.projections.insert(projection.to_vec(), base);
        Ok(base)
    }
}

/// The approvals of these states, by account: what the classes of a generation must tell apart.
pub(super) fn approvals<'a>(
    bundle: &Bundle,
    outlooks: impl Iterator<Item = (&'a String, &'a Outlook)>,
) -> BTreeMap<String, BTreeSet<Approval>> {
    outlooks
        .map(|(account, outlook)| {
            let states = std::iter::once(&outlook.state).chain(&outlook.later);
            (account.clone(), states.flat_map(|state| bundle.canonical_state(state).approvals).collect())
        })
        .collect()
}

/// The state that holds at an instant, of states in the order of their `now`.
fn state_at(states: &[AccountState], at: Timestamp) -> &AccountState {
    let holding = states.iter().rev().find(|state| state.now <= at);
    #[expect(clippy::indexing_slicing, reason = "the current state is always there")]
    holding.unwrap_or(&states[0])
}

/// The first instant after `at` at which time or expiry may change what the account may do.
fn next_change(bundle: &Bundle, account: &str, states: &[AccountState], at: Timestamp) -> Option<Timestamp> {
    let expiry = states.iter().skip(1).map(|state| state.now).filter(|now| *now > at).min();
    expiry.into_iter().chain(bundle.next_boundary(account, at)).min()
}

/// Every state that expiry alone leads to from `from` on; `None` if there are too many.
fn reachable(
    bundle: &Bundle,
    account: &str,
    states: &[AccountState],
    from: Timestamp,
) -> Option<Vec<(AccountState, Moment)>> {
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
        for moment in bundle.reachable(account, &bundle.moment(&state), until, MOST_FALLBACK_STATES)? {
            if keys.insert(bundle.state_key(account, &state, &moment)?) {
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
