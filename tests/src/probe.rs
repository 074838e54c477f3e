//! What a process in the host tried and what it saw: the answers of the `writ-probe` program.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::wait;

/// The probe program: named by `WRIT_PROBE`, or beside the test binary.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("WRIT_PROBE") {
        return path.into();
    }
    let this = std::env::current_exe().expect("cannot find the test binary");
    // target/PROFILE/deps/cases-HASH → target/PROFILE/writ-probe
    this.ancestors().nth(2).expect("the test binary lies in a target directory").join("writ-probe")
}

/// What one call of the probe saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// The name of the error, if the call failed.
    pub errno: Option<String>,
    /// Messages that the kernel took, where more than one was offered.
    pub sent: Option<u64>,
}

impl Attempt {
    /// Reads the probe's answer.
    #[track_caller]
    pub fn parse(line: &str) -> Self {
        let Ok(answer) = serde_json::from_str::<Value>(line) else { panic!("the probe answered `{line}`") };
        Self {
            errno: answer.get("errno").and_then(Value::as_str).map(str::to_owned),
            sent: answer.get("sent").and_then(Value::as_u64),
        }
    }

    /// Panics if the call failed.
    #[track_caller]
    pub fn assert_succeeded(&self) {
        assert_eq!(self.errno, None, "the call should have succeeded");
    }

    /// Panics unless the call failed with this error.
    #[track_caller]
    pub fn assert_failed(&self, errno: &str) {
        assert_eq!(self.errno.as_deref(), Some(errno), "the call should have failed with {errno}");
    }
}

/// A process that makes one attempt after another, as it is told.
#[derive(Debug)]
pub struct Batch {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Batch {
    /// Starts the prepared command.
    pub(crate) fn start(mut command: Command) -> Self {
        command.arg("batch").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("cannot start the probe");
        let stdin = child.stdin.take().expect("the probe's input is piped");
        let stdout = BufReader::new(child.stdout.take().expect("the probe's output is piped"));
        Self { child, stdin, stdout }
    }

    /// Makes one attempt.
    #[track_caller]
    pub fn attempt(&mut self, operation: &str, to: SocketAddr) -> Attempt {
        writeln!(self.stdin, "{operation} {to}").expect("the probe reads");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the probe answers");
        Attempt::parse(&line)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // It ends by itself when its input does; a test that fails does not wait for that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts of a prober: attempts that succeeded, and failures by error.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Attempts that succeeded.
    pub succeeded: u64,
    /// Attempts that failed, by the name of the error.
    pub failed: BTreeMap<String, u64>,
}

impl Counts {
    /// All attempts.
    pub fn attempts(&self) -> u64 {
        self.succeeded + self.failed.values().sum::<u64>()
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let answer: Value = serde_json::from_str(line).ok()?;
        let failed = answer.get("failed")?.as_object()?;
        Some(Self {
            succeeded: answer.get("succeeded")?.as_u64()?,
            failed: failed.iter().filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect(),
        })
    }
}

/// A process that makes the same attempt again and again until it is told to stop.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    /// Closing it tells the probe to stop.
    stdin: Option<ChildStdin>,
    counts: Arc<Mutex<Counts>>,
    reader: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts the prepared command.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("cannot start the probe");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("the probe's output is piped"));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let latest = Arc::clone(&counts);
        let reader = std::thread::spawn(move || {
            for counts in stdout.lines().map_while(Result::ok).filter_map(|line| Counts::parse(&line)) {
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = counts;
            }
        });
        Self { child, stdin, counts, reader: Some(reader) }
    }

    /// What it has counted, as of a moment ago.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has made this many attempts more than it has now.
    #[track_caller]
    pub fn wait_for_more(&self, attempts: u64) {
        let aim = self.counts().attempts() + attempts;
        wait::until("the prober makes progress", || (self.counts().attempts() >= aim).then_some(()));
    }

    /// Stops it; what it counted in all.
    #[track_caller]
    pub fn stop(mut self) -> Counts {
        drop(self.stdin.take());
        let status = wait::until("the prober stops", || self.child.try_wait().expect("cannot wait for the prober"));
        assert!(status.success(), "the prober failed: {status}");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the prober's output was read to its end");
        }
        self.counts()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // Ended already, unless the test is failing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
