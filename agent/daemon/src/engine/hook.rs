//! `on-escalation`: a command of the operator's, run for each new escalation so that somebody is told. It decides nothing and
//! holds nothing up: its time, its number at once and what is kept of its output are bounded, and its failures are counted. Each
//! account has its share of the places, so that one that floods does not keep another's from being told.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use writ_core::config::Config;
use writ_core::record::Time;
use writ_core::stance::{Escalation, Target};

/// How long one run may take.
const LONGEST: Duration = Duration::from_secs(10);
/// How long one that failed is listened to after its end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How many run at once.
const AT_ONCE: usize = 4;
/// How many wait; beyond it an escalation is on record, listed, and told to nobody.
const WAITING: usize = 512;
/// How many of one account wait.
const WAITING_EACH: usize = 8;
/// How long `degraded` says that somebody was not told, after the last time.
const SHOWN: Duration = Duration::from_secs(3_600);
/// How much of what a failed run said is kept.
const KEPT: usize = 2_048;

/// What became of the runs since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HookStatus {
    /// Runs that exited with 0.
    pub succeeded: u64,
    /// Runs that could not be started, exited otherwise, or took too long.
    pub failed: u64,
    /// Escalations that nobody was told of, because too many waited.
    pub dropped: u64,
    /// The same by account.
    #[serde(default)]
    pub dropped_of: BTreeMap<String, u64>,
    /// The last failure.
    pub last_failure: Option<HookFailure>,
    /// Whether the last run failed.
    pub failing: bool,
}

/// A run that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HookFailure {
    /// When.
    pub at: Timestamp,
    /// Why, with the beginning of what it printed.
    pub why: String,
}

struct Job {
    account: String,
    command: Vec<String>,
    input: Vec<u8>,
}

/// What waits to be run.
#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Nothing more comes.
    closed: bool,
}

impl Queue {
    /// Whether there was room for it.
    fn push(&mut self, job: Job) -> bool {
        let own = self.jobs.iter().filter(|waiting| waiting.account == job.account).count();
        let room = own < WAITING_EACH && self.jobs.len() < WAITING;
        if room {
            self.jobs.push_back(job);
        }
        room
    }
}

/// Runs the command, on threads of its own.
#[derive(Debug, Default)]
pub(crate) struct Hook {
    queue: Arc<(Mutex<Queue>, Condvar)>,
    started: bool,
    status: Arc<Mutex<HookStatus>>,
    dropped_at: Option<Instant>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        lock(&self.queue.0).closed = true;
        self.queue.1.notify_all();
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.command)
    }
}

impl Hook {
    /// What became of the runs.
    pub(crate) fn status(&self) -> HookStatus {
        lock(&self.status).clone()
    }

    /// Whether somebody was not told lately.
    pub(crate) fn drops(&self) -> bool {
        self.dropped_at.is_some_and(|at| at.elapsed() < SHOWN)
    }

    /// Has the command run with this about an account on its standard input; returns at once.
    pub(crate) fn run(&mut self, account: &str, command: &[String], input: &serde_json::Value) {
        let mut input = input.to_string().into_bytes();
        input.push(b'\n');
        let job = Job { account: account.to_owned(), command: command.to_vec(), input };
        if !self.started {
            self.started = true;
            for _ in 0..AT_ONCE {
                let (queue, status) = (Arc::clone(&self.queue), Arc::clone(&self.status));
                let spawned = thread::Builder::new().name("on-escalation".into()).spawn(move || work(&queue, &status));
                if let Err(error) = spawned {
                    tracing::error!(%error, "no thread for `on-escalation`");
                }
            }
        }
        if lock(&self.queue.0).push(job) {
            self.queue.1.notify_one();
            return;
        }
        self.dropped_at = Some(Instant::now());
        let mut status = lock(&self.status);
        status.dropped += 1;
        // Whom the decision point is asked about can be anybody: so many names are kept, and the number is of all.
        if status.dropped_of.len() < WAITING || status.dropped_of.contains_key(account) {
            *status.dropped_of.entry(account.to_owned()).or_default() += 1;
        }
        tracing::warn!(account, "too many runs of `on-escalation` wait: nobody is told of this escalation");
    }
}

impl super::Engine {
    /// Has `on-escalation` run, where it is configured.
    pub(super) fn tell_of(&mut self, escalation: &Escalation, decision: &str, config: &Config) {
        if config.agent.on_escalation.is_empty() {
            return;
        }
        let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let ttl = config.agent.grant_max_ttl.min(Duration::from_secs(900)).as_secs();
        let (id, directory) = (&escalation.id, self.config_dir.display());
        let (destination, action, resource) = match &escalation.target {
            Target::Connect { address, port, protocol, .. } => (
                Some(serde_json::json!({ "address": address.to_string(), "port": port, "protocol": protocol })),
                None,
                None,
            ),
            Target::Action { action, resource, .. } => (None, Some(action), Some(resource)),
        };
        self.hook.run(
            &escalation.account,
            &config.agent.on_escalation,
            &serde_json::json!({
                "host": { "id": self.host.id, "name": name },
                "escalation": id,
                "account": escalation.account,
                "owner": config.accounts.get(&escalation.account).and_then(|account| account.owner.clone()),
                "destination": destination,
                "action": action,
                "resource": resource,
                "executable": escalation.target.executable(),
                "policies": escalation.policies,
                "record": decision,
                "expires": Time(escalation.expires),
                "approve": format!("writ --config-dir {directory} escalation approve {id} --ttl {ttl}s --reason REASON"),
                "deny": format!("writ --config-dir {directory} escalation deny {id} --reason REASON"),
            }),
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work((queue, news): &(Mutex<Queue>, Condvar), status: &Mutex<HookStatus>) {
    loop {
        let waiting = news.wait_while(lock(queue), |queue| queue.jobs.is_empty() && !queue.closed);
        let job = waiting.unwrap_or_else(PoisonError::into_inner).jobs.pop_front();
        // The lock is let go by now: the others wait for the next one.
        let Some(job) = job else { return };
        let outcome = once(&job, LONGEST);
        let mut status = lock(status);
        status.failing = outcome.is_err();
        match outcome {
            Ok(()) => status.succeeded += 1,
            Err(why) => {
                tracing::warn!(why, "`on-escalation` failed");
                status.failed += 1;
                status.last_failure = Some(HookFailure { at: Timestamp::now(), why });
            }
        }
    }
}

fn once(job: &Job, longest: Duration) -> Result<(), String> {
    let Some((program, arguments)) = job.command.split_first() else { return Err("there is no command".into()) };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Whatever it starts is ended with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("`{program}` cannot be started: {error}"))?;
    let until = Instant::now() + longest;
    let said = listen(&mut child);
    // A pipe takes this much before anybody reads; a program that reads nothing is no failure.
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(&job.input);
    }
    let outcome = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break Ok(()),
            Ok(Some(status)) => break Err(format!("`{program}`: {status}")),
            Ok(None) if Instant::now() >= until => break Err(format!("`{program}` took longer than {longest:?}")),
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Err(error) => break Err(format!("`{program}`: {error}")),
        }
    };
    if let Ok(group) = i32::try_from(child.id()) {
        // All ended already is as good.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
    outcome.map_err(|why| match said.so_far() {
        said if !said.is_empty() => format!("{why}: {said}"),
        _ => why,
    })
}

/// What a process printed on standard error.
struct Said {
    text: Arc<Mutex<Vec<u8>>>,
    /// Nothing more comes.
    over: Receiver<()>,
}

impl Said {
    /// All of it, or what came until patience ended: what it started may hold its end open.
    fn so_far(&self) -> String {
        let _ = self.over.recv_timeout(FAREWELL);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

/// The beginning of what a process prints on standard error; the rest is read and thrown away.
fn listen(child: &mut Child) -> Said {
    let text = Arc::new(Mutex::new(Vec::new()));
    let (sender, over) = sync_channel(1);
    if let Some(mut output) = child.stderr.take() {
        let text = Arc::clone(&text);
        thread::spawn(move || {
            let mut buffer = [0; KEPT];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                let room = KEPT.saturating_sub(text.len());
                text.extend(buffer.iter().take(length.min(room)));
            }
            let _ = sender.send(());
        });
    }
    Said { text, over }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(script: &str) -> Job {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Job { account: "a".into(), command, input: b"{\"a\":1}\n".to_vec() }
    }

    #[test]
    fn an_account_that_floods_leaves_room_for_anothers_page() {
        let mut queue = Queue::default();
        let of = |account: &str| Job { account: account.into(), ..job("true") };
        let told = (0..100).filter(|_| queue.push(of("flooding"))).count();
        assert_eq!(told, WAITING_EACH);
        assert!(queue.push(of("another")));
        queue.jobs.pop_front();
        assert!(queue.push(of("flooding")), "a place that is free again is taken again");
        let many = (0..WAITING).filter(|number| queue.push(of(&number.to_string()))).count();
        assert_eq!(many, WAITING - WAITING_EACH - 1);
    }

    #[test]
    fn who_was_not_told_is_counted_by_account_and_shown_while_another_is_told() {
        let mut hook = Hook::default();
        let run = |hook: &mut Hook, account: &str| {
            hook.run(account, &job("read line; sleep 1").command, &serde_json::json!({}));
        };
        (0..30).for_each(|_| run(&mut hook, "flooding"));
        run(&mut hook, "another");
        let status = hook.status();
        assert!(status.dropped >= 30 - (WAITING_EACH + AT_ONCE) as u64, "{status:?}");
        assert_eq!(status.dropped_of, BTreeMap::from([("flooding".to_owned(), status.dropped)]));
        assert!(hook.drops() && !status.failing);
        let deadline = Instant::now() + LONGEST;
        while hook.status().succeeded + hook.status().dropped < 31 {
            assert!(Instant::now() < deadline, "{:?}", hook.status());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(hook.drops(), "that runs succeed makes nobody told who was not");
    }

    #[test]
    fn it_is_told_on_standard_input_and_its_exit_code_counts() {
        assert_eq!(once(&job("read line; test \"$line\" = '{\"a\":1}'"), LONGEST), Ok(()));
        assert_eq!(once(&job("exit 0"), LONGEST), Ok(()));
        let failed = once(&job("echo no pager >&2; exit 3"), LONGEST).unwrap_err();
        assert!(failed.contains("exit status: 3") && failed.contains("no pager"), "{failed}");
        let missing = Job { account: "a".into(), command: vec!["/nowhere".into()], input: Vec::new() };
        assert!(once(&missing, LONGEST).unwrap_err().contains("cannot be started"));
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_it_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 300 & echo $! > {}; wait", file.path().display());
        assert!(once(&job(&script), Duration::from_secs(2)).unwrap_err().contains("took longer"));
        let pid = std::fs::read_to_string(file.path()).unwrap();
        // It is killed by then, but may still have to die of it.
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        let deadline = Instant::now() + LONGEST;
        while !gone() {
            assert!(Instant::now() < deadline, "process {} lives on", pid.trim());
            thread::yield_now();
        }
    }

    #[test]
    fn output_without_end_blocks_nothing() {
        let failed = once(&job("yes >&2 & sleep 1; exit 1"), LONGEST).unwrap_err();
        assert!(failed.len() < 2 * KEPT + 100, "{}", failed.len());
    }
}
