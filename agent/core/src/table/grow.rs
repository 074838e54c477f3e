//! A generation in force that learns to tell more apart: a grant or approval adds classes, and every projection goes on.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use super::layout::Axis;
use super::{Generation, Outlook};
use crate::policy::{Approval, Bundle, Growth, Inputs};

impl Generation {
    /// Makes the classes tell apart what an account's grants ask and what its outlook has approved, without a new
    /// generation. `None`: it takes a new one.
    ///
    /// Every stance that is in force answers as before: see [`Growth`].
    pub fn grow(&mut self, bundle: &Bundle, account: &str, outlook: &Outlook) -> Option<Growth> {
        let states = std::iter::once(&outlook.state).chain(&outlook.later);
        let approvals: BTreeSet<Approval> = states.flat_map(|state| bundle.canonical_state(state).approvals).collect();
        let granted = bundle.granted_inputs(account);
        if granted.is_none() && approvals.is_empty() {
            return Some(Growth::default());
        }
        let none = Inputs::default();
        let inputs = granted.unwrap_or(&none);
        let classes = Arc::make_mut(&mut self.layout.classes);
        let growth = classes.grow(inputs, &bundle.destinations, account, &approvals)?;
        let counts = [
            (Axis::Executables, classes.executables.len()),
            (Axis::Addresses, classes.address_classes.len()),
            (Axis::Ports, classes.port_classes.len()),
        ];
        let full = counts.iter().any(|(axis, count)| self.layout.room.get(axis).is_none_or(|room| count > room));
        if full || bundle.row_is_too_large(classes, account) {
            return None;
        }
        let own = bundle.granted_inputs(account).is_some_and(Inputs::classes_executables);
        if own || approvals.iter().any(|approval| approval.executable.is_some()) {
            self.active |= writ_abi::Active::CLASSES_EXECUTABLES;
        }
        if growth.is_empty() {
            return Some(growth);
        }
        self.own = OnceLock::new();
        self.v4.extend(growth.v4.iter().map(|(net, class)| (*net, *class)));
        self.v6.extend(growth.v6.iter().map(|(net, class)| (*net, *class)));
        for port in &growth.ports {
            if let Some((to, from)) = self.ports.get_mut(usize::from(*port)).zip(classes.ports.get(usize::from(*port)))
            {
                *to = *from;
            }
        }
        self.executables.extend(growth.executables.iter().cloned());
        self.layout.projections = std::mem::take(&mut self.layout.projections)
            .into_iter()
            .map(|((axis, mut of), base)| {
                let at = base as usize + of.len();
                let before = of.len();
                match axis {
                    Axis::Executables => of.resize(before + growth.executables.len(), of.first().copied().unwrap_or(0)),
                    Axis::Addresses => {
                        for from in &growth.addresses_from {
                            of.push(of.get(*from as usize).copied().unwrap_or(0));
                        }
                    }
                    Axis::Ports => {
                        for from in &growth.ports_from {
                            of.push(of.get(usize::from(*from)).copied().unwrap_or(0));
                        }
                    }
                }
                for (to, from) in self.projections.iter_mut().skip(at).zip(of.iter().skip(before)) {
                    *to = *from;
                }
                ((axis, of), base)
            })
            .collect();
        Some(growth)
    }

    /// Where projections of classes that have grown were written: each run of entries.
    pub fn grown(&self, growth: &Growth) -> Vec<std::ops::Range<usize>> {
        let new = |axis: &Axis| match axis {
            Axis::Executables => growth.executables.len(),
            Axis::Addresses => growth.addresses_from.len(),
            Axis::Ports => growth.ports_from.len(),
        };
        let runs = self.layout.projections.iter().map(|((axis, of), base)| {
            let end = *base as usize + of.len();
            end - new(axis)..end
        });
        runs.filter(|run| !run.is_empty()).collect()
    }
}
