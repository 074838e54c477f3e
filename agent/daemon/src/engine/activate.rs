//! Putting a configuration in force: compile, resolve on this host, write a generation whole, swap, archive.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use writ_abi::Slot;
use writ_core::config::{Config, SourceFile};
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::Bundle;
use writ_core::stance::expiry_steps;
use writ_core::table::{Identities, Outlook, build};

use super::clock::Clocks;
use super::evidence::EPOCHS_KEPT;
use super::explain::{Legend, Moment, Names};
use super::persist::Numbers;
use super::{Current, Engine, GENERATIONS_KEPT};
use crate::kernel::{InstallError, give_back_memory};
use crate::process::origins;

/// How many expiries a stance looks ahead; beyond it the fallback denies.
const LOOKAHEAD: usize = 64;

/// Where a configuration came from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The parsed configuration.
    pub config: Arc<Config>,
    /// Its files.
    pub files: Vec<SourceFile>,
    /// Findings so far.
    pub warnings: Vec<Diagnostic>,
}

/// Why a configuration was not put in force. What was in force still is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    /// It has errors.
    #[error("the configuration has errors")]
    Refused(Vec<Diagnostic>),
    /// The kernel's tables could not be written.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// How often processes are looked through for descendants at most.
const MOST_LOOKS: usize = 8;
/// Some process that was there before may be an account's without the kernel knowing it.
const LINEAGE_UNKNOWN: &str = "lineage-unknown";
/// Grants that name what is declared no more permit nothing.
const GRANTS_LEFT_OUT: &str = "grants-left-out";

impl Engine {
    /// Puts a configuration in force, with the grants that are live.
    ///
    /// # Errors
    /// Nothing changed: the errors of the configuration, or the table that could not be written.
    pub(crate) fn activate(&mut self, source: Source) -> Result<(), ActivateError> {
        let (base, findings) = Bundle::compile(&source.config);
        match base {
            Some(base) => self.activate_compiled(source, base, findings),
            None => {
                let mut warnings = source.warnings;
                warnings.extend(findings);
                Err(ActivateError::Refused(warnings))
            }
        }
    }

    /// The same with what it compiled to, and what was found doing so.
    ///
    /// # Errors
    /// Nothing changed: the errors of the configuration, or the table that could not be written.
    pub(crate) fn activate_compiled(
        &mut self,
        source: Source,
        base: Bundle,
        findings: Vec<Diagnostic>,
    ) -> Result<(), ActivateError> {
        let now = Clocks::read();
        let Source { config, files, mut warnings } = source;
        warnings.extend(findings);
        if warnings.iter().any(|finding| finding.severity == Severity::Error) {
            return Err(ActivateError::Refused(warnings));
        }
        self.applied = None;
        self.put_in_force(config, Arc::new(base), warnings, &now)?;
        if let Some(current) = &self.current {
            self.sinks.apply(&current.config.agent.sinks);
        }
        if let Err(error) = self.store.save_last_good(&files) {
            tracing::error!(%error, "the configuration is in force, but could not be kept for the next start");
        }
        // What compiling took and nobody holds any more.
        give_back_memory();
        Ok(())
    }

    /// Applies again what is in force already: only what it names on this host can be another by now, and if it is, the
    /// next generation says so.
    ///
    /// # Errors
    /// Nothing changed.
    pub(crate) fn reapply(&mut self) -> Result<(), ActivateError> {
        if self.resolves_as_before() && !self.spoiled { Ok(()) } else { self.supersede() }
    }

    /// Builds and installs the next generation for the configuration in force: where what is in force cannot be added to.
    ///
    /// # Errors
    /// Nothing changed.
    pub(crate) fn regenerate(&mut self) -> Result<(), ActivateError> {
        let outcome = self.supersede();
        self.superseded = None;
        outcome
    }

    /// The same, and keeps the tables that were in force, to be compared with.
    ///
    /// # Errors
    /// Nothing changed.
    pub(super) fn supersede(&mut self) -> Result<(), ActivateError> {
        let now = Clocks::read();
        let Some(current) = &self.current else { return Ok(()) };
        let (config, warnings) = (Arc::clone(&current.config), current.warnings.clone());
        let base = Arc::clone(&self.base);
        self.put_in_force(config, base, warnings, &now)
    }

    /// Puts a policy set in force; if that cannot be, what names on this host lead to is looked up anew by the next.
    fn put_in_force(
        &mut self,
        config: Arc<Config>,
        base: Arc<Bundle>,
        warnings: Vec<Diagnostic>,
        now: &Clocks,
    ) -> Result<(), ActivateError> {
        let resolution = self.resolution.clone();
        let outcome = self.install(config, base, warnings, now);
        if outcome.is_err() {
            self.resolution = resolution;
        }
        outcome
    }

    fn install(
        &mut self,
        config: Arc<Config>,
        base: Arc<Bundle>,
        warnings: Vec<Diagnostic>,
        now: &Clocks,
    ) -> Result<(), ActivateError> {
        let parts = self.archive(&base)?;
        let configured_digest = self.archive_manifest(&parts)?;
        let mut bundle = Arc::clone(&base);
        let mut granted = BTreeMap::new();
        // A grant that names what is declared no more must not keep a daemon from starting, nor what is in force from being
        // brought up to date later: it permits nothing. A reload that would be the first to leave one out is refused.
        let leaves_out = self.current.is_none() || self.degraded.iter().any(|reason| reason == GRANTS_LEFT_OUT);
        let mut left_out = false;
        for name in self.accounts_with_grants(now.wall).into_iter().filter(|name| config.accounts.contains_key(name)) {
            bundle = match bundle.granting(&name, &self.grants_of(&name, now.wall)) {
                Ok(with) => Arc::new(with),
                Err(findings) if leaves_out => {
                    let why = findings.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
                    tracing::error!(
                        account = name,
                        why,
                        "GRANTS ARE LEFT OUT: revoke them, or declare again what they name"
                    );
                    left_out = true;
                    continue;
                }
                Err(findings) => return Err(ActivateError::Refused(findings)),
            };
            granted.insert(name.clone(), self.archive_granted(&parts, &bundle, &name)?);
        }
        let previous = self.numbers.accounts.clone();
        let active =
            self.kernel.active().map_err(|error| InstallError { table: "ACTIVE", error: error.to_string() })?;
        let number = active.generation().wrapping_add(1);
        let mut moments = BTreeMap::new();
        let mut outlooks = BTreeMap::new();
        for name in config.accounts.keys() {
            let epoch = self.epochs.get(name).copied().unwrap_or(0).wrapping_add(1);
            let mut moment = Moment::of(&self.live, &config, name, base.digest(), now.wall);
            moment.policy_digest = granted.get(name).cloned().unwrap_or_default();
            let since = self.numbers.known_since.get(name).copied().unwrap_or(now.wall);
            let outlook = outlook(&config, &bundle, &mut moment, epoch, since, now.wall);
            outlooks.insert(name.clone(), outlook);
            moments.insert(name.clone(), (epoch, moment));
        }
        let boot_ns_of = |at: Timestamp| now.boot_of(at);
        let generation = build(&bundle, &config, number, &outlooks, &previous, &boot_ns_of)
            .map_err(|finding| ActivateError::Refused(vec![*finding]))?;
        let (identities, unresolved) = self.resolve(&config, &generation);
        // Numbers first: if we die after the swap, no index may be given to another account.
        let epochs: BTreeMap<String, u32> = moments.iter().map(|(name, (epoch, _))| (name.clone(), *epoch)).collect();
        let mut known_since = self.numbers.known_since.clone();
        for name in config.accounts.keys() {
            known_since.entry(name.clone()).or_insert(now.wall);
        }
        let boot_id = self.host.boot_id.clone();
        let numbers = Numbers { boot_id, accounts: generation.accounts.clone(), epochs, known_since };
        if let Err(error) = self.store.save_numbers(&numbers) {
            // Where no number is given out that was not before, a restart loses nothing: epochs are in the kernel too.
            if numbers.accounts != previous {
                return Err(InstallError { table: "accounts.json", error: error.to_string() }.into());
            }
            tracing::error!(%error, "account numbers could not be kept; they are as they were");
            self.live_unsaved = true; // Shown, and tried again, as what else cannot be kept there.
        }
        let legend = Legend::of(&generation, &configured_digest);
        self.remember(Names::new(Arc::clone(&bundle), legend));
        let policy_digest = self.archive_all(&parts, &bundle)?;
        let indices: HashMap<String, u16> =
            (0u16..).zip(&generation.accounts).map(|(index, name)| (name.clone(), index)).collect();
        for (name, (epoch, mut moment)) in moments {
            if let Some(index) = indices.get(&name).copied() {
                let slot = generation.slots.get(usize::from(index)).copied().map(Slot);
                moment.stance_digest =
                    slot.and_then(|slot| generation.digests.get(slot.stance() as usize).cloned()).unwrap_or_default();
                self.keep_moment(index, epoch, moment);
            }
        }
        self.save_explained();
        self.kernel.install(&generation, &identities)?;
        self.spoiled = false;
        self.seed_lineage(&identities);
        self.epochs.extend(numbers.epochs.clone());
        self.numbers = numbers;
        self.base = base;
        self.base_digest.clone_from(&configured_digest);
        self.base_parts = Some(parts);
        self.deadline.forget();
        self.degraded_by(GRANTS_LEFT_OUT, left_out);
        self.neighbours.all(&config, &generation);
        self.compare_unsettled();
        self.superseded = self.current.take().map(|current| current.generation);
        self.current = Some(Current {
            config,
            bundle,
            policy_digest,
            configured_digest,
            granted,
            generation,
            indices,
            identities,
            unresolved,
            warnings,
            since: now.wall,
        });
        Ok(())
    }

    /// Tells the kernel who descends from an executable that accounts are matched by: those started before it knew to look.
    fn seed_lineage(&mut self, identities: &Identities) {
        let leads = |file| identities.executables.get(&file).is_some_and(|(_, list)| *list != 0);
        if !identities.executables.values().any(|(_, list)| *list != 0) {
            return self.degraded_by(LINEAGE_UNKNOWN, false);
        }
        // Until a look finds nothing new: a process that its parent made after it was listed, and before it was known, is
        // found by the next one.
        let mut unknown = true;
        for _ in 0..MOST_LOOKS {
            let (mut new, mut failed) = (false, false);
            for (pid, file) in origins(leads) {
                match self.kernel.note_origin(pid, file) {
                    Ok(added) => new |= added,
                    Err(error) => {
                        failed = true;
                        tracing::error!(pid, %error, "whom a process descends from could not be told to the kernel");
                    }
                }
            }
            unknown = new || failed;
            if !new {
                break;
            }
        }
        self.degraded_by(LINEAGE_UNKNOWN, unknown);
    }

    /// Keeps what holds for an account in an epoch, and forgets what no event can mean any more.
    pub(super) fn keep_moment(&mut self, index: u16, epoch: u32, moment: Moment) {
        self.moments.remove(&(index, epoch.wrapping_sub(EPOCHS_KEPT)));
        if let Some(until) = moment.until {
            self.deadline.bring_forward(until);
        }
        self.moments.insert((index, epoch), Arc::new(moment));
    }

    fn remember(&mut self, names: Names) {
        self.generations.push_back((names.legend.generation, Arc::new(names)));
        while self.generations.len() > GENERATIONS_KEPT {
            self.generations.pop_front();
        }
    }
}

/// The outlook of an account, and with it when its moment ends. `known_since` is when its baseline began to be learnt.
pub(crate) fn outlook(
    config: &Config,
    bundle: &Bundle,
    moment: &mut Moment,
    epoch: u32,
    known_since: Timestamp,
    now: Timestamp,
) -> Outlook {
    let live = moment.live(&config.signals);
    let situation = live.situation(now);
    let steps = expiry_steps(&live, now, LOOKAHEAD);
    let observe_until = situation.break_glass_until;
    let learning_until =
        config.accounts.get(&moment.account).and_then(|account| account.learning).and_then(|learning| {
            let span = jiff::SignedDuration::try_from(learning).ok()?;
            known_since.checked_add(span).ok()
        });
    let offboarded = situation.offboarded;
    let first_end = live.expiries(now).into_iter().next().filter(|_| steps.is_none());
    let (state, later) = match steps {
        Some(steps) => {
            let mut states = steps.into_iter().map(|step| step.situation.state);
            let first = states.next().unwrap_or(situation.state);
            (first, states.collect())
        }
        // More ends than can be looked ahead: what opens access is left out at once, rather than kept too long.
        None => (
            writ_core::policy::AccountState { approvals: Vec::new(), fresh: Default::default(), ..situation.state },
            Vec::new(),
        ),
    };
    let until = later
        .iter()
        .map(|state: &writ_core::policy::AccountState| state.now)
        .chain(observe_until)
        .chain(first_end)
        // Windows, and the ends of grants, are instants of policies.
        .chain(bundle.next_boundary(&moment.account, now))
        .min();
    let outlook = Outlook { state, later, observe_until, learning_until, offboarded, epoch };
    moment.until = until;
    outlook
}
