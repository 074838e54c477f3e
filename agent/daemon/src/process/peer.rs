//! The process at the other end of the socket, as a record names one: read from `/proc` while it waits for its answer.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use writ_core::record::{Cgroup, Process, device_name};

use super::device::file_at;
use super::own_files::OwnFiles;
use super::table::{parents, start_ticks_of, unit_of};

/// `/proc` counts in hundredths of a second, records in nanoseconds.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// The process as far as it can be learnt; `cgroups` is where the cgroup2 mount is.
pub(crate) fn describe(pid: u32, cgroups: &Path) -> Process {
    let Ok(known) = i32::try_from(pid).map_err(drop).and_then(|pid| procfs::process::Process::new(pid).map_err(drop))
    else {
        return Process { pid, tid: pid, ..Process::default() };
    };
    let stat = known.stat().ok();
    let status = known.status().ok();
    let file = file_at(format!("/proc/{pid}/exe"));
    let path = super::cgroup_of(pid);
    let on_disk = path.as_deref().and_then(|path| fs::metadata(cgroups.join(path.trim_start_matches('/'))).ok());
    Process {
        pid,
        tid: pid,
        start_time: start_ticks_of(pid.cast_signed()).unwrap_or(0).saturating_mul(NANOSECONDS_PER_TICK),
        executable: executable_of(pid),
        device: file.map_or_else(String::new, |(device, _)| device_name(device)),
        inode: file.map_or(0, |(_, inode)| inode),
        parents: stat.as_ref().map(|stat| parents(stat.ppid.unsigned_abs())).unwrap_or_default(),
        unit: path.as_deref().and_then(unit_of),
        cgroup: Cgroup { id: on_disk.map_or(0, |found| found.ino()), path },
        uid: status.as_ref().map_or(u32::MAX, |status| status.ruid),
        euid: status.as_ref().map_or(u32::MAX, |status| status.euid),
        loginuid: loginuid_of(pid),
        comm: stat.map(|stat| stat.comm).unwrap_or_default(),
    }
}

/// As whom a process logged in; `None` if nobody did, or if it is gone.
pub(crate) fn loginuid_of(pid: u32) -> Option<u32> {
    OwnFiles::of_whoever_has(pid).loginuid()
}

/// A number; the highest number is nobody's.
pub(super) fn loginuid_in(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|loginuid| *loginuid != u32::MAX)
}

/// The path of what a process runs; `None` of a kernel thread, or if it is gone.
pub(crate) fn executable_of(pid: u32) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned())
}
