//! Putting a configuration in force: compile, resolve on this host, write a generation whole, swap, archive.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use jiff::Timestamp;
use nix::unistd::User;
use writ_abi::Slot;
use writ_core::config::{Config, SourceFile};
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::{Bundle, Grant as PolicyGrant, GrantTarget};
use writ_core::stance::{GrantDestination, expiry_steps};
use writ_core::table::{Identities, Outlook, Unresolved, build};

use super::clock::Clocks;
use super::evidence::EPOCHS_KEPT;
use super::explain::{Legend, Moment, Names};
use super::persist::Numbers;
use super::{Current, Engine, GENERATIONS_KEPT};
use crate::kernel::InstallError;
use crate::log::archive_put;
use crate::process::kernel_device;

/// How many expiries a stance looks ahead; beyond it the fallback denies.
const LOOKAHEAD: usize = 64;

/// Where a configuration came from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The parsed configuration.
    pub config: Config,
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

impl Engine {
    /// Puts a configuration in force, with the grants that are live.
    ///
    /// # Errors
    /// Nothing changed: the errors of the configuration, or the table that could not be written.
    pub(crate) fn activate(&mut self, source: Source) -> Result<(), ActivateError> {
        let now = Clocks::read();
        let Source { config, files, mut warnings } = source;
        let (base, findings) = Bundle::compile(&config);
        warnings.extend(findings);
        warnings.extend(Identities::check(&config));
        let refused = warnings.iter().any(|finding| finding.severity == Severity::Error);
        let Some(base) = base.filter(|_| !refused) else { return Err(ActivateError::Refused(warnings)) };
        self.put_in_force(config, Arc::new(base), warnings, &now)?;
        if let Some(current) = &self.current {
            self.sinks.apply(&current.config.agent.sinks);
        }
        if let Err(error) = self.store.save_last_good(&files) {
            tracing::error!(%error, "the configuration is in force, but could not be kept for the next start");
        }
        Ok(())
    }

    /// Builds and installs the next generation for the configuration in force: after a grant or approval changed what
    /// there is to tell apart.
    ///
    /// # Errors
    /// Nothing changed.
    pub(crate) fn regenerate(&mut self) -> Result<(), ActivateError> {
        let now = Clocks::read();
        let Some(current) = self.current.take() else { return Ok(()) };
        let (config, warnings) = (current.config.clone(), current.warnings.clone());
        let base = Arc::clone(&self.base);
        // Put back whatever happens: without it no event could be explained.
        self.current = Some(current);
        self.put_in_force(config, base, warnings, &now)
    }

    fn put_in_force(
        &mut self,
        config: Config,
        base: Arc<Bundle>,
        warnings: Vec<Diagnostic>,
        now: &Clocks,
    ) -> Result<(), ActivateError> {
        let bundle = self.with_grants(&config, &base, now.wall)?;
        let previous = self.numbers.accounts.clone();
        let active =
            self.kernel.active().map_err(|error| InstallError { table: "ACTIVE", error: error.to_string() })?;
        let number = active.generation().wrapping_add(1);
        let mut moments = BTreeMap::new();
        let mut outlooks = BTreeMap::new();
        for name in config.accounts.keys() {
            let epoch = self.epochs.get(name).copied().unwrap_or(0).wrapping_add(1);
            let mut moment = Moment::of(&self.live, &config, name, base.digest(), now.wall);
            let since = self.numbers.known_since.get(name).copied().unwrap_or(now.wall);
            let outlook = outlook(&config, &bundle, &mut moment, epoch, since, now.wall);
            outlooks.insert(name.clone(), outlook);
            moments.insert(name.clone(), (epoch, moment));
        }
        let boot_ns_of = |at: Timestamp| now.boot_of(at);
        let generation = build(&bundle, &config, number, &outlooks, &previous, &boot_ns_of)
            .map_err(|finding| ActivateError::Refused(vec![*finding]))?;
        let (identities, unresolved) = resolve(&config, &generation);
        // Numbers first: if we die after the swap, no index may be given to another account.
        let epochs: BTreeMap<String, u32> = moments.iter().map(|(name, (epoch, _))| (name.clone(), *epoch)).collect();
        let mut known_since = self.numbers.known_since.clone();
        for name in config.accounts.keys() {
            known_since.entry(name.clone()).or_insert(now.wall);
        }
        let boot_id = self.host.boot_id.clone();
        let numbers = Numbers { boot_id, accounts: generation.accounts.clone(), epochs, known_since };
        self.store
            .save_numbers(&numbers)
            .map_err(|error| InstallError { table: "accounts.json", error: error.to_string() })?;
        let policy_digest = self.archive(&bundle)?;
        let base_digest = if Arc::ptr_eq(&bundle, &base) { policy_digest.clone() } else { self.archive(&base)? };
        let legend = Legend::of(&generation, &policy_digest);
        self.remember(Names { bundle: Arc::clone(&bundle), legend });
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
        self.epochs.extend(numbers.epochs.clone());
        self.numbers = numbers;
        self.base = base;
        self.base_digest = base_digest;
        self.deadline = None;
        self.current = Some(Current {
            config,
            bundle,
            policy_digest,
            generation,
            indices,
            identities,
            unresolved,
            warnings,
            since: now.wall,
        });
        Ok(())
    }

    /// The bundle with the grants that are live as policies of their own.
    fn with_grants(&self, config: &Config, base: &Arc<Bundle>, now: Timestamp) -> Result<Arc<Bundle>, ActivateError> {
        let sources: Vec<SourceFile> = self
            .live
            .grants()
            .all(now)
            .filter(|grant| grant.is_live(now) && config.accounts.contains_key(&grant.account))
            .map(|grant| policy_of(grant).source())
            .collect();
        if sources.is_empty() {
            return Ok(Arc::clone(base));
        }
        let (bundle, findings) = Bundle::compile_with(config, &sources);
        bundle.map(Arc::new).ok_or(ActivateError::Refused(findings))
    }

    /// Archives the set as evaluated, so that a copied log replays by itself. Returns the digest of the manifest that
    /// names its parts: `policy_digest` of records.
    fn archive(&self, bundle: &Bundle) -> Result<String, InstallError> {
        let put = |content: &str| {
            archive_put(self.log.layout(), content.as_bytes())
                .map_err(|error| InstallError { table: "archive", error: error.to_string() })
        };
        let escalating: Vec<&str> = bundle.escalating().into_iter().collect();
        let manifest = serde_json::json!({
            "policies": put(&bundle.archived_policies())?,
            "enforced": put(&bundle.archived_enforced_policies())?,
            "schema": put(bundle.archived_schema())?,
            "entities": put(bundle.archived_entities())?,
            "escalating": escalating,
        });
        put(&manifest.to_string())
    }

    /// Keeps what holds for an account in an epoch, and forgets what no event can mean any more.
    pub(super) fn keep_moment(&mut self, index: u16, epoch: u32, moment: Moment) {
        self.moments.remove(&(index, epoch.wrapping_sub(EPOCHS_KEPT)));
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

fn policy_of(grant: &writ_core::stance::Grant) -> PolicyGrant {
    PolicyGrant {
        id: grant.id.clone(),
        account: grant.account.clone(),
        target: match &grant.destination {
            GrantDestination::Named(name) => GrantTarget::Destination(name.clone()),
            GrantDestination::Endpoint { addresses, port, protocol } => {
                GrantTarget::Endpoint { addresses: *addresses, port: *port, protocol: Some(*protocol) }
            }
        },
        executable: grant.executable.clone(),
        expires: grant.expires,
        approver: grant.approver.name.clone().unwrap_or_else(|| grant.approver.uid.to_string()),
        reason: grant.reason.clone(),
    }
}

/// Looks up the users and executables that the configuration names.
pub(crate) fn resolve(config: &Config, generation: &writ_core::table::Generation) -> (Identities, Vec<Unresolved>) {
    let matches = || config.accounts.values().flat_map(|account| &account.matches);
    let mut users = BTreeMap::new();
    for name in matches().filter_map(|found| found.user.as_ref()) {
        let uid = name.parse().ok().or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()));
        if let Some(uid) = uid {
            users.insert(name.clone(), uid);
        }
    }
    let mut executables = BTreeMap::new();
    let named = matches().filter_map(|found| found.executable.as_ref());
    for path in named.chain(generation.executables.keys()) {
        if let Ok(found) = fs::metadata(path) {
            executables.insert(path.clone(), (kernel_device(found.dev()), found.ino()));
        }
    }
    let (mut identities, unresolved) = Identities::build(config, &users, &executables, generation);
    super::selftest::add_identity(&mut identities);
    (identities, unresolved)
}
