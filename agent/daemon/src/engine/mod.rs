//! The engine: the one owner of kernel side, live state and log. Requests, ring events and time reach it one at a time.
//!
//! connect → ring → [`Engine::pump`] → record → log. Signal, grant, clock, reload → [`Engine::refresh`] → one slot write,
//! or [`Engine::activate`] → one generation.

mod activate;
mod append;
mod attached;
mod changes;
mod clock;
mod deadline;
mod decide;
mod drift;
mod drop_directory;
mod dropped;
mod escalate;
mod evidence;
mod explain;
mod failure;
mod found;
mod granted;
mod handle;
mod hook;
mod journal;
mod live;
mod losses;
mod neighbours;
mod openings;
mod outlived;
mod persist;
mod question;
mod ready;
mod refresh;
mod refusals;
mod reload;
mod repeats;
mod resolution;
mod rotation;
mod seat;
mod selftest;
mod sessions;
mod status;
mod tally;
mod together;
mod turn;
mod undeclared;
mod view;
mod waiting;
mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use writ_core::config::{Config, Match};
use writ_core::diagnostic::Diagnostic;
use writ_core::policy::Bundle;
use writ_core::record::{BootTag, Host};
use writ_core::replay::Manifest;
use writ_core::stance::LiveState;
use writ_core::table::{Generation, Identities, Unresolved};

use crate::kernel::Kernel;
use crate::log::LogWriter;
use crate::process::ProcessTable;
use crate::sink::Sinks;

pub(crate) use changes::{Change, Page};
pub(crate) use explain::Moment;
pub(crate) use handle::{Handle, Stopped};
pub(crate) use live::{Actor, Asking, Refusal};
pub(crate) use losses::Losses;
pub(crate) use persist::Store;
pub(crate) use question::{Answered, Asked, Party};
pub(crate) use ready::agent_alone;
pub(crate) use ready::note_uninstalled;
pub(crate) use ready::{OpenedEngine, StartError, open};
pub(crate) use selftest::{Outcome as SelfTest, probe as self_test_probe, run as self_test};
pub(crate) use status::{AccountStatus, Status};
pub(crate) use tally::Tally;
pub(crate) use turn::{Ended, run};
pub(crate) use view::simulate;

/// How many generations can be explained at most, while events of them may still come (see [`outlived`]).
const GENERATIONS_KEPT: usize = 16;

/// What is in force: configuration, policy, tables.
pub(crate) struct Current {
    /// The configuration.
    pub config: Arc<Config>,
    /// The policy set, grants included.
    pub bundle: Arc<Bundle>,
    /// What it is archived as.
    pub policy_digest: String,
    /// What the set without grants is archived as.
    pub configured_digest: String,
    /// What that is archived as with the grants of an account that has some, by account.
    pub granted: BTreeMap<String, String>,
    /// The tables.
    pub generation: Generation,
    /// Account numbers by name.
    pub indices: HashMap<String, u16>,
    /// Who is who on this host.
    pub identities: Identities,
    /// What the configuration names and the host does not have.
    pub unresolved: Vec<Unresolved>,
    /// Warnings of the last activation.
    pub warnings: Vec<Diagnostic>,
    /// When it was put in force.
    pub since: Timestamp,
}

/// The daemon's working state.
pub(crate) struct Engine {
    pub(crate) config_dir: PathBuf,
    pub(crate) kernel: Kernel,
    pub(crate) current: Option<Current>,
    /// The tables that were in force before, until what the new ones opened and closed is on record.
    pub(crate) superseded: Option<Generation>,
    pub(crate) live: LiveState,
    pub(crate) store: Store,
    /// Signals since the live state was written.
    pub(crate) live_journal: journal::Journal,
    /// Whether something ended by time since then.
    pub(crate) live_unsaved: bool,
    /// Stances since what explains them was written.
    pub(crate) explained_journal: journal::Journal,
    /// Rows to prepare while there is nothing else to do.
    pub(crate) neighbours: neighbours::Neighbours,
    /// Operations whose grace period and records are still to come: see [`Engine::settle`].
    pub(crate) unsettled: together::Unsettled,
    /// When something ends next by time alone.
    pub(crate) deadline: deadline::Deadline,
    /// Whether somebody waits for the engine to be free.
    pub(crate) asked: seat::Asked,
    pub(crate) log: LogWriter,
    /// Where the log's records are sent on.
    pub(crate) sinks: Sinks,
    pub(crate) host: Host,
    /// What the ids of this boot's records have in common.
    pub(crate) boot: BootTag,
    pub(crate) processes: ProcessTable,
    pub(crate) losses: Losses,
    /// How old generations are read: number, policy set and names.
    pub(crate) generations: VecDeque<(u32, Arc<explain::Names>)>,
    /// What held for an account in an epoch.
    pub(crate) moments: HashMap<(u16, u32), Arc<Moment>>,
    /// What older names and moments wait for to be let go.
    pub(crate) outlived: Option<outlived::Outlived>,
    /// Records of attempts that may be made again.
    pub(crate) repeats: repeats::Repeats,
    /// The epoch of each account; never set back while maps are pinned.
    pub(crate) epochs: BTreeMap<String, u32>,
    /// Account numbers as pinned maps know them.
    pub(crate) numbers: persist::Numbers,
    /// The policy set without grants: approvals are given under it.
    pub(crate) base: Arc<Bundle>,
    /// What that set is archived as.
    pub(crate) base_digest: String,
    /// The parts of that archive.
    pub(crate) base_parts: Option<Manifest>,
    /// What was read when it was put in force (see [`crate::configuration::fingerprint`]), if a reload did.
    pub(crate) applied: Option<String>,
    pub(crate) degraded: Vec<String>,
    /// Accounts that were declared once and are no more.
    pub(crate) undeclared: BTreeSet<String>,
    pub(crate) started: Timestamp,
    /// Number of the agent's own last record (see [`writ_core::record::IdSource::Agent`]).
    pub(crate) agent_records: u64,
    /// What was recorded since the start.
    pub(crate) tally: Tally,
    /// The latest changes, for those who wait for one.
    pub(crate) changes: changes::Changes,
    /// Lines that could not be written yet, oldest first.
    pub(crate) waiting: waiting::Waiting,
    /// The log's size when memory was given back last, and a second ago.
    pub(crate) rested: (u64, u64),
    /// The position of the log that was kept last.
    pub(crate) kept_position: u64,
    /// Whether the kernel was told that the log can, or cannot, be written.
    pub(crate) told_log_fails: Option<bool>,
    /// Why the log cannot be written, if it cannot.
    pub(crate) log_failure: Option<(String, Timestamp)>,
    pub(crate) last_reload: Option<status::ReloadResult>,
    pub(crate) heartbeat_due: Instant,
    /// When the log is next looked through for lines that may go.
    pub(crate) prune_due: Instant,
    /// Executable of the event being recorded.
    pub(crate) last_executable: Option<String>,
    /// What accounts were refused lately, for `why`.
    pub(crate) denials: why::Denials,
    /// Refusals recorded lately, so that a flood of them is counted instead.
    pub(crate) refusals: refusals::Refusals,
    /// Executables looked at, and signals they raise.
    pub(crate) drift: drift::Drift,
    /// Dropped files of which some lines are still to be taken.
    pub(crate) dropped: dropped::Dropped,
    /// What the configuration names, as it was found on this host.
    pub(crate) resolution: resolution::Resolution,
    /// Which decision let each open session through, and on which sockets accounts have some.
    pub(crate) openings: openings::Openings,
    /// Sessions, by cookie, that were open before any connect hook could see them.
    pub(crate) found_open: BTreeSet<u64>,
    /// Whom escalations are told.
    pub(crate) hook: hook::Hook,
    /// When every program was last seen attached.
    pub(crate) attached_at: Timestamp,
    /// The last time that one was not.
    pub(crate) detachment: Option<attached::Detachment>,
    pub(crate) self_test: Option<selftest::Outcome>,
    /// Why the live state could not be kept the last time, if it could not.
    unkept: Option<String>,
    /// Accounts whose stance in the kernel is not the one that holds.
    unapplied: BTreeSet<String>,
    /// Whether what is known of the generation in force is not what the kernel has of it.
    spoiled: bool,
    pub(crate) ending: Option<Ended>,
}

impl Engine {
    /// What is in force. The engine is handed out only once something is.
    pub(crate) fn current(&self) -> Option<&Current> {
        self.current.as_ref()
    }

    /// Says that writ is not what the configuration asks for, or that it is again.
    pub(crate) fn degraded_by(&mut self, reason: &str, is_so: bool) {
        self.degraded.retain(|known| known != reason);
        if is_so {
            self.degraded.push(reason.to_owned());
        }
    }

    /// The accounts, and which processes belong to them.
    fn accounts_as_matched(&self) -> Vec<(String, Vec<Match>)> {
        let accounts = self.current.iter().flat_map(|current| current.config.accounts.values());
        accounts.map(|account| (account.name.clone(), account.matches.clone())).collect()
    }
}

impl Current {
    /// What the policy set is archived as with the account's own grants and nobody else's: what decides about it.
    pub(crate) fn policy_digest_of(&self, account: &str) -> &str {
        self.granted.get(account).unwrap_or(&self.configured_digest)
    }
}
