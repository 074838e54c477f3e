//! A host under policy: a configuration, a running `writ` confined to a cgroup of the test's own, and processes in it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use serde_json::Value;
use tempfile::TempDir;

use crate::answer::{self, Answer};
use crate::api::Api;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::follow::Follower;
use crate::held::Held;
use crate::probe::{self, Attempt, Batch, Prober};
use crate::record::Record;
use crate::settled::Settled;
use crate::sweep::{self, BPFFS, PREFIX};
use crate::{bpf, user, wait};

/// Lines of the daemon's own output shown when a test fails.
const SHOWN_OUTPUT: usize = 80;

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// What a test runs against. Everything it made is undone when it is dropped.
#[derive(Debug)]
pub struct Host {
    // In the order in which they are dropped: `Drop for Host` has ended the daemon by then.
    cgroup: Cgroup,
    directory: TempDir,
    pins: PathBuf,
    service: User,
    daemon: Option<Child>,
}

impl Host {
    /// A host with this configuration whose policy is in force.
    #[track_caller]
    pub fn start(config: &Config) -> Self {
        let mut host = Self::prepare(config);
        host.run_daemon();
        host
    }

    /// A host with this configuration and without a daemon.
    #[track_caller]
    pub fn prepare(config: &Config) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the whole-system tests need root");
        let name = format!("{PREFIX}{}-{}", std::process::id(), HOSTS.fetch_add(1, Ordering::Relaxed));
        mount_bpffs();
        sweep::sweep();
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("cannot make a directory");
        // The service account runs the probe from here.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("cannot open the directory");
        fs::copy(probe::program(), directory.path().join("writ-probe"))
            .expect("cannot copy `writ-probe`; is it built?");
        let host = Self {
            pins: Path::new(BPFFS).join(&name),
            // A slice, so that what is made in it can be a unit.
            cgroup: Cgroup::create(&format!("{name}.slice")),
            directory,
            service: user::ensure(user::SERVICE),
            daemon: None,
        };
        host.configure(config);
        host
    }

    /// Replaces the configuration files; nothing reads them until a reload or a start.
    pub fn configure(&self, config: &Config) {
        let at = |part: &str| self.directory.path().join(part).display().to_string();
        let mut paths = format!(
            "[paths]\nstate = \"{}\"\nlog = \"{}\"\nsocket = \"{}\"\npins = \"{}\"\n",
            at("state"),
            at("log"),
            at("run/writ.sock"),
            self.pins.display()
        );
        // A test must not judge the machine it runs on; a virtual machine is made to be judged as a whole.
        if config.confined || !judged_as_a_whole() {
            paths.push_str(&format!("cgroup = \"{}\"\n", self.cgroup.path().display()));
        }
        config.write(&self.config_directory(), &paths);
    }

    /// Where the configuration lies.
    pub fn config_directory(&self) -> PathBuf {
        self.directory.path().join("etc")
    }

    /// Where the API listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/writ.sock")
    }

    /// Where the log lies.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Where the maps and links are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The cgroup that is judged.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The user of the account under test.
    pub fn service_user(&self) -> &User {
        &self.service
    }

    /// A `writ` command on this host's configuration.
    pub fn writ(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(writ_program());
        command.arg("--config-dir").arg(self.config_directory()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// What a `writ` command says.
    pub fn writ_output(&self, arguments: &[&str]) -> Output {
        self.writ(arguments).output().expect("cannot run `writ`; WRIT_BIN names the binary to test")
    }

    /// A `writ` command that must succeed; its JSON.
    #[track_caller]
    pub fn writ_json(&self, arguments: &[&str]) -> Value {
        let output = self.writ_output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        match serde_json::from_slice(&output.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{arguments:?}: {error}: {output:?}"),
        }
    }

    /// What a `writ` command says to this user, run inside the cgroup.
    pub fn writ_as(&self, user: &User, arguments: &[&str]) -> Output {
        let mut command = self.command_as(user, writ_program());
        command.arg("--config-dir").arg(self.config_directory()).args(arguments).stdin(Stdio::null());
        command.output().expect("cannot run `writ`; WRIT_BIN names the binary to test")
    }

    /// Starts the daemon and waits until its policy is in force.
    #[track_caller]
    pub fn run_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon is running already");
        let output = File::options().create(true).append(true).open(self.output_path());
        let output = output.expect("cannot open the daemon's output file");
        let mut command = self.writ(&["run"]);
        command.stdout(output.try_clone().expect("cannot share the daemon's output file")).stderr(output);
        // A self-test is an attempt, and would be counted among those of a test.
        command.env_remove("NOTIFY_SOCKET").env("WRIT_SELF_TEST_EVERY", "0");
        // SAFETY: between fork and exec this makes one system call; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut child = command.spawn().expect("cannot run `writ`; WRIT_BIN names the binary to test");
        let ready = wait::within(wait::PATIENCE, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(format!("`writ run` ended: {status}")));
            }
            let listens = UnixStream::connect(self.socket()).is_ok();
            (listens && self.request("GET", "/v1/status", Value::Null).status == 200).then_some(Ok(()))
        });
        self.daemon = Some(child);
        match ready {
            Some(Ok(())) => {}
            Some(Err(ended)) => panic!("{ended}\n{}", self.output()),
            None => panic!("`writ run` did not become ready\n{}", self.output()),
        }
    }

    /// Sends the daemon a signal.
    pub fn signal_daemon(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon_pid().cast_signed()), signal).expect("cannot signal the daemon");
    }

    /// Process id of the daemon.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon is not running").id()
    }

    /// Ends the daemon without warning.
    pub fn kill_daemon(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            // Gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the daemon to end, and waits; its exit code.
    #[track_caller]
    pub fn stop_daemon(&mut self) -> Option<i32> {
        self.signal_daemon(Signal::SIGTERM);
        self.daemon_ends()
    }

    /// Waits for the daemon to end by itself; its exit code.
    #[track_caller]
    pub fn daemon_ends(&mut self) -> Option<i32> {
        let mut child = self.daemon.take().expect("the daemon is not running");
        wait::until("the daemon stops", || child.try_wait().expect("cannot wait for the daemon")).code()
    }

    /// A command that will run inside the cgroup as this user.
    pub fn command_as(&self, user: &User, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        self.enter(&mut command, user);
        command
    }

    /// Makes a command move into the cgroup and become this user before it runs.
    fn enter(&self, command: &mut Command, user: &User) {
        command.current_dir("/").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let (procs, uid, gid) = (self.cgroup.procs(), user.uid.as_raw(), user.gid.as_raw());
        let enter = move || {
            // The file belongs to root, so the process moves while it still is root; 0 means the writer.
            (&procs).write_all(b"0")?;
            // SAFETY: plain system calls on integers and a null list of length 0; no memory is touched.
            let changed = unsafe {
                libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setresgid(gid, gid, gid) == 0
                    && libc::setresuid(uid, uid, uid) == 0
            };
            if !changed {
                return Err(std::io::Error::last_os_error());
            }
            // Last, because a change of user clears it: should the test be killed, this process ends too.
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        };
        // SAFETY: between fork and exec the closure makes only system calls; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
    }

    /// Starts a process of this user that makes one attempt after another, where no packet leads anywhere: in a network
    /// namespace of its own, in which nothing is up. Every hook is passed before that matters.
    pub fn batch_as(&self, user: &User, program: impl AsRef<Path>) -> Batch {
        let mut command = Command::new(program.as_ref());
        // SAFETY: between fork and exec this makes one system call; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?)) };
        self.enter(&mut command, user);
        Batch::start(command)
    }

    /// What `status` says, asked as it asks: a process for each look is what an emulated machine would be busy with.
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer = self.request("GET", "/v1/status", Value::Null);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Waits until every attempt is either recorded or counted as lost, and says how many of each.
    #[track_caller]
    pub fn settled(&self) -> Settled {
        let mut log = self.follow();
        let (mut judged, mut lost) = (0, 0);
        let settled = wait::within(wait::PATIENCE, || {
            for record in log.rest() {
                judged += u64::from(record.has_number());
                lost += if record.text("/type") == "loss" { record.number("/count").unwrap_or_default() } else { 0 };
            }
            let status = self.status();
            let of = |name: &str| number(&status, "records", name);
            let counted = Settled { seen: of("seen"), recorded: of("recorded"), lost: of("lost") };
            (counted.seen == judged + lost).then_some(counted)
        });
        let Some(counted) = settled else {
            panic!("{judged} records and {lost} losses, but counted are {}", self.status())
        };
        assert_eq!((counted.recorded, counted.lost), (judged, lost), "the log agrees with the kernel's counters");
        counted
    }

    /// As [`Self::settled`], where a daemon that died has taken what it knew with it: what it had read and not written is
    /// lost, though the kernel counted it as handed over.
    #[track_caller]
    pub fn settled_by_the_log(&self, seen: u64) -> Settled {
        let mut log = self.follow();
        let mut settled = Settled { seen, recorded: 0, lost: 0 };
        let all = wait::within(wait::PATIENCE, || {
            for record in log.rest() {
                settled.recorded += u64::from(record.has_number());
                let lost = record.number("/count").filter(|_| record.text("/type") == "loss");
                settled.lost += lost.unwrap_or_default();
            }
            (settled.recorded + settled.lost >= seen).then_some(())
        });
        assert!(all.is_some() && settled.recorded + settled.lost == seen, "{settled:?}");
        settled
    }

    /// Panics unless `verify` finds the log whole, with these counts.
    #[track_caller]
    pub fn assert_verified(&self, expected: Settled) {
        let output = self.writ_output(&["verify", "--json", &self.log_directory().display().to_string()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let report: Value = serde_json::from_str(&text).expect("the report is JSON");
        let of = |name: &str| number(&report, "sequences", name);
        let found = Settled { seen: of("seen"), recorded: of("recorded"), lost: of("lost") };
        assert_eq!((found, of("missing")), (expected, 0), "{text}");
    }

    /// A process of the account under test that makes one attempt after another: see [`Self::batch_as`].
    pub fn batch(&self) -> Batch {
        self.batch_as(&self.service, self.probe())
    }

    /// The API of the daemon.
    pub fn api(&self) -> Api {
        Api::connect(&self.directory.path().join("run/writ.sock"))
    }

    /// The log from its beginning.
    pub fn follow(&self) -> Follower {
        Follower::new(&self.log_directory())
    }

    /// Where everything of this host lies; every user can read it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that will run inside the cgroup as the account under test.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.command_as(&self.service, program)
    }

    /// One attempt of the account under test; operations are those of `writ-probe`.
    #[track_caller]
    pub fn attempt(&self, operation: &str, to: &[SocketAddr]) -> Attempt {
        self.attempt_as(&self.service, operation, to)
    }

    /// One attempt of any user.
    #[track_caller]
    pub fn attempt_as(&self, user: &User, operation: &str, to: &[SocketAddr]) -> Attempt {
        let mut command = self.command_as(user, self.probe());
        command.arg(operation).args(to.iter().map(SocketAddr::to_string)).stdin(Stdio::null());
        let output = command.output().expect("cannot run the probe");
        assert!(output.status.success(), "the probe failed: {output:?}");
        Attempt::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Starts a process of the account under test that repeats an attempt a few thousand times a second: often enough to
    /// hit a gap of a millisecond, seldom enough that every attempt can be recorded.
    pub fn prober(&self, operation: &str, to: SocketAddr) -> Prober {
        self.repeat("200", operation, to)
    }

    /// Starts a process of the account under test that repeats an attempt without a pause.
    pub fn flood(&self, operation: &str, to: SocketAddr) -> Prober {
        self.repeat("0", operation, to)
    }

    /// Starts a process of the account under test that repeats an attempt with a pause of so many microseconds.
    pub fn paced(&self, pause: u32, operation: &str, to: SocketAddr) -> Prober {
        self.repeat(&pause.to_string(), operation, to)
    }

    fn repeat(&self, pause: &str, operation: &str, to: SocketAddr) -> Prober {
        let mut command = self.command(self.probe());
        command.args(["loop", pause, operation, &to.to_string()]);
        Prober::start(command)
    }

    /// A process of the account under test that opens so many connections and keeps them.
    #[track_caller]
    pub fn hold(&self, connections: usize, operation: &str, to: SocketAddr) -> Held {
        let mut command = self.command(self.probe());
        command.args(["hold", &connections.to_string(), operation, &to.to_string()]);
        Held::start(command)
    }

    /// Asks the daemon, as root.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Value) -> Answer {
        answer::ask(&self.directory.path().join("run/writ.sock"), method, path, &body)
    }

    /// Every record of a type, oldest first.
    #[track_caller]
    pub fn records_of(&self, kind: &str) -> Vec<Record> {
        self.records().into_iter().filter(|record| record.text("/type") == kind).collect()
    }

    /// The probe, where every user can run it.
    pub fn probe(&self) -> PathBuf {
        self.directory.path().join("writ-probe")
    }

    /// Every record, oldest first: what `tail --json` prints, read as it reads it.
    #[track_caller]
    pub fn records(&self) -> Vec<Record> {
        Follower::all(&self.log_directory())
    }

    /// Every decision and observation, oldest first.
    #[track_caller]
    pub fn judgements(&self) -> Vec<Record> {
        self.records().into_iter().filter(Record::is_judgement).collect()
    }

    /// Waits until the judgements are exactly these, in this order, and checks that each is complete.
    #[track_caller]
    pub fn expect_judgements<T: AsRef<str>>(&self, expected: &[T]) -> Vec<Record> {
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        let mut last = Vec::new();
        let found = wait::within(wait::PATIENCE, || {
            let records = self.judgements();
            last = records.iter().map(Record::to_string).collect();
            (last == expected).then_some(records)
        });
        let Some(records) = found else { panic!("expected {expected:#?}, recorded was {last:#?}") };
        for record in &records {
            record.assert_complete();
        }
        records
    }

    fn output_path(&self) -> PathBuf {
        self.directory.path().join("writ.output")
    }

    /// The last of what the daemon printed.
    fn output(&self) -> String {
        let bytes = fs::read(self.output_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(SHOWN_OUTPUT)).copied().collect::<Vec<_>>().join("\n")
    }
}

/// A number two levels down; 0 if it is not there.
fn number(of: &Value, part: &str, name: &str) -> u64 {
    of.get(part).and_then(|part| part.get(name)?.as_u64()).unwrap_or_default()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_daemon();
        let log = self.log_directory();
        let problems = if std::thread::panicking() || !log.exists() {
            Vec::new()
        } else {
            crate::schema::problems(&log, &mut self.writ(&["tail", "--ocsf"]))
        };
        if std::thread::panicking() {
            eprintln!("--- what `writ` printed ---\n{}\n---", self.output());
        }
        // Not by `writ uninstall`, which has tests of its own: what a broken one leaves would stay in the kernel.
        if self.pins.exists()
            && let Err(error) = bpf::take_away(&self.pins)
        {
            eprintln!("`{}` cannot be taken away: {error}", self.pins.display());
        }
        assert!(problems.is_empty(), "records that are not what is published: {problems:#?}");
    }
}

/// Whether writ judges the whole machine here, which is a virtual one made for that.
pub(crate) fn judged_as_a_whole() -> bool {
    std::env::var("WRIT_TEST_CGROUP").as_deref() == Ok("root")
}

/// The binary under test: named by `WRIT_BIN`, or beside the test binary.
pub fn writ_program() -> PathBuf {
    if let Some(path) = std::env::var_os("WRIT_BIN") {
        return path.into();
    }
    let this = std::env::current_exe().expect("cannot find the test binary");
    this.ancestors().nth(2).expect("the test binary lies in a target directory").join("writ")
}

/// Mounts the bpf file system where the kernel's users expect it, unless it is there.
fn mount_bpffs() {
    use nix::mount::{MsFlags, mount};
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("cannot read /proc/self/mountinfo");
    if !mounts.lines().any(|line| line.split(' ').nth(4) == Some(BPFFS) && line.contains(" - bpf ")) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("cannot mount the bpf file system");
    }
}
