//! Rows of an outlook that may come, worked out beside the generation in force and laid out in it if they still fit.

use std::sync::Arc;

use super::layout::StanceError;
use super::schedule::{PlacedRows, RowName, rows_of};
use super::{Generation, Outlook};
use crate::policy::{Bundle, Classes, Row};

/// What it takes to work out the rows that an outlook would need.
#[derive(Clone, Debug)]
pub struct Preparation {
    bundle: Arc<Bundle>,
    classes: Arc<Classes>,
    account: String,
    outlook: Outlook,
    /// The account's rows that are laid out already.
    placed: PlacedRows,
}

/// Rows that were worked out, and what from.
#[derive(Clone, Debug)]
pub struct Prepared {
    bundle: Arc<Bundle>,
    classes: Arc<Classes>,
    account: String,
    rows: Vec<(RowName, (String, Row))>,
}

impl Preparation {
    /// Asks Cedar. This takes milliseconds, and can be done on any thread.
    pub fn work_out(self) -> Prepared {
        let Self { bundle, classes, account, outlook, placed } = self;
        let rows = rows_of(&bundle, &classes, &account, &outlook, Some(&placed));
        Prepared { bundle, classes, account, rows }
    }
}

impl Generation {
    /// What it takes to work out the rows that an account's outlook would need; `None` if all of them are laid out, or the
    /// classes do not tell apart what it approves.
    pub fn preparation(&self, bundle: &Arc<Bundle>, account: &str, outlook: &Outlook) -> Option<Preparation> {
        let states = std::iter::once(&outlook.state).chain(&outlook.later);
        let mut approvals = states.flat_map(|state| bundle.canonical_state(state).approvals);
        let known = self.layout.classes.approvals_of(account);
        if approvals.any(|approval| !known.is_some_and(|known| known.contains(&approval)))
            || self.has_rows(bundle, account, outlook)
        {
            return None;
        }
        Some(Preparation {
            bundle: Arc::clone(bundle),
            classes: Arc::clone(&self.layout.classes),
            account: account.to_owned(),
            outlook: outlook.clone(),
            placed: self.layout.rows.get(account).cloned().unwrap_or_default(),
        })
    }

    /// Lays out what was prepared, without a stance: should the outlook come, it costs no question to Cedar. False if it was
    /// worked out under other policies or classes than those in force; nothing is laid out then.
    ///
    /// # Errors
    /// There is no room.
    pub fn lay_out(&mut self, bundle: &Arc<Bundle>, prepared: Prepared) -> Result<bool, StanceError> {
        if !Arc::ptr_eq(bundle, &prepared.bundle) || !Arc::ptr_eq(&self.layout.classes, &prepared.classes) {
            return Ok(false);
        }
        self.place_made(&prepared.account, prepared.rows)?;
        Ok(true)
    }
}
