//! Clears away what a killed test run left in the kernel: what is pinned outlives everything but an `uninstall`.

use std::fs;
use std::path::Path;
use std::sync::Once;

use crate::cgroup;

/// What the harness makes is called `writ-test-PID-NUMBER`.
pub(crate) const PREFIX: &str = "writ-test-";
/// Where the kernel's users expect the bpf file system.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

static SWEPT: Once = Once::new();

/// Removes pins and cgroups of test runs that are no more; once in a process.
pub(crate) fn sweep() {
    SWEPT.call_once(|| {
        // Not being able to is reported by whoever needs the name.
        for_each_orphan(Path::new(BPFFS), |pins| drop(fs::remove_dir_all(pins)));
        for_each_orphan(&cgroup::mount(), |group| drop(fs::remove_dir(group)));
    });
}

fn for_each_orphan(directory: &Path, remove: impl Fn(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn only_what_a_dead_run_made_is_an_orphan() {
        let directory = tempfile::tempdir().unwrap();
        let own = format!("{PREFIX}{}-0", std::process::id());
        // No process has the highest number there is.
        for name in [&own, "writ-test-4294967295-3", "writ-test-abc", "writ", "other-4294967295-0"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let found = RefCell::new(Vec::new());
        for_each_orphan(directory.path(), |path| {
            found.borrow_mut().push(path.file_name().unwrap().to_string_lossy().into_owned());
        });
        assert_eq!(found.into_inner(), ["writ-test-4294967295-3"]);
    }
}
