//! What the start of a program says about a workload: read from `/proc` while the process is there.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use procfs::process::{FDTarget, Process};
use writ_abi::ProcessEvent;

/// Programs that take commands.
const SHELLS: [&str; 10] = ["sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "fish", "csh", "tcsh"];

/// A program as it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sighting<'a> {
    /// The exec.
    pub(crate) event: &'a ProcessEvent,
    /// What runs.
    pub(crate) path: &'a str,
    /// Where.
    pub(crate) cgroup: Option<&'a str>,
}

impl Sighting<'_> {
    /// Whether what runs is in no directory: a memory file, or one that was removed. A file that an upgrade replaced as it
    /// was started has a successor of its name.
    pub(crate) fn deleted(&self) -> Option<String> {
        let path = self.path.strip_suffix(" (deleted)")?;
        let gone = path.starts_with("/memfd:") || !Path::new(path).exists();
        gone.then(|| format!("process {} runs {path}, which is in no directory", self.event.pid))
    }

    /// Whether it is a shell that a service started: its parent has TCP connections open or listens, or they are the
    /// shell's own standard streams. A shell of cron, of a wrapper or of a start script has no such parent.
    pub(crate) fn shell_of_a_service(&self) -> Option<String> {
        let name = self.path.trim_end_matches(" (deleted)").rsplit('/').next()?;
        if !SHELLS.contains(&name) {
            return None;
        }
        let (pid, parent) = (self.event.pid, self.event.parent);
        if has_tcp(pid, true) {
            return Some(format!("process {pid} is a shell ({}) on a network connection", self.path));
        }
        let parent_uid = Process::new(parent.cast_signed()).ok()?.uid().ok()?;
        let starter = fs::read_link(format!("/proc/{parent}/exe")).ok()?;
        let same = parent_uid == self.event.uid && has_tcp(parent, false);
        same.then(|| {
            format!(
                "process {parent} ({}) has connections open and started a shell, {pid} ({})",
                starter.display(),
                self.path
            )
        })
    }

    /// Whether somebody logged in as the very user it runs as, at a terminal or in a session of its own. cron sets a login
    /// uid too, and has neither.
    pub(crate) fn login(&self) -> Option<String> {
        let event = self.event;
        if event.loginuid == u32::MAX || event.loginuid != event.uid {
            return None;
        }
        let terminal = || Process::new(event.pid.cast_signed()).ok()?.stat().ok().filter(|stat| stat.tty_nr != 0);
        let in_session = self.cgroup.is_some_and(|path| path.contains("/session-") && path.starts_with("/user.slice/"));
        (in_session || terminal().is_some())
            .then(|| format!("process {} ({}) is part of a login as uid {}", event.pid, self.path, event.uid))
    }
}

/// How many of a process's descriptors are looked at: it chooses how many it has, and the engine waits meanwhile.
const MOST_DESCRIPTORS: usize = 4_096;

/// Whether a process holds a TCP socket, or has one as a standard stream.
fn has_tcp(pid: u32, standard: bool) -> bool {
    let Ok(process) = Process::new(pid.cast_signed()) else { return false };
    let Ok(descriptors) = process.fd() else { return false };
    let held: HashSet<u64> = descriptors
        .flatten()
        .take(MOST_DESCRIPTORS)
        .filter(|descriptor| !standard || descriptor.fd <= 2)
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    !held.is_empty()
        && process.tcp().into_iter().chain(process.tcp6()).flatten().any(|entry| held.contains(&entry.inode))
}
