//! The stage: a confined second writ, a throw-away account, a network namespace that leads nowhere. All of it goes away
//! with it, however that happens; nothing of a running writ is touched.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use serde_json::Value;
use writ_techniques::{Answer, Capture, Disturbance, Order, Scene, Start, Technique, Wanted};

use super::rubble;
use crate::client::Client;
use crate::engine::Status;
use crate::kernel::{self, CgroupMount};
use crate::log::Follow;

/// Uids that no user has, below 2³¹ because ping sockets ask for that.
const ACCOUNT: u32 = 2_147_480_065;
const STRANGER: u32 = 2_147_480_066;
const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 1);
const PERMITTED: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 2);
const PORT: u16 = 7_766;
/// An emulated machine takes its time to load programs.
const START: Duration = Duration::from_secs(300);
const ATTEMPT: Duration = Duration::from_secs(60);
const RECORD: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// Why the stage could not be set, or the run not be finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// A person, or the system, asked to stop.
    #[error("interrupted; everything that was made for the run is removed")]
    Interrupted,
    /// A step failed.
    #[error("{what}: {why}")]
    Failed {
        /// What was attempted.
        what: String,
        /// Why it failed.
        why: String,
    },
}

fn step<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, StageError> {
    result.map_err(|error| StageError::Failed { what: what.to_owned(), why: error.to_string() })
}

/// What came of one attempt.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Attempted {
    /// What the process said.
    pub answer: Answer,
    /// Packets that arrived and must not have.
    pub arrived: u64,
    /// Refusals recorded for it, with their hooks.
    pub refusals: Vec<Refusal>,
    /// Records that are counted as lost meanwhile.
    pub lost: u64,
}

/// One recorded refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    /// `cgroup/connect4` and so on.
    pub hook: String,
    /// `connect` or `open-socket`.
    pub action: String,
}

/// Who tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// A user of no account: what the technique can do on this kernel.
    Control,
    /// The account.
    Account,
}

/// A stage that is set.
pub(crate) struct Stage {
    interrupts: SignalFd,
    directory: tempfile::TempDir,
    cgroup: PathBuf,
    pins: PathBuf,
    daemon: Option<Child>,
    capture: Capture,
    wanted: Wanted,
    account: Scene,
    log: Follow,
    lines: Vec<Value>,
    // Open as long as the stage stands: what listens must be there to be reached.
    _peers: (Vec<TcpListener>, Vec<UdpSocket>, UnixListener),
    /// What the confined writ covers, by the names of `[kernel] require`.
    pub(crate) coverage: Vec<String>,
}

/// What must be removed, made before it can exist.
struct Rubble {
    cgroup: PathBuf,
    pins: PathBuf,
    armed: bool,
}

impl Drop for Rubble {
    fn drop(&mut self) {
        if self.armed {
            clear(&self.cgroup, &self.pins);
        }
    }
}

fn clear(cgroup: &Path, pins: &Path) {
    if let Err(error) = kernel::uninstall(pins) {
        eprintln!("warning: `{}` could not be removed: {error}", pins.display());
    }
    if let Err(error) = rubble::remove_cgroup(cgroup) {
        eprintln!("warning: `{}` could not be removed: {error}", cgroup.display());
    }
}

impl Stage {
    /// Sets the stage. To be called by a process that does nothing else: it moves into another network namespace, and
    /// keeps signals that ask to stop until the stage can be cleared.
    ///
    /// # Errors
    /// Whatever could not be had; nothing is left behind.
    pub(crate) fn set() -> Result<Self, StageError> {
        let interrupts = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        step("keeping signals", interrupts.thread_block())?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let interrupts = step("keeping signals", SignalFd::with_flags(&interrupts, flags))?;
        let mount = step("finding the cgroup2 file system", CgroupMount::find(None))?;
        rubble::sweep(&mount);
        let name = rubble::own_name();
        let directory = step("making a directory", tempfile::Builder::new().prefix("writ-coverage-").tempdir())?;
        let mut rubble = Rubble { cgroup: mount.root.join(&name), pins: rubble::pins(&name), armed: true };
        let account = scene(directory.path(), &rubble.cgroup);
        step("making the directory", furnish(directory.path(), &account))?;
        for cgroup in [&rubble.cgroup, &account.inside, &account.elsewhere] {
            step(&format!("making the cgroup `{}`", cgroup.display()), fs::create_dir(cgroup))?;
        }
        step("writing the configuration", configure(directory.path(), &rubble.cgroup, &rubble.pins, &account))?;
        let daemon = step("starting a confined writ", start(directory.path()))?;
        let (mut daemon, mut own) = (Ending(Some(daemon)), None);
        let until = Instant::now() + START;
        while own.is_none() {
            interrupted(&interrupts)?;
            let ended = daemon.0.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() >= until {
                let said = fs::read_to_string(directory.path().join("output")).unwrap_or_default();
                let why =
                    said.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(StageError::Failed {
                    what: "the confined writ did not put its policy in force".into(),
                    why,
                });
            }
            own = status(directory.path());
            std::thread::sleep(POLL);
        }
        step("making a network namespace", writ_techniques::alone_in_network())?;
        let peers = step("listening", listen(directory.path(), &account))?;
        let capture = step("capturing", Capture::begin())?;
        let log = Follow::from_start(&directory.path().join("log"));
        rubble.armed = false;
        Ok(Self {
            interrupts,
            cgroup: rubble.cgroup.clone(),
            pins: rubble.pins.clone(),
            daemon: daemon.0.take(),
            capture,
            wanted: Wanted::of(&account),
            account,
            log,
            lines: Vec::new(),
            _peers: peers,
            coverage: own.map(|status| status.coverage).unwrap_or_default(),
            directory,
        })
    }

    /// Tries a technique once, and finds out what came of it.
    ///
    /// # Errors
    /// The stage is in trouble, or a signal asked to stop.
    pub(crate) fn attempt(&mut self, technique: &Technique, who: Who) -> Result<Attempted, StageError> {
        let mut order = Order::new(technique.id, &self.account);
        order.scene.uid = if who == Who::Account { ACCOUNT } else { STRANGER };
        if technique.start == Start::Program {
            order.scene.uid = STRANGER;
        }
        if who == Who::Control || technique.start != Start::Program {
            order.scene.tool = self.directory.path().join("plain");
        }
        let disturbance = if who == Who::Account { technique.disturbance } else { Disturbance::None };
        let lost = if disturbance == Disturbance::None { 0 } else { self.lost() };
        step("reading the capture", self.capture.count(&self.wanted))?;
        self.disturb(disturbance)?;
        let answer = self.carry_out(&order)?;
        let arrived = step("reading the capture", self.capture.count(&self.wanted))?;
        rubble::end_processes(&self.account.inside);
        rubble::end_processes(&self.account.elsewhere);
        self.restore(disturbance)?;
        let mut attempted = Attempted { answer, arrived, ..Attempted::default() };
        if who == Who::Control {
            return Ok(attempted);
        }
        let expected = technique.claimed(self.has_lsm()) == writ_techniques::Claim::Covered;
        let patience = match disturbance {
            Disturbance::Killed => START,
            _ if expected || !attempted.answer.went_through() => RECORD,
            _ => POLL,
        };
        let patient = Instant::now() + patience;
        loop {
            // Asked before looking: what was recorded, or told as lost, until now is found below.
            let settled = self.everything_is_recorded();
            attempted.refusals = self.refusals(&attempted.answer.pids);
            if disturbance == Disturbance::RingFull {
                attempted.lost = self.lost().saturating_sub(lost);
            }
            let told = !attempted.refusals.is_empty() || attempted.lost > 0;
            // What the kernel refuses by itself leaves no record to wait for.
            if told || settled || Instant::now() >= patient {
                return Ok(attempted);
            }
            interrupted(&self.interrupts)?;
            std::thread::sleep(POLL);
        }
    }

    /// Whether the BPF LSM is part of what is in force.
    pub(crate) fn has_lsm(&self) -> bool {
        self.coverage.iter().any(|name| name == "lsm")
    }

    fn carry_out(&self, order: &Order) -> Result<Answer, StageError> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["attempt", &order.to_json()]).current_dir("/").env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = step("starting an attempt", command.spawn())?;
        let until = Instant::now() + ATTEMPT;
        loop {
            if step("waiting for an attempt", child.try_wait())?.is_some() {
                break;
            }
            let asked = interrupted(&self.interrupts);
            if asked.is_err() || Instant::now() >= until {
                let _ = child.kill();
                let _ = child.wait();
                asked?;
                return Ok(Answer { broken: Some("the attempt did not end".into()), ..Answer::default() });
            }
            std::thread::sleep(POLL);
        }
        // A process it left behind would hold the other end.
        rubble::end_processes(&self.account.inside);
        let (mut said, mut complained) = (String::new(), String::new());
        if let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) {
            let _ = stdout.read_to_string(&mut said);
            let _ = stderr.read_to_string(&mut complained);
        }
        Ok(Answer::from_json(&said).unwrap_or_else(|why| Answer {
            broken: Some(format!("{why}: {}", complained.trim())),
            ..Answer::default()
        }))
    }

    fn disturb(&mut self, disturbance: Disturbance) -> Result<(), StageError> {
        match disturbance {
            Disturbance::None => Ok(()),
            Disturbance::Stopped | Disturbance::RingFull => self.signal(Signal::SIGSTOP),
            Disturbance::Killed => {
                if let Some(mut child) = self.daemon.take() {
                    step("killing the confined writ", child.kill())?;
                    step("waiting for the confined writ", child.wait())?;
                }
                Ok(())
            }
        }
    }

    fn restore(&mut self, disturbance: Disturbance) -> Result<(), StageError> {
        match disturbance {
            Disturbance::None => Ok(()),
            Disturbance::Stopped | Disturbance::RingFull => self.signal(Signal::SIGCONT),
            Disturbance::Killed => {
                self.daemon = Some(step("starting the confined writ again", start(self.directory.path()))?);
                Ok(())
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), StageError> {
        let Some(child) = &self.daemon else { return Ok(()) };
        step("signalling the confined writ", kill(Pid::from_raw(child.id().cast_signed()), signal))
    }

    fn lost(&self) -> u64 {
        status(self.directory.path()).map_or(0, |status| status.records.lost)
    }

    /// Whether the log holds all that was judged: then nothing more is coming.
    fn everything_is_recorded(&mut self) -> bool {
        let Some(status) = status(self.directory.path()) else { return false };
        let judged =
            |line: &&Value| matches!(line.get("type").and_then(Value::as_str), Some("decision" | "observation"));
        self.read_log();
        let judged = self.lines.iter().filter(judged).count() as u64;
        status.records.in_flight == 0 && judged + status.records.lost >= status.records.seen
    }

    fn read_log(&mut self) {
        // What cannot be read now is read the next time.
        while let Ok(Some((_, line))) = self.log.next_line() {
            self.lines.extend(serde_json::from_slice::<Value>(&line));
        }
    }

    fn refusals(&mut self, pids: &[u32]) -> Vec<Refusal> {
        self.read_log();
        let text =
            |line: &Value, pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let own = |line: &&Value| {
            let pid = line.pointer("/process/pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
            text(line, "/type") == "decision"
                && text(line, "/verdict") != "allow"
                && pid.is_some_and(|pid| pids.contains(&pid))
        };
        let refusal = |line: &Value| Refusal { hook: text(line, "/kernel/hook"), action: text(line, "/action") };
        self.lines.iter().filter(own).map(refusal).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(Ending(self.daemon.take()));
        clear(&self.cgroup, &self.pins);
    }
}

/// A process that ends when it is dropped.
struct Ending(Option<Child>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn interrupted(signals: &SignalFd) -> Result<(), StageError> {
    match signals.read_signal() {
        Ok(Some(_)) => Err(StageError::Interrupted),
        _ => Ok(()),
    }
}

fn status(directory: &Path) -> Option<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let socket = directory.join("run/writ.sock");
    runtime.block_on(async { Client::new(&socket).get::<Status>("/v1/status").await }).ok()
}

fn scene(directory: &Path, cgroup: &Path) -> Scene {
    Scene {
        uid: ACCOUNT,
        stranger: STRANGER,
        forbidden: FORBIDDEN,
        forbidden_v6: Ipv6Addr::LOCALHOST,
        port: PORT,
        permitted: SocketAddrV4::new(PERMITTED, PORT + 1),
        marker: format!("writ-coverage-{:08x}", std::process::id()),
        directory: directory.to_owned(),
        tool: directory.join("tool"),
        inside: cgroup.join("inside"),
        elsewhere: cgroup.join("elsewhere"),
        others: Default::default(),
    }
}

/// What the techniques need to find: copies of this program, and a place where anybody may make another.
fn furnish(directory: &Path, scene: &Scene) -> std::io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for copy in [scene.tool.clone(), directory.join("plain")] {
        fs::copy("/proc/self/exe", &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    fs::DirBuilder::new().mode(0o1777).create(directory.join("scratch"))?;
    fs::set_permissions(directory.join("scratch"), fs::Permissions::from_mode(0o1777))
}

fn configure(directory: &Path, cgroup: &Path, pins: &Path, scene: &Scene) -> std::io::Result<()> {
    let at = |part: &str| directory.join(part).display().to_string();
    let agent = format!(
        "mode = \"enforce\"\n[paths]\nstate = \"{}\"\nlog = \"{}\"\nsocket = \"{}\"\npins = \"{}\"\ncgroup = \"{}\"\n\
         [kernel]\nring-size = \"64KiB\"\n",
        at("state"),
        at("log"),
        at("run/writ.sock"),
        pins.display(),
        cgroup.display()
    );
    let accounts = format!(
        "[service-account.coverage]\nowner = \"writ doctor\"\nmatch = {{ user = \"{ACCOUNT}\" }}\n\
         [service-account.coverage-program]\nowner = \"writ doctor\"\nmatch = {{ executable = \"{}\" }}\n",
        scene.tool.display()
    );
    let destination = format!(
        "[destination.permitted]\naddresses = [\"{}/32\"]\nports = [{}]\n",
        scene.permitted.ip(),
        scene.permitted.port()
    );
    let policy = "@id(\"permitted\") @owner(\"writ doctor\") @reason(\"what a technique needs beside the forbidden\")\n\
                  permit (principal == ServiceAccount::\"coverage\", action == Action::\"connect\", resource in \
                  Destination::\"permitted\");\n";
    for (name, text) in [
        ("writ.toml", agent.as_str()),
        ("service-accounts.d/coverage.toml", &accounts),
        ("destinations.d/permitted.toml", &destination),
        ("policies.d/coverage.cedar", policy),
    ] {
        let path = directory.join("etc").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

fn start(directory: &Path) -> std::io::Result<Child> {
    let output = fs::File::options().create(true).append(true).open(directory.join("output"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--config-dir").arg(directory.join("etc")).arg("coverage-instance");
    command.current_dir("/").env_clear().stdin(Stdio::null()).process_group(0);
    command.stdout(output.try_clone()?).stderr(output).spawn()
}

type Peers = (Vec<TcpListener>, Vec<UdpSocket>, UnixListener);

/// Whoever could be reached: on every address, with the forbidden port, the resolvers' port, and the permitted one.
fn listen(directory: &Path, scene: &Scene) -> std::io::Result<Peers> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for port in [scene.port, scene.permitted.port(), 53] {
        tcp.push(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?);
        udp.push(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?);
    }
    // A host without IPv6 has nothing to listen on, and the control attempts say so.
    tcp.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, scene.port)));
    udp.extend(UdpSocket::bind((Ipv6Addr::LOCALHOST, scene.port)));
    let relay = directory.join("relay.sock");
    let listener = UnixListener::bind(&relay)?;
    fs::set_permissions(&relay, fs::Permissions::from_mode(0o777))?;
    Ok((tcp, udp, listener))
}
