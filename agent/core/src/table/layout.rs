//! Rows placed in a generation's tables, each distinct part once, and stances made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::Timestamp;
use rayon::prelude::*;
use thiserror::Error;
use writ_abi::{Cell, NEVER, STANCE_WORDS, Stance};

use super::outlook::deadline;
use super::schedule::{PlacedRows, RowName, Schedule, row_name, rows_of, schedule, strictest};
use super::{Explanation, Generation, Outlook};
use crate::policy::{AccountState, Approval, Bundle, Classes, Moment, OfAccount, Row, RowCell};

/// How many classes of a kind can be added to a generation that is in force: every projection has room for them.
const SPARE_CLASSES: usize = 64;

/// How many accounts' rows are worked out before they are laid out.
const ROWS_AT_ONCE: usize = 64;

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
    pub(super) projections: HashMap<(Axis, Vec<u16>), u32>,
    /// How many classes of each kind there can be before a new generation has to make room.
    pub(super) room: HashMap<Axis, usize>,
    explanations: HashMap<Explanation, u32>,
    stances: HashMap<[u64; STANCE_WORDS as usize], u32>,
    /// By account.
    pub(super) rows: HashMap<String, PlacedRows>,
}

/// What a projection is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Axis {
    Executables,
    Addresses,
    Ports,
}

/// Where a row lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    cells: u32,
    families: u32,
    executable_base: u32,
    address_base: u32,
    port_base: u32,
    addresses: u32,
    ports: u32,
    pub(super) digest: String,
}

/// What an account may do by an outlook, now and later, of rows that are all laid out.
#[derive(Clone, Debug)]
pub struct Laid(Schedule<Placed>);

impl Generation {
    /// Adds the stance of an account's state, and its fallback's, and says its index. Equal stances are shared, so asking
    /// again for a state costs a lookup.
    ///
    /// # Errors
    /// A new generation is needed.
    pub fn append_stance(
        &mut self,
        bundle: &Bundle,
        account: &str,
        outlook: &Outlook,
        boot_ns_of: &dyn Fn(Timestamp) -> u64,
    ) -> Result<u32, StanceError> {
        let Some(of) = bundle.of(account) else { return Err(StanceError::UnknownAccount(account.to_owned())) };
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
        if outlook.offboarded {
            // What policy says does not count. The kernel refuses by the account's flag too.
            let now = self.place(&Row::denied(&self.layout.classes, None))?;
            return self.append_laid(Laid(Schedule { now, then: None }), outlook, boot_ns_of);
        }
        let schedule = match self.placed(&of, account, first, &states) {
            Some(schedule) => schedule,
            None => {
                let classes = Arc::clone(&self.layout.classes);
                let made = rows_of(bundle, &classes, account, outlook, self.layout.rows.get(account));
                self.place_made(account, made)?;
                schedule(&of, first, &states, &mut |asked| self.place_states(&of, account, asked))?
            }
        };
        self.append_laid(Laid(schedule), outlook, boot_ns_of)
    }

    /// The same of what [`Generation::laid`] found in this generation.
    ///
    /// # Errors
    /// A new generation is needed.
    pub fn append_laid(
        &mut self,
        Laid(schedule): Laid,
        outlook: &Outlook,
        boot_ns_of: &dyn Fn(Timestamp) -> u64,
    ) -> Result<u32, StanceError> {
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
        let placed = schedule.now;
        let mut stance = timed(&placed);
        if let Some((until, fallback)) = schedule.then {
            let fallback = match fallback {
                Some(fallback) => fallback,
                None => self.place(&Row::denied(&self.layout.classes, None))?,
            };
            stance.valid_until = boot_ns_of(until);
            stance.fallback = self.add(timed(&fallback), &fallback.digest)?;
        }
        self.add(stance, &placed.digest)
    }

    /// Adds a stance that is over already, so that its account is in the fallback of the stance it was in: what holds
    /// until a row that is not known yet has been worked out. It opens nothing that the present stance does not.
    pub fn append_fallback(&mut self, present: u32) -> Result<u32, StanceError> {
        let Some(stance) = self.stances.get(present as usize).copied() else { return Err(StanceError::Full) };
        let digest = self.digests.get(present as usize).cloned().unwrap_or_default();
        self.add(Stance { valid_until: 0, ..stance }, &digest)
    }

    /// What an account's outlook comes to if every row that it needs is laid out already, so that its stance costs no question
    /// to Cedar.
    pub fn laid(&self, bundle: &Bundle, account: &str, outlook: &Outlook) -> Option<Laid> {
        let states: Vec<AccountState> =
            std::iter::once(&outlook.state).chain(&outlook.later).map(|state| bundle.canonical_state(state)).collect();
        self.placed(&bundle.of(account)?, account, states.first()?, &states).map(Laid)
    }

    /// Whether no question to Cedar is needed for an account's stance.
    pub fn has_rows(&self, bundle: &Bundle, account: &str, outlook: &Outlook) -> bool {
        outlook.offboarded || self.laid(bundle, account, outlook).is_some()
    }

    /// What an account may do now and later, if every row of it is laid out already.
    fn placed(
        &self,
        of: &OfAccount<'_>,
        account: &str,
        first: &AccountState,
        states: &[AccountState],
    ) -> Option<Schedule<Placed>> {
        let rows = self.layout.rows.get(account)?;
        let mut known = |asked: &[(&AccountState, Moment)]| rows.get(&row_name(of, asked).0).cloned().ok_or(());
        schedule(of, first, states, &mut known).ok()
    }

    /// Works out the rows that accounts' outlooks need, on every processor, and lays them out. What follows finds them.
    pub(super) fn place_rows(
        &mut self,
        bundle: &Bundle,
        outlooks: &BTreeMap<String, Outlook>,
    ) -> Result<(), StanceError> {
        let classes = Arc::clone(&self.layout.classes);
        let wanted: Vec<(&String, &Outlook)> = outlooks.iter().filter(|(name, _)| bundle.has_account(name)).collect();
        #[cfg(test)]
        let mutation = crate::policy::mutation::current();
        // In batches, so that not every row there is lies in memory twice.
        for batch in wanted.chunks(ROWS_AT_ONCE) {
            let made: Vec<Vec<(RowName, (String, Row))>> = batch
                .par_iter()
                .map(|(name, outlook)| {
                    // A fault is switched on for a thread, and this may be another.
                    #[cfg(test)]
                    let _guard = crate::policy::mutation::with(mutation);
                    rows_of(bundle, &classes, name, outlook, self.layout.rows.get(*name))
                })
                .collect();
            for ((name, _), made) in batch.iter().zip(made) {
                self.place_made(name, made)?;
            }
        }
        Ok(())
    }

    /// Lays out rows that were made for an account.
    pub(super) fn place_made(&mut self, account: &str, made: Vec<(RowName, (String, Row))>) -> Result<(), StanceError> {
        for (name, (digest, row)) in made {
            let placed = self.place_as(&row, digest)?;
            self.keep_placed(account, name, placed);
        }
        Ok(())
    }

    fn keep_placed(&mut self, account: &str, name: RowName, placed: Placed) {
        match self.layout.rows.get_mut(account) {
            Some(rows) => drop(rows.insert(name, placed)),
            None => drop(self.layout.rows.insert(account.to_owned(), PlacedRows::from([(name, placed)]))),
        }
    }

    /// Forgets the rows of an account whose policies have changed. What is laid out stays where it is.
    pub fn forget_rows(&mut self, account: &str) {
        self.layout.rows.remove(account);
    }

    /// Adds the stance that refuses everything, as index 0 of an empty generation.
    pub(super) fn add_refusal(&mut self, classes: Arc<Classes>) -> Result<(), StanceError> {
        let row = Row::denied(&classes, None);
        self.layout.room = HashMap::from([
            (Axis::Executables, classes.executables.len() + SPARE_CLASSES),
            (Axis::Addresses, classes.address_classes.len() + SPARE_CLASSES),
            (Axis::Ports, classes.port_classes.len() + SPARE_CLASSES),
        ]);
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
        of: &OfAccount<'_>,
        account: &str,
        states: &[(&AccountState, Moment)],
    ) -> Result<Placed, StanceError> {
        let (name, keys) = row_name(of, states);
        if let Some(placed) = self.layout.rows.get(account).and_then(|rows| rows.get(&name)) {
            return Ok(placed.clone());
        }
        let row = strictest(of, &self.layout.classes, states, &keys, &mut BTreeMap::new());
        let placed = self.place(&row)?;
        self.keep_placed(account, name, placed.clone());
        Ok(placed)
    }

    fn place(&mut self, row: &Row) -> Result<Placed, StanceError> {
        let digest = row.digest(&self.layout.classes);
        self.place_as(row, digest)
    }

    pub(super) fn place_as(&mut self, row: &Row, digest: String) -> Result<Placed, StanceError> {
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
            executable_base: self.place_projection(Axis::Executables, &row.executables.of)?,
            address_base: self.place_projection(Axis::Addresses, &row.addresses.of)?,
            port_base: self.place_projection(Axis::Ports, &row.ports.of)?,
            addresses: row.addresses.count,
            ports: row.ports.count,
            digest,
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

    fn place_projection(&mut self, axis: Axis, projection: &[u16]) -> Result<u32, StanceError> {
        let key = (axis, projection.to_vec());
        if let Some(base) = self.layout.projections.get(&key) {
            return Ok(*base);
        }
        let base = u32::try_from(self.projections.len()).map_err(|_| StanceError::Full)?;
        self.projections.extend(projection);
        // Room for classes that are added while this generation is in force.
        let room = self.layout.room.get(&axis).copied().unwrap_or(projection.len()).max(projection.len());
        self.projections.resize(base as usize + room, 0);
        self.layout.projections.insert(key, base);
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
