//! A systemd journal of a test's own: a real `systemd-journald` in a mount namespace where nothing is the machine's.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::wait;

const JOURNALD: [&str; 2] = ["/lib/systemd/systemd-journald", "/usr/lib/systemd/systemd-journald"];

/// Its runtime directory and configuration are its own; its rate limit would drop what a test counts.
const START: &str = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/systemd && \
                     mkdir -p /run/systemd/journal /run/log/journal && \
                     printf '[Journal]\\nStorage=volatile\\nRateLimitBurst=0\\nRateLimitIntervalSec=0\\nRuntimeMaxUse=1G\\n\
                     ReadKMsg=no\\nAudit=no\\n' > /etc/systemd/journald.conf && exec \"$0\"";

/// The journal; it ends with the test.
#[derive(Debug)]
pub struct Journal {
    daemon: Child,
}

impl Journal {
    /// Starts it.
    #[track_caller]
    pub fn start() -> Self {
        let program = JOURNALD.iter().find(|path| std::path::Path::new(path).exists());
        let program = program.expect("no systemd-journald; `cargo xtask setup --test` gets it");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", START, program]);
        // SAFETY: between fork and exec this makes one system call; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let daemon = command.stdin(Stdio::null()).spawn().expect("cannot run `unshare`");
        let journal = Self { daemon };
        wait::until("the journal listens", || journal.socket().exists().then_some(()));
        journal
    }

    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run", self.daemon.id()))
    }

    /// Its socket, seen from outside of its namespace.
    pub fn socket(&self) -> PathBuf {
        self.root().join("systemd/journal/socket")
    }

    /// Every entry with this `FIELD=VALUE`, oldest first.
    #[track_caller]
    pub fn entries(&self, matching: &str) -> Vec<Value> {
        let mut command = Command::new("journalctl");
        command.arg("--directory").arg(self.root().join("log/journal"));
        // With --all no field is left out for its length.
        command.args(["--output=json", "--no-pager", "--all", "--quiet", matching]);
        let output = command.output().expect("cannot run `journalctl`");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(|line| serde_json::from_str(line).expect("journalctl prints JSON")).collect()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
