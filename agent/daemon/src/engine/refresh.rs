//! Stances follow live state and time: what changed is one append and one slot write, or a new generation; then a record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use writ_abi::{AccountFlags, Active, Slot};
use writ_core::config::Mode;
use writ_core::record::{
    Body, Caller as RecordCaller, Change, EffectiveMode, EscalationState, GrantState, SignalState, StanceState, Time,
};
use writ_core::stance::EscalationStatus;
use writ_core::table::{Common, Generation, Held, ReachDifference};

use super::activate::ActivateError;
use super::clock::Clocks;
use super::explain::Moment;
use super::live::Done;
use super::live::{grant_record, signal_record};
use super::{Current, Engine, Refusal};

/// Where an account is in these tables.
fn held(tables: &Generation, index: u16) -> Option<Held> {
    let index = usize::from(index);
    Some(Held { slot: Slot(*tables.slots.get(index)?), flags: AccountFlags(*tables.flags.get(index)?) })
}

/// Whether two stances let the same through, so that there is nothing to compare.
fn same_reach((old, was): (&Generation, Held), (new, is): (&Generation, Held)) -> bool {
    let digest = |tables: &Generation, held: Held| tables.digests.get(held.slot.stance() as usize).cloned();
    // Break-glass, learning, and a fallback that was written first: the row is not all there is to a stance.
    let times = |tables: &Generation, held: Held| {
        let stance = tables.stances.get(held.slot.stance() as usize)?;
        Some([stance.observe_until > 0, stance.learning_until > 0, stance.valid_until > 0])
    };
    was.flags == is.flags && digest(old, was) == digest(new, is) && times(old, was) == times(new, is)
}

impl Current {
    /// Where an account is in the tables in force.
    fn held(&self, index: u16) -> Option<Held> {
        held(&self.generation, index)
    }
}

/// The kernel could not be told what some account may do now: it is tried again every second.
const UNAPPLIED: &str = "stance-unapplied";
/// The live state could not be written: a restart would forget its last changes.
const UNKEPT: &str = "state-unkept";

/// Why stances change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Why {
    pub(crate) cause: String,
    pub(crate) id: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) by: Option<RecordCaller>,
    /// When somebody's question was received that asks for it; `None`: nobody did.
    pub(crate) asked: Option<Instant>,
}

/// Microseconds since then, as records count them.
pub(super) fn micros_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Why {
    /// Something came to its end by itself.
    fn ended(cause: &str, id: &str) -> Self {
        Self { cause: cause.to_owned(), id: Some(id.to_owned()), ..Self::default() }
    }

    fn time() -> Self {
        Self { cause: "time".to_owned(), ..Self::default() }
    }
}

/// One account whose stance has to follow.
pub(super) struct Changed {
    pub(super) name: String,
    pub(super) index: u16,
    pub(super) before: Option<Arc<Moment>>,
    pub(super) after: Moment,
    why: Why,
    /// Whether the fallback was in force until the exact row was worked out.
    pub(super) fallback_first: bool,
    /// Where the account was in the tables before.
    pub(super) held: Option<Held>,
    /// What this opened and closed, once it was compared.
    reach: Option<ReachDifference>,
    /// How long it took from its cause until it was in the kernel, in microseconds, once it is there.
    applied_us: Option<u64>,
}

impl Changed {
    /// A change that the kernel does not have yet, from one moment to another.
    fn new(
        name: String,
        index: u16,
        (before, after): (Option<Arc<Moment>>, Moment),
        why: Why,
        held: Option<Held>,
    ) -> Self {
        Self { name, index, before, after, why, fallback_first: false, held, reach: None, applied_us: None }
    }

    /// Why.
    pub(super) fn cause(&self) -> &str {
        &self.why.cause
    }

    /// The kernel has it. `began`: when the engine came to it, if nobody asked for it.
    pub(super) fn is_applied(&mut self, began: Instant) {
        self.applied_us.get_or_insert_with(|| micros_since(self.why.asked.unwrap_or(began)));
    }
}

impl Engine {
    /// Brings one account's stance up to date with its live state.
    ///
    /// # Errors
    /// The kernel could not be told; its fallbacks still end what time ends.
    pub(crate) fn refresh(&mut self, account: &str, why: &Why) -> Result<(), ActivateError> {
        self.refresh_each(BTreeMap::from([(account.to_owned(), why.clone())]))
    }

    /// Brings every account's stance up to date with its live state.
    ///
    /// # Errors
    /// The kernel could not be told; its fallbacks still end what time ends.
    pub(crate) fn refresh_all(&mut self, why: &Why) -> Result<(), ActivateError> {
        let Some(current) = &self.current else { return Ok(()) };
        let all = current.config.accounts.keys().map(|name| (name.clone(), why.clone())).collect();
        self.refresh_each(all)
    }

    /// Brings these accounts' stances up to date in the kernel. Records, the grace period, the look at sessions and the answer
    /// follow: see [`Engine::settle_soon`].
    ///
    /// # Errors
    /// The kernel could not be told; its fallbacks still end what time ends.
    pub(crate) fn refresh_each(&mut self, accounts: BTreeMap<String, Why>) -> Result<(), ActivateError> {
        let names: Vec<String> = accounts.keys().cloned().collect();
        let applied = self.apply(accounts);
        for name in names {
            if applied.is_ok() {
                self.unapplied.remove(&name)
            } else {
                self.unapplied.insert(name)
            };
        }
        self.degraded_by(UNAPPLIED, !self.unapplied.is_empty());
        applied
    }

    /// Tries again what the kernel could not be told.
    pub(super) fn apply_again(&mut self) {
        if self.unapplied.is_empty() {
            return;
        }
        let why = Why { cause: "retry".to_owned(), ..Why::default() };
        let again = self.unapplied.iter().map(|name| (name.clone(), why.clone())).collect();
        if let Err(error) = self.refresh_each(again) {
            tracing::error!(%error, "the kernel still could not be told what changed; it is tried again");
        }
    }

    fn apply(&mut self, accounts: BTreeMap<String, Why>) -> Result<(), ActivateError> {
        // Drift that is noticed on the way can change the account again.
        while accounts.keys().any(|account| self.unsettled.concerns(account)) {
            self.record_changes();
        }
        let began = Instant::now();
        let clocks = Clocks::read();
        self.superseded = None;
        let Some(current) = &self.current else { return Ok(()) };
        let mut changed = Vec::new();
        for (name, why) in accounts {
            let Some(index) = current.indices.get(&name).copied() else { continue };
            if !current.config.accounts.contains_key(&name) {
                continue;
            }
            let epoch = self.epochs.get(&name).copied().unwrap_or(0);
            let before = self.moments.get(&(index, epoch)).cloned();
            let after = Moment::of(&self.live, &current.config, &name, self.base.digest(), clocks.wall);
            let due = before.as_ref().is_none_or(|before| before.until.is_some_and(|until| until <= clocks.wall));
            if !due && before.as_ref().is_some_and(|before| before.same(&after)) {
                continue;
            }
            let held = current.held(index);
            changed.push(Changed::new(name, index, (before, after), why, held));
        }
        if changed.is_empty() {
            return Ok(());
        }
        let mut applied = 0;
        let appended = if self.spoiled { Ok(false) } else { self.append(&mut changed, &clocks, began, &mut applied) };
        let done = match appended {
            Ok(true) => Ok(()),
            Ok(false) => self.supersede(),
            Err(error) => Err(error),
        };
        if done.is_err() {
            // What the kernel was told before that is recorded, and ends sessions, all the same.
            changed.truncate(applied);
        }
        for change in &mut changed {
            change.is_applied(began);
        }
        if self.superseded.is_some() {
            self.compare(&mut changed);
        }
        if let Some(current) = &self.current {
            for change in &changed {
                self.neighbours.of(&change.name, &current.config);
            }
        }
        if !changed.is_empty() {
            self.unsettled.take_up(changed, began);
        }
        done
    }

    /// Whether a change takes something away: what was tolerated so far ends then. Where that cannot be told (a boundary of
    /// time in a policy), it does.
    pub(super) fn tightens(&self, change: &Changed) -> bool {
        let (Some(before), Some(current)) = (change.before.as_deref(), self.current.as_ref()) else { return true };
        let was = before.situation(&current.config.signals, before.from);
        let is = change.after.situation(&current.config.signals, change.after.from);
        change.why.cause == "time"
            || is.state.risk > was.state.risk
            || !is.state.signals.is_subset(&was.state.signals)
            || !was.state.fresh.is_subset(&is.state.fresh)
            || !was.grants.is_subset(&is.grants)
            || !was.approvals.is_subset(&is.approvals)
            || is.offboarded && !was.offboarded
            || was.break_glass_until.is_some() && is.break_glass_until.is_none()
    }

    /// Finds out what changes opened and closed, now that the kernel has them: before the account changes again, and before
    /// the generation does.
    pub(super) fn compare(&mut self, changed: &mut [Changed]) {
        let superseded = self.superseded.take();
        let Some(current) = &self.current else { return };
        let mut common = None;
        for change in changed.iter_mut().filter(|change| change.reach.is_none()) {
            let reach = change.reach.insert(ReachDifference::default());
            let Some((was, is)) = change.held.zip(current.held(change.index)) else { continue };
            let new = &current.generation;
            let old = superseded.as_ref().unwrap_or(new);
            if !same_reach((old, was), (new, is)) {
                let common = common.get_or_insert_with(|| match &superseded {
                    Some(old) => Arc::new(Common::of(old, new)),
                    None => new.common(),
                });
                *reach = common.difference(u32::from(change.index), (old, was), (new, is));
            }
        }
    }

    /// The same for those that are not recorded yet.
    pub(super) fn compare_unsettled(&mut self) {
        let mut changed = std::mem::take(self.unsettled.changed());
        self.compare(&mut changed);
        *self.unsettled.changed() = changed;
    }

    /// Whether a change is only that something holds for longer, such as a heartbeat that came again: only its end has moved,
    /// and the signal is on record.
    pub(super) fn only_renews(&self, change: &Changed) -> bool {
        let Changed { name, index, before: Some(before), .. } = change else { return false };
        let epoch = self.epochs.get(name).copied().unwrap_or(0);
        let Some((after, current)) = self.moments.get(&(*index, epoch)).zip(self.current.as_ref()) else {
            return false;
        };
        let was = before.situation(&current.config.signals, before.from);
        let is = after.situation(&current.config.signals, Timestamp::now());
        was.same_but_for_time(&is)
            && was.break_glass_until == is.break_glass_until
            && !before.other_mode(after)
            && before.stance_digest == after.stance_digest
    }

    pub(super) fn note_change(&mut self, change: &Changed) -> Option<String> {
        if self.only_renews(change) {
            return None;
        }
        let Changed { name, index, before, why, .. } = change;
        let now = Timestamp::now();
        let epoch = self.epochs.get(name).copied().unwrap_or(0);
        let after = self.moments.get(&(*index, epoch)).cloned()?;
        let current = self.current.as_ref()?;
        let configured =
            current.config.accounts.get(name).map(|account| account.effective_mode(current.config.agent.mode));
        let state = |moment: &Moment, at: Timestamp| {
            let situation = moment.situation(&current.config.signals, at);
            // Offboarding is enforced whatever the mode.
            let observed = !situation.offboarded
                && (situation.break_glass_until.is_some() || moment.mode.or(configured) == Some(Mode::Observe));
            StanceState {
                stance_digest: moment.stance_digest.clone(),
                risk: situation.state.risk,
                signals: situation.state.signals.into_iter().collect(),
                fresh: situation.state.fresh.into_iter().collect(),
                grants: situation.grants.into_iter().collect(),
                approvals: situation.approvals.into_iter().collect(),
                offboarded: situation.offboarded,
                mode: if observed { EffectiveMode::Observe } else { EffectiveMode::Enforce },
                valid_until: moment.until.map(Time),
            }
        };
        let reach = change.reach.clone().unwrap_or_default();
        let record = Change {
            account: name.clone(),
            cause: why.cause.clone(),
            cause_id: why.id.clone(),
            reason: why.reason.clone(),
            by: why.by.clone(),
            before: before.as_deref().map(|before| state(before, before.from)),
            after: state(&after, now),
            opened: reach.opened,
            closed: reach.closed,
            policy_digest: current.policy_digest_of(name).to_owned(),
            generation: Active(current.generation.active).generation(),
            fallback_first: change.fallback_first,
            applied_us: change.applied_us.unwrap_or_default(),
        };
        let truncated = reach.truncated.iter().map(|member| (*member).to_owned()).collect();
        Some(self.note_shortened(Timestamp::now(), Body::Change(Box::new(record)), truncated))
    }

    /// What holds for each account now.
    pub(crate) fn moments_now(&self) -> BTreeMap<String, Arc<Moment>> {
        let Some(current) = &self.current else { return BTreeMap::new() };
        let of = |(name, epoch): (&String, &u32)| {
            let index = current.indices.get(name)?;
            Some((name.clone(), Arc::clone(self.moments.get(&(*index, *epoch))?)))
        };
        self.epochs.iter().filter_map(of).collect()
    }

    /// What held for each account when the daemon before this one wrote its last stance.
    pub(super) fn moments_recalled(&self) -> BTreeMap<String, Arc<Moment>> {
        let of = |(index, name): (u16, &String)| {
            let epoch = self.epochs.get(name)?;
            Some((name.clone(), Arc::clone(self.moments.get(&(index, *epoch))?)))
        };
        (0u16..).zip(&self.numbers.accounts).filter_map(of).collect()
    }

    /// Records whose stance another configuration changed, another time, or the time without a daemon.
    pub(crate) fn note_policy_changes(&mut self, before: &BTreeMap<String, Arc<Moment>>, why: &Why, applied_us: u64) {
        let applied_us = Some(applied_us);
        let mut changed = Vec::new();
        for (name, after) in self.moments_now() {
            let Some(index) = self.current.as_ref().and_then(|current| current.indices.get(&name).copied()) else {
                continue;
            };
            let before = before.get(&name).cloned();
            let differs = |before: &Arc<Moment>| {
                before.stance_digest != after.stance_digest
                    || before.other_mode(&after)
                    || before.offboarded != after.offboarded
                    || before.break_glass_until.is_some() != after.break_glass_until.is_some()
            };
            if before.as_ref().is_some_and(differs) {
                let held = self.superseded.as_ref().and_then(|tables| held(tables, index));
                let change = Changed::new(name, index, (before, (*after).clone()), why.clone(), held);
                // Without the tables that were in force, an earlier daemon's, it cannot be told.
                let reach = held.is_none().then(|| ReachDifference {
                    truncated: ["opened", "closed"].into_iter().collect(),
                    ..ReachDifference::default()
                });
                changed.push(Changed { reach, applied_us, ..change });
            }
        }
        self.compare(&mut changed);
        for change in &changed {
            self.note_change(change);
        }
    }

    /// When something ends next by time alone.
    pub(crate) fn next_deadline(&mut self) -> Option<Timestamp> {
        let Self { deadline, current, epochs, moments, live, .. } = self;
        deadline.or_look_up(|| {
            let ends = epochs.iter().filter_map(|(name, epoch)| {
                let current = current.as_ref().filter(|current| current.config.accounts.contains_key(name))?;
                moments.get(&(*current.indices.get(name)?, *epoch))?.until
            });
            ends.chain(live.next_expiry()).min()
        })
    }

    /// Ends what time has ended.
    pub(crate) fn expire(&mut self) {
        // A clock that was set ends nothing: first everything moves along with it.
        self.compare_clocks();
        let now = Timestamp::now();
        self.deadline.forget();
        let ended = self.live.expire(now);
        let mut affected: BTreeMap<String, Why> = BTreeMap::new();
        for (name, epoch) in &self.epochs {
            // Of an account that is declared no more nothing is to be brought up to date.
            let current = self.current.as_ref().filter(|current| current.config.accounts.contains_key(name));
            let index = current.and_then(|current| current.indices.get(name));
            let moment = index.and_then(|index| self.moments.get(&(*index, *epoch)));
            if moment.is_some_and(|moment| moment.until.is_some_and(|until| until <= now)) {
                affected.insert(name.clone(), Why::time());
            }
        }
        for escalation in &ended.escalations {
            self.note_escalation(escalation, EscalationState::Expired, None);
            if !escalation.target.is_action()
                && escalation.answer.is_some()
                && escalation.status != EscalationStatus::Denied
            {
                affected.insert(escalation.account.clone(), Why::ended("approval-expired", &escalation.id));
            }
        }
        for broken in &ended.break_glass {
            self.note_break_glass_ended(broken);
            let why = Why { cause: "break-glass-ended".to_owned(), ..Why::default() };
            match &broken.account {
                Some(account) => {
                    affected.insert(account.clone(), why);
                }
                None => affected.extend(self.epochs.keys().map(|name| (name.clone(), why.clone()))),
            }
        }
        for signal in &ended.signals {
            self.note(signal_record(signal, SignalState::Expired, None, None));
            affected.insert(signal.account.clone(), Why::ended("signal-expired", &signal.id));
        }
        for grant in &ended.grants {
            self.note(grant_record(grant, GrantState::Expired, None));
            affected.insert(grant.account.clone(), Why::ended("grant-expired", &grant.id));
        }
        // What has ended does not count whether or not that is on disk: it can wait for the next second.
        self.live_unsaved |= !(ended.signals.is_empty()
            && ended.grants.is_empty()
            && ended.escalations.is_empty()
            && ended.break_glass.is_empty());
        if let Err(error) = self.refresh_each(affected) {
            tracing::error!(%error, "the kernel could not be told what time changed; its fallbacks hold");
            // Its time has passed: without a pause this would be tried without end.
            self.deadline.put_off(now.checked_add(jiff::SignedDuration::from_secs(1)).ok());
        }
        self.flush();
    }

    /// Writes the live state whole, on the disk when this returns; what could not be is tried again every second.
    pub(crate) fn save_live(&mut self) {
        self.deadline.forget();
        let saved = self.store.save_live(&self.live, &mut self.live_journal);
        self.degraded_by(UNKEPT, saved.is_err());
        self.live_unsaved = saved.is_err();
        if let Err(error) = saved {
            tracing::error!(%error, "the live state could not be kept: a restart would forget its last change");
            self.unkept = Some(error.to_string());
        } else {
            self.unkept = None;
        }
    }

    /// Whether a restart would know what was done.
    ///
    /// # Errors
    /// It would not: what was done is in force, and forgotten should the daemon end before there is room.
    pub(super) fn kept(&self) -> Done<()> {
        self.unkept.clone().map_or(Ok(()), |why| Err(Refusal::Unkept(why)))
    }
}
