//! What the demo changes on this machine: a system user, a cgroup, a directory, pins. All have fixed names, so that a demo
//! also clears away what an earlier one could not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::process::{command, read};
use crate::workspace;

/// The system user that plays the service account.
pub(super) const USER: &str = "writ-demo";
const CGROUP: &str = "writ-demo";
/// Only root can write to its parent, so nobody can have prepared it.
pub(super) const DIRECTORY: &str = "/run/writ-demo";
const BPFFS: &str = "/sys/fs/bpf";
pub(super) const PINS: &str = "/sys/fs/bpf/writ-demo";
/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Where the scenery is, made or not.
pub(super) struct Scenery {
    pub(super) writ: PathBuf,
    pub(super) cgroup: PathBuf,
}

impl Scenery {
    pub(super) fn new(release: bool) -> Result<Self> {
        Ok(Self { writ: workspace::writ(release), cgroup: cgroup_mount()?.join(CGROUP) })
    }

    /// A `writ` command on the demo's configuration.
    pub(super) fn writ(&self, arguments: &[&str]) -> Command {
        let mut writ = command(&self.writ);
        writ.arg("--config-dir").arg(config_directory()).args(arguments).stdin(Stdio::null());
        writ
    }

    /// Makes it. What is mounted for it stays mounted: a later writ would mount it again.
    pub(super) fn make(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        if !mounts.lines().any(|line| line.split(' ').nth(4) == Some(BPFFS)) {
            read(command("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
        }
        let useradd = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER];
        read(command("useradd").args(useradd))?;
        for directory in [Path::new(DIRECTORY), &self.cgroup] {
            fs::create_dir(directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
        }
        Ok(())
    }

    /// Undoes everything, as far as it goes; the first thing that failed is the error. What is not there is as good as gone.
    pub(super) fn clear(&self) -> Result<()> {
        let mut results = Vec::new();
        if config_directory().join("writ.toml").is_file() {
            results.push(read(&mut self.writ(&["uninstall"])).map(drop));
        }
        results.push(remove_directory(Path::new(PINS)));
        results.push(self.remove_cgroup());
        if matches!(User::from_name(USER), Ok(Some(_))) {
            results.push(read(command("userdel").arg(USER)).map(drop));
        }
        results.push(remove_directory(Path::new(DIRECTORY)));
        results.into_iter().collect()
    }

    fn remove_cgroup(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.cgroup.is_dir() {
            let pids = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                // Only the demo's own programs can be in its cgroup; one may have ended since.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match fs::remove_dir(&self.cgroup) {
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("cannot remove `{}`", self.cgroup.display()));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(())
    }
}

pub(super) fn config_directory() -> PathBuf {
    Path::new(DIRECTORY).join("etc")
}

fn remove_directory(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or below it where version 1 is in use too.
fn cgroup_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut found = mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        (file_system.starts_with("cgroup2 ") && fields.next() == Some("/")).then(|| fields.next()).flatten()
    });
    found.next().map(PathBuf::from).context("cgroup2 is not mounted; writ needs it")
}
