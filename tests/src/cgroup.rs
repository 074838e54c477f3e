//! A cgroup of one's own below the cgroup2 mount, removed with everything in it when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or below it where version 1 is in use too.
pub fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("cannot read /proc/self/mountinfo");
    let mut found = mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        // Only a mount of the hierarchy's root: a bind mount of a part would hide where we are.
        let mut fields = mount.split(' ').skip(3);
        (file_system.starts_with("cgroup2 ") && fields.next() == Some("/")).then(|| fields.next()).flatten()
    });
    found.next().map(PathBuf::from).expect("cgroup2 is not mounted; these tests need it")
}

/// A cgroup made for one test.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below the mount.
    #[track_caller]
    pub fn create(name: &str) -> Self {
        let path = mount().join(name);
        if let Err(error) = fs::create_dir(&path) {
            panic!("cannot make the cgroup `{}`: {error}; these tests need root", path.display());
        }
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opened for a process to write itself into.
    pub fn procs(&self) -> File {
        File::options().write(true).open(self.path.join("cgroup.procs")).expect("cannot open cgroup.procs")
    }

    fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only processes that a test put here can be here. A zombie leaves when its parent has waited for it.
        let emptied = wait::within(wait::PATIENCE, || {
            for pid in self.pids() {
                // It may have ended since it was listed.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            fs::remove_dir(&self.path).ok()
        });
        if emptied.is_none() {
            eprintln!("cannot remove the cgroup `{}`", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found() {
        assert!(mount().join("cgroup.controllers").is_file());
    }
}
