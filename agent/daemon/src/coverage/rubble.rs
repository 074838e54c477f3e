//! What a stage leaves behind if nobody tidies up: pins, cgroups and processes in them, found by their names and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::{self, CgroupMount};

/// Whatever a stage makes outside its directory is called this and the pid of who made it.
const PREFIX: &str = "writ-coverage-";
const BPFFS: &str = "/sys/fs/bpf";
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of this process's own.
pub(super) fn own_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// Where pins of this name lie.
pub(super) fn pins(name: &str) -> PathBuf {
    Path::new(BPFFS).join(name)
}

/// Removes what killed runs left, before anything new is made.
pub(super) fn sweep(mount: &CgroupMount) {
    for name in orphans(Path::new(BPFFS)) {
        let _ = kernel::uninstall(&pins(&name));
    }
    for name in orphans(&mount.root) {
        let _ = remove_cgroup(&mount.root.join(name));
    }
}

/// Names below a directory whose maker is no more.
fn orphans(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let gone = |name: &String| {
        name.strip_prefix(PREFIX)
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    names.filter(gone).collect()
}

/// Ends every process in a cgroup and those below it, and removes them. Only attempts can be in there.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove_cgroup(path: &Path) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let removed = remove_now(path);
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(()),
        }
    }
}

fn remove_now(path: &Path) -> io::Result<()> {
    for child in fs::read_dir(path)?.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_now(&child.path())?;
    }
    end_processes(path);
    fs::remove_dir(path)
}

/// Ends every process that is in a cgroup now.
pub(super) fn end_processes(path: &Path) {
    let pids = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
        // It may have ended since it was listed.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
