//! What is in force and how it fares, as `status` shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use writ_abi::{Active, Counter, Slot};
use writ_core::config::Mode;
use writ_core::table::Unresolved;

use super::Engine;
use crate::kernel::{AccountLost, Kernel, boot_ns};
use crate::surroundings::Surroundings;

/// What is covered where nothing is missing; the names that `[kernel] require` can use.
pub(super) const COVERAGE: [&str; 6] = ["cgroup", "tracing", "egress", "sock-destroy", "set-retval", "lsm"];

impl Kernel {
    /// Why this is not covered; `None` if it is.
    pub(super) fn missing(&self, coverage: &str) -> Option<String> {
        match coverage {
            "lsm" => self.lsm.clone().err(),
            "set-retval" if !self.chooses_errno => Some("needs Linux 5.18; refusals return EPERM".into()),
            known if COVERAGE.contains(&known) => None,
            _ => Some(format!("writ knows no such coverage; it knows {}", COVERAGE.join(", "))),
        }
    }

    /// What is covered.
    pub(super) fn coverage(&self) -> Vec<String> {
        COVERAGE.iter().filter(|name| self.missing(name).is_none()).map(|name| (*name).to_owned()).collect()
    }
}

/// The whole status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// `running`
    pub state: String,
    /// This agent.
    pub version: String,
    /// The mode the configuration asks for.
    pub mode: Mode,
    /// The mode in force: `enforce` only if every account that asks for it has it.
    pub effective_mode: Mode,
    /// Accounts that are configured to be enforced and are not: a break-glass is open.
    #[serde(default)]
    pub not_enforced: Vec<String>,
    /// Digest of the policy set, grants included.
    pub policy_digest: String,
    /// Digest of the policy set as configured.
    pub configuration_digest: String,
    /// The configuration's label.
    pub bundle: Option<String>,
    /// The generation of kernel tables.
    pub generation: u32,
    /// Why writ is not what the configuration asks for; empty if it is.
    pub degraded: Vec<String>,
    /// Accounts that were declared before and are no more: their processes are not judged any longer.
    #[serde(default)]
    pub undeclared: Vec<String>,
    /// What is covered.
    pub coverage: Vec<String>,
    /// What is not covered, and why.
    #[serde(default)]
    pub missing: BTreeMap<String, String>,
    /// The cgroup that is judged.
    pub cgroup: String,
    /// Whether that is only part of the host.
    pub partial: bool,
    /// When the daemon started.
    pub started: Timestamp,
    /// When the configuration in force was put in force.
    pub in_force_since: Timestamp,
    /// How the last reload went.
    pub last_reload: Option<ReloadResult>,
    /// The accounts.
    pub accounts: Vec<AccountStatus>,
    /// Attempts: seen, recorded, lost, in flight.
    pub records: Records,
    /// Every kernel counter.
    pub counters: BTreeMap<String, u64>,
    /// The log's head.
    pub checkpoint: Checkpoint,
    /// Where records go.
    pub sinks: Vec<Sink>,
    /// Live sessions that writ tracks.
    pub sessions: u64,
    /// What the last self-test found.
    pub self_test: Option<super::SelfTest>,
    /// What became of the runs of `on-escalation`.
    #[serde(default)]
    pub on_escalation: super::hook::HookStatus,
    /// The last time since the start that programs were found detached.
    #[serde(default)]
    pub detachment: Option<super::attached::Detachment>,
    /// Warnings of the configuration in force.
    pub warnings: usize,
    /// What around writ could undo it; looked for outside the engine's turn.
    #[serde(flatten)]
    pub surroundings: Surroundings,
}

/// How a reload went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReloadResult {
    /// When.
    pub at: Timestamp,
    /// Whether the configuration was put in force.
    pub ok: bool,
    /// The first problem, if it was not.
    pub problem: Option<String>,
}

/// One account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AccountStatus {
    /// Its name.
    pub name: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The mode in force for it.
    pub mode: Mode,
    /// Risk now.
    pub risk: u8,
    /// Flags of live signals.
    pub signals: Vec<String>,
    /// Live grants.
    pub grants: Vec<String>,
    /// Whether it is offboarded.
    pub offboarded: bool,
    /// Digest of its row.
    pub stance_digest: String,
    /// Number of its last change.
    pub epoch: u32,
    /// When time alone changes its stance.
    pub valid_until: Option<Timestamp>,
    /// Selectors that nothing on this host matches.
    pub unmatched: Vec<String>,
    /// How many decisions it may always have in the ring, whatever other accounts do.
    #[serde(default)]
    pub ring_share: u64,
    /// Its attempts without a record since the maps were made, by the kernel's count.
    #[serde(default)]
    pub lost: AccountLost,
}

/// Attempts, by what became of their records: `seen = recorded + lost + in_flight`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Records {
    /// Attempts of managed accounts that were judged.
    pub seen: u64,
    /// Attempts whose record is in the log.
    pub recorded: u64,
    /// Attempts that the log counts as lost.
    pub lost: u64,
    /// Attempts whose record is on its way: in the ring, or waiting for a log that cannot be written; and losses that are
    /// not certain yet.
    pub in_flight: u64,
}

/// The log's head.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Lines in the log.
    pub size: u64,
    /// Lines that the last checkpoint signs.
    pub signed: Option<u64>,
    /// The tree's root over all lines, in hexadecimal.
    #[serde(default)]
    pub root: String,
    /// The log's name.
    pub origin: String,
    /// The public key.
    pub vkey: String,
}

/// One place where records go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sink {
    /// Its name; `log` is the log itself.
    pub name: String,
    /// What it is: `log`, `ocsf-file`, `journald`.
    pub kind: String,
    /// Whether it works.
    pub ok: bool,
    /// Records that wait for it.
    pub waiting: u64,
    /// Events it was sent since the daemon started; of the log, lines it has.
    pub delivered: u64,
    /// Records it will never have, since the daemon started: retention removed them first.
    pub lost: u64,
    /// Why it does not work.
    pub error: Option<String>,
}

impl Engine {
    /// The status now.
    pub(crate) fn status(&self) -> Option<Status> {
        let current = self.current()?;
        let counts = self.kernel.counters().unwrap_or_default();
        let counter = |counter: Counter| counts.iter().filter_map(|counts| counts.get(counter as usize)).sum::<u64>();
        let seen = counter(Counter::Seen);
        // As the log has it: what waits for the log is not recorded yet.
        let ((recorded, lost), (unwritten, untold)) = (self.losses.totals(), self.waiting.totals());
        let (recorded, lost) = (recorded.saturating_sub(unwritten), lost.saturating_sub(untold));
        let accounts: Vec<AccountStatus> =
            current.config.accounts.keys().filter_map(|name| self.account_status(name)).collect();
        // What is not attached judges nothing, whatever is configured.
        let detached = self.is_detached();
        let observed = accounts.iter().any(|account| account.mode == Mode::Observe);
        let mode = current.config.agent.mode;
        let asked = |name: &str| current.config.accounts.get(name).map(|account| account.effective_mode(mode));
        let relaxed =
            |account: &&AccountStatus| account.mode == Mode::Observe && asked(&account.name) == Some(Mode::Enforce);
        let relaxed = |account: &&AccountStatus| relaxed(account) || detached;
        let not_enforced = accounts.iter().filter(relaxed).map(|account| account.name.clone()).collect();
        Some(Status {
            state: "running".into(),
            version: super::evidence::VERSION.into(),
            mode,
            effective_mode: if detached
                || observed && mode == Mode::Enforce && accounts.iter().all(|account| account.mode == Mode::Observe)
            {
                Mode::Observe
            } else {
                mode
            },
            not_enforced,
            policy_digest: current.policy_digest.clone(),
            configuration_digest: self.base_digest.clone(),
            bundle: Some(current.config.agent.label.clone().unwrap_or_else(|| short(&self.base_digest).to_owned())),
            generation: Active(current.generation.active).generation(),
            degraded: self
                .degraded
                .iter()
                .cloned()
                .chain(self.log_failure.as_ref().map(|_| super::failure::UNWRITABLE.to_owned()))
                // Some process is refused because the executable it descends from is not known.
                .chain((counter(Counter::LineageFull) > 0).then(|| Counter::LineageFull.name().to_owned()))
                // Whoever cannot be placed is refused, until the next generation.
                .chain(self.kernel.cgroups_lost().then(|| Counter::CgroupLost.name().to_owned()))
                .collect(),
            undeclared: self.undeclared.iter().cloned().collect(),
            coverage: self.kernel.coverage(),
            missing: COVERAGE
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), self.kernel.missing(name)?)))
                .collect(),
            cgroup: self.kernel.cgroup().attached.display().to_string(),
            partial: self.kernel.cgroup().partial(),
            started: self.started,
            in_force_since: current.since,
            last_reload: self.last_reload.clone(),
            accounts,
            records: Records { seen, recorded, lost, in_flight: seen.saturating_sub(recorded + lost) },
            counters: Counter::ALL.iter().map(|which| (which.name().to_owned(), counter(*which))).collect(),
            checkpoint: Checkpoint {
                size: self.log.size(),
                signed: self.log.signed(),
                root: self.log.root().iter().map(|byte| format!("{byte:02x}")).collect(),
                origin: self.log.origin().into(),
                vkey: self.log.vkey().to_string(),
            },
            sinks: self.sink_states(),
            sessions: self.session_count(),
            self_test: self.self_test.clone(),
            on_escalation: self.hook.status(),
            detachment: self.detachment.clone(),
            warnings: current.warnings.len(),
            surroundings: Surroundings::default(),
        })
    }

    /// The log first, then the sinks by name.
    fn sink_states(&self) -> Vec<Sink> {
        let failure = self.log_failure.as_ref().map(|(error, _)| error.clone());
        let log = Sink {
            name: "log".into(),
            kind: "log".into(),
            ok: self.log_failure.is_none() && self.log.failure().is_none(),
            waiting: self.waiting.len() as u64,
            delivered: self.log.size(),
            lost: 0,
            error: failure.or_else(|| self.log.failure().map(ToString::to_string)),
        };
        let others = self.sinks.states().into_iter().map(|state| Sink {
            name: state.name,
            kind: state.kind.into(),
            ok: state.error.is_none(),
            waiting: self.log.size().saturating_sub(state.next),
            delivered: state.delivered,
            lost: state.lost,
            error: state.error,
        });
        std::iter::once(log).chain(others).collect()
    }

    /// One account's status now.
    pub(crate) fn account_status(&self, name: &str) -> Option<AccountStatus> {
        let current = self.current()?;
        let account = current.config.accounts.get(name)?;
        let index = u32::from(*current.indices.get(name)?);
        let slot = current.generation.slots.get(index as usize).copied().map(Slot)?;
        let moment = self.moments.get(&(u16::try_from(index).ok()?, slot.epoch()));
        let situation = moment.map(|moment| moment.situation(&current.config.signals, Timestamp::now()));
        let broken = situation.as_ref().is_some_and(|situation| situation.break_glass_until.is_some());
        let stance = current.generation.stances.get(slot.stance() as usize);
        let expired = stance.is_some_and(|stance| boot_ns() >= stance.valid_until);
        let shown = if expired { stance.map_or(0, |stance| stance.fallback) } else { slot.stance() };
        Some(AccountStatus {
            name: name.to_owned(),
            owner: account.owner.clone(),
            mode: match account.effective_mode(current.config.agent.mode) {
                _ if situation.as_ref().is_some_and(|situation| situation.offboarded) => Mode::Enforce,
                _ if broken => Mode::Observe,
                configured => configured,
            },
            risk: situation.as_ref().map_or(0, |situation| situation.state.risk),
            signals: situation
                .as_ref()
                .map(|situation| situation.state.signals.iter().cloned().collect())
                .unwrap_or_default(),
            grants: situation.as_ref().map(|situation| situation.grants.iter().cloned().collect()).unwrap_or_default(),
            offboarded: situation.as_ref().is_some_and(|situation| situation.offboarded),
            stance_digest: current.generation.digests.get(shown as usize).cloned().unwrap_or_default(),
            epoch: slot.epoch(),
            valid_until: moment.and_then(|moment| moment.until),
            unmatched: current.unresolved.iter().filter_map(|missing| unmatched(missing, name)).collect(),
            ring_share: u16::try_from(index).map_or(0, |index| self.kernel.share(index)),
            lost: u16::try_from(index).map(|index| self.kernel.lost(index)).unwrap_or_default(),
        })
    }
}

fn unmatched(missing: &Unresolved, account: &str) -> Option<String> {
    match missing {
        Unresolved::User { account: of, user } if of == account => Some(format!("user {user}")),
        Unresolved::Executable { account: of, path } if of == account => Some(format!("executable {path}")),
        _ => None,
    }
}

/// The beginning of a digest: enough to tell configurations apart.
fn short(digest: &str) -> &str {
    digest.get(.."sha256-".len() + 12).unwrap_or(digest)
}
