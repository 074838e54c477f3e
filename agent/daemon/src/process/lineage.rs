//! A process and those it descends from, read once for all who ask about them.
//!
//! Read here and not by `procfs`, which opens a directory for each process and takes every line of `status` apart: this is on
//! the way from a signal to the kernel, once for each ancestor.

use std::collections::HashMap;
use std::fs;

use super::device::file_at;
use super::own_files::OwnFiles;

/// How many ancestors are looked at.
const MOST_ANCESTORS: usize = 64;
/// How often they are walked through if one of them ends meanwhile.
const MOST_WALKS: usize = 4;

/// One process of a lineage, as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ancestor {
    pub(crate) pid: u32,
    /// In clock ticks since boot; 0 if it could not be read.
    pub(crate) started: u64,
    /// `None` if they could not be read.
    pub(crate) credentials: Option<Credentials>,
    /// Device, as the kernel writes it, and inode of the executable; `None` of a kernel thread.
    pub(crate) executable: Option<(u32, u64)>,
}

/// As whom a process runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credentials {
    /// Real, effective and saved uid.
    pub(crate) uids: [u32; 3],
    /// Real, effective and saved gid.
    pub(crate) gids: [u32; 3],
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

/// The process itself, then its ancestors, as far as they are there. One that ends meanwhile leaves its children to another:
/// then all of it is read again.
pub(crate) fn lineage(pid: u32) -> Vec<Ancestor> {
    let mut found = walk(pid);
    for _ in 1..MOST_WALKS {
        // Without the process itself there is nothing to walk from.
        if found.len() == 1 || is_whole(&found) {
            break;
        }
        found = walk(pid);
    }
    found
}

/// Whether nobody is missing between the process and the first one there is: who cannot be seen could be anybody.
pub(crate) fn is_whole(lineage: &[Ancestor]) -> bool {
    lineage.len() < MOST_ANCESTORS && lineage.iter().all(|process| process.credentials.is_some())
}

fn walk(pid: u32) -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut pid = pid;
    while pid != 0 && found.len() < MOST_ANCESTORS {
        let (parent, credentials) = status_of(pid).unzip();
        let started = stat(pid).map(|(_, started)| started).unwrap_or_default();
        found.push(Ancestor { pid, started, credentials, executable: executable(pid) });
        pid = parent.unwrap_or_default();
    }
    found
}

/// The same process's lineage once more: itself as its files say it is now, and the ancestors that it had, unless its parent is
/// another one.
pub(crate) fn lineage_again(before: &[Ancestor], files: &OwnFiles) -> Vec<Ancestor> {
    let Some((own, ancestors)) = before.split_first() else { return Vec::new() };
    let (parent, credentials) = files.status().unzip();
    if parent.is_some_and(|parent| ancestors.first().map_or(0, |known| known.pid) != parent) {
        return lineage(own.pid);
    }
    let now = Ancestor { credentials, executable: executable(own.pid), ..*own };
    std::iter::once(now).chain(ancestors.iter().cloned()).collect()
}

fn executable(pid: u32) -> Option<(u32, u64)> {
    file_at(format!("/proc/{pid}/exe"))
}

/// A process's parent, and the file that it runs.
type Running = (u32, Option<(u32, u64)>);

/// Every process, as far as it can be read.
fn running() -> HashMap<u32, Running> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, (stat(pid)?.0, executable(pid))))).collect()
}

/// Which of these files each process descends from, or is itself: the one that it cannot shed, which came first.
pub(crate) fn origins(is_one: impl Fn((u32, u64)) -> bool) -> Vec<(u32, (u32, u64))> {
    let running = running();
    let first = |pid: &u32| {
        let walk = std::iter::successors(running.get(pid), |(parent, _)| running.get(parent));
        walk.take(MOST_ANCESTORS).filter_map(|(_, file)| file.filter(|file| is_one(*file))).last()
    };
    running.keys().filter_map(|pid| Some((*pid, first(pid)?))).collect()
}

/// A process's parent, and as whom it runs; `None` if it is gone.
fn status_of(pid: u32) -> Option<(u32, Credentials)> {
    OwnFiles::of_whoever_has(pid).status()
}

/// proc_pid_status(5): a line for each, in this order; what is in a name is escaped.
pub(super) fn status_in(text: &str) -> Option<(u32, Credentials)> {
    let mut lines = text.lines();
    let mut numbers = |name: &str| {
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_ascii_whitespace().map_while(|number| number.parse::<u32>().ok()))
    };
    let parent = numbers("PPid")?.next()?;
    let mut three = |name: &str| {
        let mut numbers = numbers(name)?;
        Some([numbers.next()?, numbers.next()?, numbers.next()?])
    };
    let (uids, gids) = (three("Uid")?, three("Gid")?);
    Some((parent, Credentials { uids, gids, groups: numbers("Groups")?.collect() }))
}

/// Parent and start, in clock ticks since boot.
pub(super) fn stat(pid: u32) -> Option<(u32, u64)> {
    stat_in(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// proc_pid_stat(5): the name, in parentheses, may hold anything; parent is field 4, start field 22.
fn stat_in(text: &str) -> Option<(u32, u64)> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    Some((parent, fields.nth(17)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_procfs_reads() {
        let own = std::process::id();
        let known = procfs::process::Process::myself().unwrap();
        let (status, stat) = (known.status().unwrap(), known.stat().unwrap());
        let (parent, read) = status_of(own).unwrap();
        assert_eq!(parent, stat.ppid.unsigned_abs());
        assert_eq!(read.uids, [status.ruid, status.euid, status.suid]);
        assert_eq!(read.gids, [status.rgid, status.egid, status.sgid]);
        assert_eq!(read.groups, status.groups);
        let lineage = lineage(own);
        let (first, parent) = (lineage.first().unwrap(), lineage.get(1).unwrap());
        assert_eq!((first.pid, first.started), (own, stat.starttime));
        assert_eq!(first.credentials.as_ref(), Some(&read));
        assert!(first.executable.is_some());
        assert_eq!(parent.pid, stat.ppid.unsigned_abs());
        assert_eq!(lineage.last().unwrap().pid, 1, "init, or what is it here");
    }

    #[test]
    fn a_process_is_read_again_and_its_ancestors_only_if_it_has_another_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let first = lineage(child.id());
        assert!(first.len() > 2 && first.iter().all(|ancestor| ancestor.started != 0 || ancestor.pid == 1));
        assert!(is_whole(&first));
        let files = OwnFiles::open(child.id());
        assert_eq!(lineage_again(&first, &files), first);
        let mut unseen = first.clone();
        unseen[1].credentials = None;
        assert!(!is_whole(&unseen), "one of them could not be read");
        assert!(!is_whole(&vec![first[0].clone(); MOST_ANCESTORS]), "there may be more");
        let with = |own: Credentials, parent: u32, ancestors: Credentials| {
            let mut before = first.clone();
            before[0].credentials = Some(own);
            before[1].pid = parent;
            before[1].credentials = Some(ancestors);
            before
        };
        let (was, known) = (Credentials::default(), Credentials { uids: [7, 7, 7], ..Credentials::default() });
        let again = lineage_again(&with(was.clone(), first[1].pid, known.clone()), &files);
        assert_eq!(again[0], first[0], "what it is now");
        assert_eq!(again[1].credentials, Some(known.clone()), "as it was");
        assert_eq!(lineage_again(&with(was, 0, known), &files), first, "another parent: all of it");
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!(lineage_again(&first, &files)[0].credentials, None, "it is gone");
        assert_eq!(lineage_again(&[], &files), []);
    }

    #[test]
    fn who_descends_from_a_file_is_found_and_the_first_one_counts() {
        let own = file_at("/proc/self/exe").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let parent = lineage(std::process::id()).get(1).and_then(|parent| parent.executable);
        let found: HashMap<_, _> = origins(|file| file == own).into_iter().collect();
        assert_eq!(found.get(&child.id()), Some(&own), "though it runs something else");
        assert_eq!(found.get(&std::process::id()), Some(&own));
        assert_eq!(found.get(&1), None);
        let both: HashMap<_, _> = origins(|file| file == own || Some(file) == parent).into_iter().collect();
        assert_eq!(both.get(&child.id()), parent.or(Some(own)).as_ref());
        child.kill().and_then(|()| child.wait()).unwrap();
    }

    #[test]
    fn a_name_is_no_part_of_what_follows_it() {
        let line = "7 (a) b 9 (c)) S 4 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 5150 1 2";
        assert_eq!(stat_in(line), Some((4, 5150)));
        assert_eq!(stat_in("7 (a"), None);
        let text =
            "Name:\tPPid: 9\nState:\tS\nPPid:\t8\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNStgid:\t7\n";
        let credentials = Credentials { uids: [1, 2, 3], gids: [5, 6, 7], groups: vec![9, 10] };
        assert_eq!(status_in(text), Some((8, credentials)));
        assert_eq!(status_in("PPid:\t8\nUid:\t1\n"), None);
        assert_eq!(status_in("Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n"), None);
    }
}
