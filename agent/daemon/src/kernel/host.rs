//! Facts of this host that the programs need: the cgroup hierarchy, the clock they count by, the initial user namespace.

use std::fs;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

/// The cgroup that is judged, and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CgroupMount {
    /// The root of the cgroup2 mount.
    pub root: PathBuf,
    /// The cgroup whose processes are judged.
    pub attached: PathBuf,
    /// Its depth below the root.
    pub level: u32,
    /// Its id.
    pub id: u64,
}

impl CgroupMount {
    /// Finds the cgroup2 mount and the configured cgroup in it; `None` means the root.
    ///
    /// # Errors
    /// No cgroup2 file system is mounted, or the cgroup is not in it.
    pub(crate) fn find(configured: Option<&str>) -> io::Result<Self> {
        let attached = match configured {
            Some(path) => PathBuf::from(path),
            None => mount_point()?,
        };
        let is_cgroup2 = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let attached = fs::canonicalize(&attached)
            .map_err(|error| io::Error::new(error.kind(), format!("cgroup `{}`: {error}", attached.display())))?;
        if !is_cgroup2(&attached) {
            return Err(io::Error::other(format!("`{}` is not on a cgroup2 file system", attached.display())));
        }
        let mut root = attached.clone();
        let mut level = 0;
        while let Some(parent) = root.parent().filter(|parent| is_cgroup2(parent)) {
            root = parent.to_owned();
            level += 1;
        }
        Ok(Self { id: cgroup_id(&attached)?, root, attached, level })
    }

    /// Whether only part of the host is judged.
    pub(crate) fn partial(&self) -> bool {
        self.level > 0
    }

    /// Path of a cgroup below the root of the hierarchy, as the kernel and `/proc/PID/cgroup` write it.
    pub(crate) fn relative(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(rest) => format!("/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }
}

fn mount_point() -> io::Result<PathBuf> {
    for line in io::BufReader::new(fs::File::open("/proc/self/mountinfo")?).lines() {
        let line = line?;
        // "36 35 98:0 /root /point options - type source super"
        let Some((front, back)) = line.split_once(" - ") else { continue };
        if back.starts_with("cgroup2 ")
            && let Some(point) = front.split(' ').nth(4)
        {
            return Ok(PathBuf::from(point));
        }
    }
    Err(io::Error::other("no cgroup2 file system is mounted"))
}

/// Id of a cgroup: the inode of its directory (kernfs, Linux 5.5 and later on 64-bit hosts).
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn cgroup_id(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// Every cgroup of the hierarchy, parents before their children: id and path below the root.
pub(crate) fn cgroup_paths(mount: &CgroupMount) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let mut pending = vec![mount.root.clone()];
    while let Some(path) = pending.pop() {
        // A cgroup that goes away meanwhile needs no class.
        let Ok(id) = cgroup_id(&path) else { continue };
        found.push((id, mount.relative(&path)));
        let Ok(children) = fs::read_dir(&path) else { continue };
        pending.extend(
            children
                .flatten()
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|child| child.path()),
        );
    }
    found
}

/// The time the programs count by: nanoseconds since boot, suspend included.
pub(crate) fn boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs())
}

/// A descriptor that becomes readable when the wall clock is set, or the host wakes from suspend.
#[derive(Debug)]
pub(crate) struct ClockSet(TimerFd);

impl ClockSet {
    /// Begins to watch.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn watch() -> io::Result<Self> {
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let watch = Self(timer);
        watch.arm()?;
        Ok(watch)
    }

    fn arm(&self) -> io::Result<()> {
        // It is not to run out: only that it is cancelled tells something (timerfd_create(2)).
        const NEVER: i64 = i64::MAX / 1_000_000_000 - 1;
        let at = Expiration::OneShot(TimeSpec::new(NEVER, 0));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.0.set(at, flags)?)
    }

    /// Whether the clock was set since it was last asked; watches on.
    pub(crate) fn was_set(&self) -> bool {
        let set = self.0.wait() == Err(Errno::ECANCELED);
        if set && let Err(error) = self.arm() {
            tracing::error!(%error, "the wall clock is no longer watched; it is compared every second");
        }
        set
    }

    /// A descriptor of it, to be waited for.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn readiness(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

/// Owners of a process's user namespace and of those around it, up to ours, which has no owner that counts: a user
/// namespace changes every uid. As many as could be learnt.
pub(crate) fn user_namespace_owners(pid: u32) -> Vec<u32> {
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    /// The kernel nests no deeper (user_namespaces(7)).
    const DEEPEST: usize = 32;
    let mut owners = Vec::new();
    let Ok(own) = fs::metadata("/proc/self/ns/user").map(|found| found.ino()) else { return owners };
    let Ok(mut namespace) = fs::File::open(format!("/proc/{pid}/ns/user")) else { return owners };
    for _ in 0..DEEPEST {
        if namespace.metadata().is_ok_and(|found| found.ino() == own) {
            break;
        }
        let mut owner = 0u32;
        // SAFETY: the kernel writes one uid_t.
        if unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut owner) } == 0 {
            owners.push(owner);
        }
        // SAFETY: no argument; the answer is a descriptor.
        let parent = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
        if parent < 0 {
            break;
        }
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        namespace = unsafe { fs::File::from_raw_fd(parent) };
    }
    owners
}

/// Names a copy of the symbol table's one line, for a daemon that may not read the table itself.
const SYMBOLS: &str = "WRIT_KALLSYMS";

/// Address of the kernel's `init_user_ns`; 0 where the kernel does not tell, which costs a read per judgement.
pub(super) fn init_user_ns() -> u64 {
    let copy = std::env::var_os(SYMBOLS).map_or_else(PathBuf::new, PathBuf::from);
    [copy.as_path(), Path::new("/proc/kallsyms")].into_iter().find_map(address_in).unwrap_or(0)
}

fn address_in(symbols: &Path) -> Option<u64> {
    let mut table = io::BufReader::new(fs::File::open(symbols).ok()?);
    let mut line = Vec::new();
    // Two hundred thousand lines, of which one is wanted: nothing is made of the others.
    while table.read_until(b'\n', &mut line).ok()? > 0 {
        if line.trim_ascii_end().ends_with(b" init_user_ns") {
            let address = std::str::from_utf8(&line).ok()?.split_ascii_whitespace().next()?;
            // Zero is what the table says to those who may not know.
            return u64::from_str_radix(address, 16).ok().filter(|address| *address != 0);
        }
        line.clear();
    }
    None
}

/// How many processes there can be at once, so that each can have its origin remembered whoever makes how many. Bounded,
/// because a hash map's buckets are there from the start: 16 MiB at most.
pub(super) fn most_processes() -> u32 {
    const LEAST: u32 = 65_536;
    const MOST: u32 = 1 << 20;
    let limit = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u32>().ok();
    let limits = [limit("pid_max"), limit("threads-max")];
    limits.into_iter().flatten().min().unwrap_or(MOST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_only_to_those_who_may_know_it() {
        let symbols = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(symbols.path(), text).unwrap();
        write("ffffffff81000000 T _text\nffffffff829531a0 D init_user_ns\n");
        assert_eq!(address_in(symbols.path()), Some(0xffff_ffff_8295_31a0));
        write("0000000000000000 T _text\n0000000000000000 D init_user_ns\n");
        assert_eq!(address_in(symbols.path()), None);
        assert_eq!(address_in(Path::new("/nonexistent")), None);
    }
}
