//! One account's stance added to the generation in force: its grants put beside its policies, classes that grow, one slot.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use writ_abi::{AccountFlags, Active, Slot};
use writ_core::policy::Bundle;
use writ_core::table::{Laid, Outlook, Unresolved};

use super::Engine;
use super::activate::{ActivateError, outlook};
use super::clock::Clocks;
use super::explain::Moment;
use super::persist::Step;
use super::refresh::Changed;
use crate::kernel::InstallError;
use crate::process::file_at;

impl Engine {
    /// Appends the changed accounts' stances to the generation in force; false if that needs a new one.
    /// `applied` counts those that are in the kernel.
    pub(super) fn append(
        &mut self,
        changed: &mut [Changed],
        clocks: &Clocks,
        began: Instant,
        applied: &mut usize,
    ) -> Result<bool, ActivateError> {
        for change in changed {
            let Some(current) = &self.current else { return Ok(false) };
            let (name, index) = (change.name.clone(), change.index);
            let granted = change.before.as_ref().is_none_or(|before| before.grants != change.after.grants);
            let bundle = if granted {
                let grants = self.grants_of(&name, clocks.wall);
                Arc::new(current.bundle.granting(&name, &grants).map_err(ActivateError::Refused)?)
            } else {
                Arc::clone(&current.bundle)
            };
            if granted {
                change.after.policy_digest = self.archived_with_grants(&bundle, &name)?;
            } else {
                change.after.policy_digest = current.granted.get(&name).cloned().unwrap_or_default();
            }
            let since = self.numbers.known_since.get(&name).copied().unwrap_or(clocks.wall);
            let epoch = self.epochs.get(&name).copied().unwrap_or(0).wrapping_add(1);
            let mut wanted = outlook(&current.config, &bundle, &mut change.after, epoch, since, clocks.wall);
            // With other grants the rows are others.
            let asked = !granted && !wanted.offboarded;
            let laid = if asked { current.generation.laid(&bundle, &name, &wanted) } else { None };
            let known = laid.is_some() || !granted && wanted.offboarded;
            // From here on what is known of the generation in force changes before the kernel does: if this is not finished,
            // only another generation is sound.
            self.spoiled = true;
            if !known && self.tightens(change) && self.fall_back_first(change)? {
                change.fallback_first = true;
                wanted.epoch = wanted.epoch.wrapping_add(1);
            }
            if granted && !self.take_up_grants(&name, bundle, &change.after.policy_digest) {
                return Ok(false);
            }
            if !self.make_room(&name, &wanted)
                || !self.put_stance(&name, index, &mut change.after, (&wanted, laid), clocks)?
            {
                return Ok(false);
            }
            change.is_applied(began);
            self.spoiled = false;
            *applied += 1;
        }
        Ok(true)
    }

    /// What the policy set with an account's grants is archived as; empty without any.
    fn archived_with_grants(&self, bundle: &Bundle, account: &str) -> Result<String, InstallError> {
        match &self.base_parts {
            Some(parts) if bundle.granted(account).next().is_some() => self.archive_granted(parts, bundle, account),
            _ => Ok(String::new()),
        }
    }

    /// Puts an account into the fallback of the stance it is in, at once: until the exact row has been worked out, it may
    /// do only what it may in every state that time leads to from here. False: it could not be, and the exact row follows.
    fn fall_back_first(&mut self, change: &Changed) -> Result<bool, InstallError> {
        let index = change.index;
        let Some(current) = &mut self.current else { return Ok(false) };
        let Some(slot) = current.generation.slots.get(usize::from(index)).copied().map(Slot) else { return Ok(false) };
        let Ok(stance) = current.generation.append_fallback(slot.stance()) else { return Ok(false) };
        if self.kernel.extend(&current.generation).is_err() {
            return Ok(false);
        }
        // What its decisions are explained by is what held: their reason says that it had ended.
        let Some(moment) = change.before.as_deref().cloned() else { return Ok(false) };
        self.set_in_force(&change.name, index, moment, Slot::new(stance, slot.epoch().wrapping_add(1)))?;
        Ok(true)
    }

    /// Takes up the policy set with an account's grants.
    fn take_up_grants(&mut self, account: &str, bundle: Arc<Bundle>, digest: &str) -> bool {
        let all = self.base_parts.as_ref().and_then(|parts| self.archive_all(parts, &bundle).ok());
        let Some((current, all)) = self.current.as_mut().zip(all) else { return false };
        current.generation.forget_rows(account);
        current.policy_digest = all;
        if digest.is_empty() {
            current.granted.remove(account);
        } else {
            current.granted.insert(account.to_owned(), digest.to_owned());
        }
        let number = Active(current.generation.active).generation();
        if let Some((_, names)) = self.generations.iter_mut().rev().find(|(known, _)| *known == number) {
            Arc::make_mut(names).granting(account, &bundle);
        }
        current.bundle = bundle;
        true
    }

    /// Has the generation in force tell apart what an account's grants and approvals ask; false: it takes a new one.
    fn make_room(&mut self, account: &str, wanted: &Outlook) -> bool {
        // While classes are what they were when the changes before this one were made.
        self.compare_unsettled();
        let Some(current) = &mut self.current else { return false };
        let before = current.generation.active;
        let Some(growth) = current.generation.grow(&current.bundle, account, wanted) else { return false };
        if growth.is_empty() && before == current.generation.active {
            return true;
        }
        let mut executables = Vec::new();
        for (path, class) in &growth.executables {
            let Some(file) = file_at(path) else {
                current.unresolved.push(Unresolved::ExecutableClass { path: path.clone() });
                continue;
            };
            self.resolution.found(path, file);
            if let Some((other, _)) = current.identities.executables.get(&file) {
                let first = current.generation.executables.iter().find(|(_, class)| *class == other);
                let first = first.map(|(first, _)| first.clone()).unwrap_or_default();
                current.unresolved.push(Unresolved::SameFile { path: first, other: path.clone() });
                continue;
            }
            current.identities.executables.insert(file, (*class, 0));
            executables.push((file, *class));
        }
        if self.kernel.grow(&current.generation, &growth, &executables).is_err() {
            return false;
        }
        let number = Active(current.generation.active).generation();
        if let Some((_, names)) = self.generations.iter_mut().rev().find(|(known, _)| *known == number) {
            let new = growth.executables.iter().map(|(path, class)| (*class, path.clone()));
            Arc::make_mut(names).legend.executables.extend(new);
        }
        if !growth.executables.is_empty() {
            // Before any event can carry the class of one of them.
            self.save_explained();
        }
        true
    }

    /// Lays out an account's stance and puts it in force; false if there is no room for it.
    fn put_stance(
        &mut self,
        name: &str,
        index: u16,
        after: &mut Moment,
        (wanted, laid): (&Outlook, Option<Laid>),
        clocks: &Clocks,
    ) -> Result<bool, InstallError> {
        let Some(current) = &mut self.current else { return Ok(false) };
        let boot_ns_of = |at: Timestamp| clocks.boot_of(at);
        let stance = match laid {
            Some(laid) => current.generation.append_laid(laid, wanted, &boot_ns_of),
            None => current.generation.append_stance(&current.bundle, name, wanted, &boot_ns_of),
        };
        let Ok(stance) = stance else { return Ok(false) };
        if self.kernel.extend(&current.generation).is_err() {
            return Ok(false); // No room left: a new generation makes some.
        }
        after.stance_digest = current.generation.digests.get(stance as usize).cloned().unwrap_or_default();
        self.set_in_force(name, index, after.clone(), Slot::new(stance, wanted.epoch))?;
        Ok(true)
    }

    /// Moves an account to a stance that the kernel has. Names before the slot: no event may come that cannot be explained.
    fn set_in_force(&mut self, name: &str, index: u16, moment: Moment, slot: Slot) -> Result<(), InstallError> {
        let Some(current) = &self.current else { return Ok(()) };
        let offboarded = moment.offboarded;
        let flags = current.generation.flags.get(usize::from(index)).copied().unwrap_or(0);
        let Some(step) = self.explained_by(index, slot.epoch(), Some(moment.clone())) else { return Ok(()) };
        self.epochs.insert(name.to_owned(), slot.epoch());
        self.numbers.epochs.insert(name.to_owned(), slot.epoch());
        self.keep_moment(index, slot.epoch(), moment);
        self.keep_step(&step);
        let wanted = if offboarded { flags | AccountFlags::OFFBOARDED } else { flags & !AccountFlags::OFFBOARDED };
        // Flags before the slot: what the egress program judges again because of the slot must see them.
        let told = self.tell(index, (flags, wanted), slot);
        if told.is_err() {
            // It does not hold: whoever compares with it next would find nothing to do.
            self.moments.remove(&(index, slot.epoch()));
        }
        told
    }

    fn tell(&mut self, index: u16, (was, flags): (u64, u64), slot: Slot) -> Result<(), InstallError> {
        if flags != was {
            self.kernel.set_flags(u32::from(index), AccountFlags(flags))?;
            let current = self.current.as_mut();
            if let Some(entry) = current.and_then(|current| current.generation.flags.get_mut(usize::from(index))) {
                *entry = flags;
            }
        }
        self.kernel.set_slot(u32::from(index), slot)?;
        if let Some(current) = &mut self.current {
            current.generation.set_slot(u32::from(index), slot);
        }
        Ok(())
    }

    /// Has the legend of the generation in force say whatever it does not yet, and gives that.
    fn explained_by(&mut self, account: u16, epoch: u32, moment: Option<Moment>) -> Option<Step> {
        let current = self.current.as_ref()?;
        let generation = Active(current.generation.active).generation();
        let (mut explanations, mut digests) = (Vec::new(), Vec::new());
        if let Some((_, names)) = self.generations.iter_mut().rev().find(|(known, _)| *known == generation) {
            let (explained, digested) = (names.legend.explanations.len(), names.legend.digests.len());
            explanations = current.generation.explanations.get(explained..).unwrap_or_default().to_vec();
            digests = current.generation.digests.get(digested..).unwrap_or_default().to_vec();
            if !(explanations.is_empty() && digests.is_empty()) {
                let legend = &mut Arc::make_mut(names).legend;
                legend.explanations.extend_from_slice(&explanations);
                legend.digests.extend_from_slice(&digests);
            }
        }
        Some(Step { generation, account, epoch, moment, explanations, digests })
    }

    /// Takes up what explains rows that were only prepared: a signal that needs them does not wait for that.
    pub(super) fn explain_prepared(&mut self) {
        let step = self.explained_by(0, 0, None);
        if let Some(step) = step.filter(|step| !(step.explanations.is_empty() && step.digests.is_empty())) {
            self.keep_step(&step);
        }
    }

    /// Keeps what explains a stance, for a daemon after this one.
    fn keep_step(&mut self, step: &Step) {
        if self.explained_journal.full() || self.explained_journal.append(step).is_err() {
            self.save_explained();
        }
    }
}
