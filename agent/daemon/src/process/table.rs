//! What is known of processes, keyed so that a reused pid is never mistaken for the process before it.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use writ_abi::{DecisionEvent, PATH_LEN, ProcessEvent};
use writ_core::record::Parent;

use super::lineage::{Ancestor, stat};
use super::own_files::OwnFiles;
use crate::kernel::CgroupMount;

/// How many executables and processes are remembered; the oldest go first.
const MOST: usize = 16_384;
/// `/proc` counts in hundredths of a second, the kernel in nanoseconds.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
/// Looking through the hierarchy of cgroups takes at most one part of so many of the time.
const LOOK_SHARE: u32 = 20;
/// How many ancestors a record names.
const PARENTS: usize = 4;

/// Names for one attempt, as far as they could be learnt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Named {
    /// Path of the executable.
    pub executable: Option<String>,
    /// Ancestors, nearest first.
    pub parents: Vec<Parent>,
    /// Path of the cgroup below the cgroup2 mount.
    pub cgroup: Option<String>,
    /// System unit.
    pub unit: Option<String>,
}

/// A bounded map that forgets its oldest entries.
#[derive(Debug)]
struct Memory<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + std::hash::Hash, V> Memory<K, V> {
    fn new() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }

    fn insert(&mut self, key: K, value: V) {
        if self.entries.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }
}

/// Everything remembered.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    /// Path by device (kernel encoding) and inode.
    executables: Memory<(u32, u64), String>,
    /// Executable by process: pid and start time.
    processes: Memory<(u32, u64), (u32, u64)>,
    /// Path by cgroup id.
    cgroups: Memory<u64, String>,
    /// The uid that a process of an account was started with: a set-user-id program has it when it starts, and sheds it.
    started_as: Memory<(u32, u64), u32>,
    /// Ancestors by process: pid and start time. A process that loses its parent keeps the one it was started by.
    parents: Memory<(u32, u64), Vec<Parent>>,
    /// Cgroups that were looked for and are not there.
    gone: Memory<u64, ()>,
    /// When the hierarchy may be looked through again.
    look_again: Option<Instant>,
    mount: CgroupMount,
    /// How often an executable that was known was named anew.
    renamed: u64,
}

impl ProcessTable {
    /// An empty table for processes below this mount.
    pub(crate) fn new(mount: CgroupMount) -> Self {
        Self {
            executables: Memory::new(),
            processes: Memory::new(),
            cgroups: Memory::new(),
            started_as: Memory::new(),
            parents: Memory::new(),
            gone: Memory::new(),
            look_again: None,
            mount,
            renamed: 0,
        }
    }

    /// Changes whenever what was known of some process may be called otherwise now.
    pub(crate) const fn renamed(&self) -> u64 {
        self.renamed
    }

    /// Takes in an exec.
    pub(crate) fn exec(&mut self, event: &ProcessEvent) {
        let file = (event.executable_device, event.executable_inode);
        self.processes.insert((event.pid, event.start_time), file);
        if event.uid != 0 {
            self.started_as.insert((event.pid, event.start_time / NANOSECONDS_PER_TICK), event.uid);
        }
        let length = (event.path_len as usize).min(PATH_LEN);
        let given = String::from_utf8_lossy(event.path.get(..length).unwrap_or(&[])).into_owned();
        // The path as given may be relative, a link, or cut: what the process itself says is better, while it lives, and
        // so is where the path leads. One file has one name, however it is started: approvals are for a path.
        let path = running(event.pid, event.start_time, file).or_else(|| resolved(&given, file));
        if let Some(path) = path {
            let known = self.executables.entries.get(&file);
            self.renamed += u64::from(known.is_some_and(|known| *known != path));
            self.executables.insert(file, path);
        } else if given.starts_with('/') && !self.executables.entries.contains_key(&file) {
            self.executables.insert(file, given);
        }
    }

    /// Names for an attempt.
    pub(crate) fn name(&mut self, event: &DecisionEvent) -> Named {
        let mut file = (event.executable_device, event.executable_inode);
        if file.1 == 0 {
            file = self.processes.entries.get(&(event.pid, event.start_time)).copied().unwrap_or(file);
        }
        let executable = match self.executables.entries.get(&file) {
            Some(path) => Some(path.clone()),
            None => {
                let found = running(event.pid, event.start_time, file);
                if let Some(path) = &found {
                    self.executables.insert(file, path.clone());
                }
                found
            }
        };
        let cgroup = self.cgroup(event.cgroup, event.pid);
        let unit = cgroup.as_deref().and_then(unit_of);
        let process = (event.pid, event.start_time);
        let parents = match self.parents.entries.get(&process) {
            Some(known) => known.clone(),
            None => {
                let found = parents(event.parent);
                self.parents.insert(process, found.clone());
                found
            }
        };
        Named { executable, parents, cgroup, unit }
    }

    /// Every uid but root's that a process or an ancestor of it has or, as far as was seen, was started with. Who descends
    /// from root says nothing by it: everybody does.
    pub(crate) fn uids_of(&self, lineage: &[Ancestor]) -> Vec<u32> {
        let mut found = Vec::new();
        for process in lineage.iter().take_while(|process| process.pid > 1) {
            found.extend(process.credentials.iter().flat_map(|credentials| credentials.uids));
            found.extend(self.started_as.entries.get(&(process.pid, process.started)));
        }
        found.retain(|uid| *uid != 0);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Path of an executable, if it is known.
    pub(crate) fn path_of(&self, file: (u32, u64)) -> Option<String> {
        self.executables.entries.get(&file).cloned()
    }

    /// Path of the cgroup of a process that was started.
    pub(crate) fn cgroup_of_exec(&mut self, id: u64, pid: u32) -> Option<String> {
        self.cgroup(id, pid)
    }

    /// Path of a cgroup: as remembered, as the process says, or by looking for its id.
    fn cgroup(&mut self, id: u64, pid: u32) -> Option<String> {
        if let Some(path) = self.cgroups.entries.get(&id) {
            return Some(path.clone());
        }
        if let Some(path) = cgroup_of(pid) {
            let on_disk = self.mount.root.join(path.trim_start_matches('/'));
            if fs::metadata(&on_disk).is_ok_and(|found| found.ino() == id) {
                self.cgroups.insert(id, path.clone());
                return Some(path);
            }
        }
        // Ids are not given again: one that was not found is gone for good. Whoever makes and removes cgroups without end has
        // the hierarchy looked through for a small share of the time, and attempts from there go without a path meanwhile.
        if self.gone.entries.contains_key(&id) || self.look_again.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        let began = Instant::now();
        for (known, path) in crate::kernel::cgroup_paths(&self.mount) {
            self.cgroups.insert(known, path);
        }
        self.look_again = began.elapsed().checked_mul(LOOK_SHARE).and_then(|rest| Instant::now().checked_add(rest));
        let found = self.cgroups.entries.get(&id).cloned();
        if found.is_none() {
            self.gone.insert(id, ());
        }
        found
    }
}

/// The executable of a process that still runs it; `None` if it is gone, or its pid is somebody else's by now.
fn running(pid: u32, start_time: u64, file: (u32, u64)) -> Option<String> {
    if !started_at(pid, start_time) {
        return None;
    }
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?.to_string_lossy().into_owned();
    let found = fs::metadata(&link).ok()?;
    (file.1 == 0 || found.ino() == file.1).then_some(path)
}

/// Where a path leads, if that is this file.
fn resolved(given: &str, file: (u32, u64)) -> Option<String> {
    if !given.starts_with('/') {
        return None;
    }
    let path = fs::canonicalize(given).ok()?;
    let found = fs::metadata(&path).ok()?;
    (found.ino() == file.1).then(|| path.to_string_lossy().into_owned())
}

/// Whether a process has this start time: `/proc` counts in hundredths of a second, the kernel in nanoseconds.
pub(crate) fn started_at(pid: u32, start_time: u64) -> bool {
    start_ticks(pid).is_some_and(|ticks| ticks == start_time / NANOSECONDS_PER_TICK)
}

fn start_ticks(pid: u32) -> Option<u64> {
    start_ticks_of(i32::try_from(pid).ok()?)
}

/// When a process started, in clock ticks since boot.
pub(crate) fn start_ticks_of(pid: i32) -> Option<u64> {
    stat(u32::try_from(pid).ok()?).map(|(_, started)| started)
}

/// Path of a process's cgroup in the unified hierarchy.
pub(crate) fn cgroup_of(pid: u32) -> Option<String> {
    OwnFiles::of_whoever_has(pid).cgroup()
}

/// cgroups(7): the unified hierarchy is number 0.
pub(super) fn cgroup_in(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.trim_end_matches(" (deleted)").to_owned())
}

/// The system unit a cgroup belongs to: the first component below slices that is not a slice.
pub(crate) fn unit_of(cgroup: &str) -> Option<String> {
    let unit = cgroup.split('/').filter(|part| !part.is_empty()).find(|part| !part.ends_with(".slice"))?;
    let known = [".service", ".scope", ".socket", ".mount", ".swap"];
    known.iter().any(|suffix| unit.ends_with(suffix)).then(|| unit.to_owned())
}

pub(super) fn parents(first: u32) -> Vec<Parent> {
    let mut found = Vec::new();
    let mut pid = first;
    while pid > 0 && found.len() < PARENTS {
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned());
        found.push(Parent { pid, executable });
        pid = stat(pid).map_or(0, |(parent, _)| parent);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_only_below_slices() {
        assert_eq!(unit_of("/system.slice/a.service/b"), Some("a.service".into()));
        assert_eq!(
            unit_of("/user.slice/user-0.slice/user@0.service/app.slice/a.service"),
            Some("user@0.service".into())
        );
        assert_eq!(unit_of("/docker/abc"), None);
        assert_eq!(unit_of("/system.slice"), None);
    }

    #[test]
    fn an_executable_started_by_a_link_is_named_by_its_own_path() {
        let directory = tempfile::tempdir().unwrap();
        let program = fs::canonicalize(directory.path()).unwrap().join("program");
        fs::write(&program, "").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let file = (0, fs::metadata(&program).unwrap().ino());
        assert_eq!(resolved(&link.to_string_lossy(), file), Some(program.to_string_lossy().into_owned()));
        assert_eq!(resolved(&link.to_string_lossy(), (0, file.1 + 1)), None, "the link leads elsewhere by now");
        assert_eq!(resolved("link", file), None, "a relative path is relative to somebody else");
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let pid = std::process::id();
        let ticks = start_ticks(pid).unwrap();
        assert!(started_at(pid, ticks * 10_000_000 + 5));
        assert!(!started_at(pid, (ticks + 1) * 10_000_000));
        assert!(running(pid, ticks * 10_000_000, (0, 0)).is_some());
    }
}
