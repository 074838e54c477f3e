//! From nothing to a policy in force: state and log opened, kernel side loaded or adopted, configuration activated.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use writ_core::config::{Agent, Config, Mode, SourceFile, parse};
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::{Bundle, nat64};
use writ_core::record::{BootTag, EffectiveMode, Host, Lifecycle};
use writ_core::stance::BreakGlass;

use super::activate::{ActivateError, Source};
use super::clock::Clocks;
use super::explain::{Moment, Names};
use super::persist::{Explained, Numbers, Store, StoreError};
use super::refresh::Why;
use super::{Engine, Tally};
use crate::configuration::{self, host::host_facts, read::writable_by_others};
use crate::kernel::{CgroupMount, Kernel, OpenError, Options};
use crate::log::{KeySource, LogError, LogWriter, replay_attempts};
use crate::process::ProcessTable;
use crate::sink::Sinks;

/// Why the daemon cannot start. Enforcement that is pinned stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The configuration is refused, and there is no earlier one.
    #[error("the configuration is refused, and there is no earlier one to fall back to")]
    Refused(Vec<Diagnostic>, Vec<SourceFile>),
    /// The kernel gives less than the configuration requires.
    #[error("`[kernel] require` asks for `{0}`, which this kernel does not give: {1}")]
    Required(String, String),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] OpenError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StoreError),
    /// The log.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// The tables.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// This host.
    #[error("{0}")]
    Host(String),
}

/// An engine with a policy in force, and what was found on the way.
pub(crate) struct OpenedEngine {
    /// The engine.
    pub engine: Engine,
    /// Every finding of the configuration.
    pub findings: Vec<Diagnostic>,
    /// The files they are about.
    pub sources: Vec<SourceFile>,
}

/// Opens everything and puts the configuration in force, or, if it is refused, the last one that was.
///
/// # Errors
/// No policy could be put in force.
pub(crate) fn open(config_dir: &Path) -> Result<OpenedEngine, StartError> {
    let loaded = configuration::load(config_dir);
    let agent = loaded.config.as_ref().map_or_else(|| agent_alone(&loaded.sources), |config| config.agent.clone());
    let store = Store::open(Path::new(&agent.paths.state))?;
    let last_good = store.load_last_good()?;
    let compiled = loaded.config.map(|config| (compile(&config), config));
    let (config, compiled, files, mut degraded) = match compiled {
        Some((Ok(compiled), config)) => (config, compiled, loaded.sources.clone(), Vec::new()),
        refused => {
            let mut findings = loaded.diagnostics.clone();
            findings.extend(refused.and_then(|(compiled, _)| compiled.err()).unwrap_or_default());
            let earlier = last_good.clone().and_then(|files| Some((parse(&files, &host_facts(&files)).config?, files)));
            let Some((mut config, files)) = earlier else { return Err(StartError::Refused(findings, loaded.sources)) };
            let compiled = match compile(&config) {
                Ok(compiled) => compiled,
                Err(_) => return Err(StartError::Refused(findings, loaded.sources)),
            };
            // Where things lie is what the refused configuration says, if it says it: a log must not move by accident.
            config.agent.paths = agent.paths.clone();
            for finding in findings.iter().filter(|finding| finding.severity == Severity::Error) {
                tracing::error!(code = finding.code, at = ?finding.at.as_ref().map(|at| format!("{}:{}:{}", at.file, at.line, at.column)), "{}", finding.message);
            }
            (config, compiled, files, vec!["config-rejected".to_owned()])
        }
    };
    let kept = [("state-exposed", &agent.paths.state), ("log-exposed", &agent.paths.log)];
    degraded.extend(kept.iter().filter(|(_, path)| is_exposed(Path::new(path))).map(|(word, _)| (*word).to_owned()));
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let boot_id =
        read("/proc/sys/kernel/random/boot_id").map_err(|error| StartError::Host(format!("boot id: {error}")))?;
    let machine_id = read("/etc/machine-id").ok().filter(|id| id.len() == 32).unwrap_or_else(|| fallback_id(&store));
    let origin = format!("writ/{machine_id}");
    let (log, recovery) =
        LogWriter::open(Path::new(&agent.paths.log), &key_source(&agent, &store), config.agent.log.clone(), &origin)?;
    let first_own = log.size();
    let sinks = Sinks::new(Path::new(&agent.paths.log), Path::new(&agent.paths.state), &log.identity(), first_own);
    let cgroup =
        CgroupMount::find(agent.paths.cgroup.as_deref()).map_err(|error| StartError::Host(error.to_string()))?;
    let mut kernel = Kernel::open(&Options {
        pins: PathBuf::from(&agent.paths.pins),
        cgroup: cgroup.clone(),
        ring_size: config.agent.kernel.ring_size,
        nat64: nat64(&config).to_vec(),
        require_lsm: config.agent.kernel.require.iter().any(|wanted| wanted == "lsm"),
    })?;
    let adopted = kernel.adopted;
    for wanted in &config.agent.kernel.require {
        if let Some(why) = kernel.missing(wanted) {
            drop(kernel);
            if !adopted {
                let _ = crate::kernel::uninstall(Path::new(&agent.paths.pins));
            }
            return Err(StartError::Required(wanted.clone(), why));
        }
    }
    if let Err(why) = &kernel.lsm {
        tracing::warn!(%why, "no BPF LSM: sockets of families that are not IP are not judged");
    }
    let live_journal = store.journal("live");
    let mut live = store.load_live(&live_journal)?;
    if let Some(step) = live.read_clock(Clocks::read().reading(&boot_id)) {
        tracing::warn!(%step, "the wall clock was set while writ was away; everything that ends by time was moved along");
    }
    let mut numbers = store.load_numbers(adopted)?;
    if !adopted || numbers.boot_id != boot_id {
        // Nothing in the kernel knows the old numbers.
        numbers = Numbers { boot_id: boot_id.clone(), known_since: numbers.known_since, ..Numbers::default() };
    }
    if adopted {
        // What was written last may not be what is in force: an epoch is never given twice. Where there are no slots, nothing is.
        for (name, slot) in numbers.accounts.iter().zip(kernel.slots().unwrap_or_default()) {
            let known = numbers.epochs.entry(name.clone()).or_default();
            *known = slot.epoch().max(*known);
        }
    }
    let kept = store.load_position().filter(|kept| kept.boot_id == boot_id && kept.lines <= log.size());
    let (unknown, kept) = (kept.is_none(), kept.unwrap_or_default());
    let mut losses = kept.losses;
    replay_attempts(log.layout(), kept.lines, &boot_id, losses.ledger())?;
    let positions = losses.ledger().highest();
    // An older writ's programs judge until this one's policy is in force. What they gave numbers to since the last record
    // cannot be read any more, and is counted as lost: the numbers go on behind it.
    let mut given = positions.clone();
    for (cpu, number) in kernel.older_numbers()? {
        let known = given.entry(cpu).or_default();
        *known = number.max(*known);
    }
    if !adopted {
        losses.counts_anew();
        if !given.is_empty() {
            kernel.resume_numbers(&given).map_err(|error| StartError::Host(format!("kernel counters: {error}")))?;
        }
    }
    let changes = super::changes::Changes::new(log.size());
    let mut engine = Engine {
        config_dir: config_dir.to_owned(),
        kernel,
        current: None,
        superseded: None,
        live,
        log,
        sinks,
        boot: BootTag::of(&boot_id),
        host: Host { id: machine_id, boot_id },
        processes: ProcessTable::new(cgroup),
        losses,
        generations: VecDeque::new(),
        moments: HashMap::new(),
        outlived: None,
        repeats: super::repeats::Repeats::default(),
        epochs: numbers.epochs.clone(),
        numbers,
        base: Arc::new(compiled.0.clone()),
        applied: None,
        base_digest: String::new(),
        base_parts: None,
        degraded,
        undeclared: BTreeSet::new(),
        started: Timestamp::now(),
        // Records of the agent are fewer than all records, so this never goes back.
        agent_records: first_own,
        tally: Tally::default(),
        changes,
        waiting: super::waiting::Waiting::default(),
        rested: (0, 0),
        kept_position: 0,
        told_log_fails: None,
        log_failure: None,
        last_reload: None,
        heartbeat_due: Instant::now() + Duration::from_secs(300),
        prune_due: Instant::now(),
        last_executable: None,
        denials: super::why::Denials::default(),
        refusals: super::refusals::Refusals::default(),
        dropped: super::dropped::Dropped::default(),
        drift: super::drift::Drift::with(store.load_fingerprints()),
        resolution: store.load_resolution(),
        openings: super::openings::Openings::default(),
        found_open: BTreeSet::new(),
        hook: super::hook::Hook::default(),
        attached_at: Timestamp::now(),
        detachment: None,
        self_test: None,
        unkept: None,
        unapplied: BTreeSet::new(),
        spoiled: false,
        ending: None,
        live_journal,
        live_unsaved: false,
        explained_journal: store.journal("explained"),
        deadline: super::deadline::Deadline::default(),
        asked: super::seat::Asked::default(),
        neighbours: super::neighbours::Neighbours::default(),
        unsettled: super::together::Unsettled::default(),
        store,
    };
    let opened = engine.denials.recall(Path::new(&agent.paths.log), first_own, &engine.host.boot_id);
    engine.openings.recall(opened);
    // The journal begins anew: what it said is in the state now.
    engine.save_live();
    if !recovery.is_clean() {
        engine.note_lifecycle(Lifecycle::LogRepair {
            repairs: recovery.repairs.clone(),
            cut_bytes: recovery.cut_bytes,
            unsigned_tail: recovery.unsigned_tail,
            set_aside: recovery.set_aside.clone(),
        });
    }
    if adopted {
        engine.recall(last_good.as_deref(), &files)?;
    }
    let applied = configuration::fingerprint(&files, &loaded.diagnostics);
    let mut warnings = loaded.diagnostics.clone();
    // The errors are of the configuration that was rejected, and not of the one that is taken instead.
    warnings.retain(|finding| finding.severity != Severity::Error);
    let source = Source { config: Arc::new(config), files, warnings };
    let recalled = engine.moments_recalled();
    engine.activate_compiled(source, compiled.0, compiled.1)?;
    engine.applied = Some(applied).filter(|_| engine.degraded.is_empty());
    engine.kernel.retire_older()?;
    if adopted
        && unknown
        && let Some(look) = engine.look()
    {
        engine.losses.counts_known(&look);
    }
    if let Some(earlier) = last_good.as_deref().and_then(|files| parse(files, &host_facts(files)).config) {
        engine.note_undeclared(&super::undeclared::declared(&earlier));
    }
    let began = Instant::now();
    let started = engine.note_started(adopted);
    // What was decided while no daemon ran waits in the ring: the first turns record it, and answer meanwhile.
    engine.note_what_time_did(&recalled, &started);
    engine.judge_all_sessions(started.clone(), "writ started", began);
    engine.take_up_open_connections(&started);
    Ok(OpenedEngine { engine, findings: loaded.diagnostics, sources: loaded.sources })
}

impl Engine {
    /// Takes up what an earlier daemon kept to explain the events it did not read.
    fn recall(&mut self, last_good: Option<&[SourceFile]>, files: &[SourceFile]) -> Result<(), StartError> {
        let Explained { legends, moments } = self.store.load_explained(&self.explained_journal);
        for (account, epoch, moment) in moments {
            // An epoch is on record before the kernel has it: whatever the kernel holds, the next one is newer.
            let known = self.epochs.entry(moment.account.clone()).or_default();
            *known = epoch.max(*known);
            self.moments.insert((account, epoch), Arc::new(moment));
        }
        let earlier = match last_good {
            Some(earlier) if earlier == files => Some(Arc::clone(&self.base)),
            Some(earlier) => {
                parse(earlier, &host_facts(earlier)).config.and_then(|config| Bundle::compile(&config).0).map(Arc::new)
            }
            None => None,
        };
        let Some(bundle) = earlier else { return Ok(()) };
        for legend in legends.into_iter().rev() {
            self.generations.push_back((legend.generation, Arc::new(Names::new(Arc::clone(&bundle), legend))));
        }
        Ok(())
    }

    /// Records what ended while no daemon ran, whose access that changed, and what glass is still broken.
    fn note_what_time_did(&mut self, recalled: &BTreeMap<String, Arc<Moment>>, started: &str) {
        self.expire();
        self.record_changes();
        let broken: Vec<BreakGlass> = self.live.broken_glass().all(Timestamp::now()).cloned().collect();
        for broken in broken {
            tracing::warn!(account = broken.account.as_deref().unwrap_or("all"), until = %broken.until, reason = broken.reason, "GLASS IS BROKEN: verdicts are only observed");
            self.note_break_glass(&broken, true);
        }
        let why = Why { cause: "start".to_owned(), id: Some(started.to_owned()), ..Why::default() };
        self.note_policy_changes(recalled, &why, 0);
        self.flush();
    }

    fn note_started(&mut self, adopted: bool) -> String {
        let kernel_release =
            nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
        let policy_digest = self.current().map(|current| current.policy_digest.clone()).unwrap_or_default();
        let generation = self.current().map_or(0, |current| writ_abi::Active(current.generation.active).generation());
        let mode = match self.current().map(|current| current.config.agent.mode) {
            Some(Mode::Observe) => EffectiveMode::Observe,
            _ => EffectiveMode::Enforce,
        };
        let degraded = self.degraded.clone();
        let id = self.note_lifecycle(if adopted {
            Lifecycle::Adopt { policy_digest, generation, mode: Some(mode), degraded, kernel_release }
        } else {
            let coverage = self.kernel.coverage();
            Lifecycle::Start { policy_digest, mode, coverage, degraded, kernel_release }
        });
        self.flush();
        id
    }
}

/// The policy set of a configuration with its warnings, or the errors that only compiling finds.
fn compile(config: &Config) -> Result<(Bundle, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (bundle, mut findings) = Bundle::compile(config);
    match bundle {
        Some(bundle) => Ok((bundle, findings)),
        None => {
            findings.retain(|finding| finding.severity == Severity::Error);
            Err(findings)
        }
    }
}

/// The agent's settings from a configuration of which the rest may be refused, and `writ.toml` too: where things are is then
/// what can still be read there.
pub(crate) fn agent_alone(sources: &[SourceFile]) -> Agent {
    let own: Vec<SourceFile> = sources.iter().filter(|source| source.name == "writ.toml").cloned().collect();
    let parsed = parse(&own, &host_facts(&own));
    parsed.config.or(parsed.refused.map(|refused| refused.config)).map(|config| config.agent).unwrap_or_default()
}

/// Whether others can write where the daemon keeps things: who can could forge grants, or lead what is written as root
/// elsewhere. It is said, and no reason not to start: at a boot that would leave everything undecided.
fn is_exposed(directory: &Path) -> bool {
    let Ok(found) = fs::metadata(directory) else { return false };
    let own = nix::unistd::geteuid().as_raw();
    let exposed = writable_by_others(found.mode(), found.gid()) || ![0, own].contains(&found.uid());
    if exposed {
        let (path, mode, owner) = (directory.display(), found.mode() & 0o7777, found.uid());
        tracing::error!(%path, mode = format!("{mode:o}"), owner, "OTHERS CAN WRITE THERE, and forge what is kept: `chown root` and `chmod go-w` it");
    }
    exposed
}

/// Where the log's key is: as configured, from the service manager, or our own.
fn key_source(agent: &Agent, store: &Store) -> KeySource {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    KeySource::find(agent.log.key.as_deref(), credentials.as_deref(), store.key())
}

/// An id for a host without a machine id: made once, kept in the state directory.
fn fallback_id(store: &Store) -> String {
    let path = store.key().with_file_name("host-id");
    // One that a crash left unwritten is none.
    if let Some(id) = fs::read_to_string(&path).ok().map(|id| id.trim().to_owned()).filter(|id| id.len() == 32) {
        return id;
    }
    let mut bytes = [0u8; 16];
    let _ = getrandom::fill(&mut bytes);
    let id = bytes.iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
    let made = path.with_extension("tmp");
    let _ = fs::write(&made, &id).and_then(|()| fs::rename(&made, &path));
    id
}

/// Records that enforcement was taken away, in the log of a host whose daemon does not run.
///
/// # Errors
/// The daemon holds the log, or it cannot be written.
pub(crate) fn note_uninstalled(agent: &Agent) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let log = Path::new(&agent.paths.log);
    if !log.exists() {
        return Ok(()); // writ never ran here: there is nothing to say, and no log to begin.
    }
    let store = Store::open(Path::new(&agent.paths.state)).map_err(|error| failed(&error))?;
    let machine_id =
        fs::read_to_string("/etc/machine-id").map(|id| id.trim().to_owned()).ok().filter(|id| id.len() == 32);
    let machine_id = machine_id.unwrap_or_else(|| fallback_id(&store));
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|error| failed(&error))?.trim().to_owned();
    let (mut writer, _) =
        LogWriter::open(log, &key_source(agent, &store).existing(), agent.log.clone(), &format!("writ/{machine_id}"))
            .map_err(|error| failed(&error))?;
    let now = Timestamp::now();
    let uid = nix::unistd::getuid();
    let by = writ_core::record::Caller {
        uid: uid.as_raw(),
        loginuid: fs::read_to_string("/proc/self/loginuid")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map_or(writ_core::record::LoginUid::Unattributed, writ_core::record::LoginUid::from_kernel),
        user: nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name),
        pid: Some(std::process::id()),
        executable: std::env::current_exe().ok().map(|path| path.display().to_string()),
    };
    let id = writ_core::record::record_id(
        now,
        BootTag::of(&boot_id),
        writ_core::record::IdSource::Agent(writer.size() + (1 << 40)),
    );
    let body = writ_core::record::Body::Lifecycle(Box::new(Lifecycle::Uninstall { by }));
    let record =
        writ_core::record::Record::new(id, now, Host { id: machine_id, boot_id }, super::evidence::VERSION, body);
    writer.append(&[record.to_line()]).map_err(|error| failed(&error))?;
    writer.close().map_err(|error| failed(&error))
}
