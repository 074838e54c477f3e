//! Which file a path leads to as the BPF programs tell files apart: by the device of the super block, and the inode.
//!
//! `stat` says that device, except on file systems that show another one for each subvolume (btrfs) or layer (some
//! overlays). What those show has no driver (major number 0), and the list of mounts has the super block's: so only for
//! files that show such a device is it asked on which mount they are.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long what is known of a device is not asked for again: lists of mounts can be long. No longer, because a
/// number that was given back is soon another file system's.
const AGAIN: Duration = Duration::from_secs(5);
/// For so long what was found holds where asking again leads nowhere: a process can move to a mount namespace that does
/// not have its executable's mount. What is configured is asked for by its path, and so found anew all the time.
const KEPT: Duration = Duration::from_secs(60);
/// How many devices are remembered.
const MOST: usize = 4_096;
/// How much of a process's list of mounts is read: whoever may make a user namespace can make it long.
const LONGEST: u64 = 1 << 20;
/// The daemon's own mounts.
const OURS: &str = "/proc/self/mountinfo";

static DEVICES: Mutex<Devices> = Mutex::new(Devices(BTreeMap::new()));

/// The file that a path leads to, links followed: device of its super block, as the kernel writes it, and inode. `None`
/// if there is none, or it may not be looked at.
pub(crate) fn file_at(path: impl AsRef<Path>) -> Option<(u32, u64)> {
    let path = path.as_ref();
    let found = fs::metadata(path).ok()?;
    let shown = found.dev();
    let device = if libc::major(shown) == 0 { anonymous(path, shown) } else { encoded(shown) };
    Some((device, found.ino()))
}

/// Device of the super block where the file shows this one, which no driver has.
fn anonymous(path: &Path, shown: u64) -> u32 {
    let theirs = mounts_beside(path);
    let known = devices().known(shown, theirs.is_some(), Instant::now());
    // Nobody waits for the lock while a file system is asked.
    known.unwrap_or_else(|| {
        let found = superblock(path, shown, theirs.as_deref());
        devices().learn(shown, found, Instant::now())
    })
}

fn devices() -> MutexGuard<'static, Devices> {
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mounts of the process whose executable this path is: services, containers and the daemon each have their own.
fn mounts_beside(path: &Path) -> Option<PathBuf> {
    let of_process = path.starts_with("/proc") && path.file_name().is_some_and(|name| name == "exe");
    of_process.then(|| path.with_file_name("mountinfo"))
}

/// What the list of mounts says of the file's mount; `None` if it is not there.
fn superblock(path: &Path, shown: u64, theirs: Option<&Path>) -> Option<u32> {
    // Open until the list is read: a mount in use does not give its number to another. Only the place is opened, not
    // the file: that needs no right to read it, and no device or pipe notices.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    if file.metadata().ok()?.dev() != shown {
        return None; // It was replaced meanwhile.
    }
    let mount = mount_in(&fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?)?;
    let (list, longest) = theirs.map_or((Path::new(OURS), u64::MAX), |theirs| (theirs, LONGEST));
    let mut mounts = Vec::new();
    File::open(list).ok()?.take(longest).read_to_end(&mut mounts).ok()?;
    device_in(&String::from_utf8_lossy(&mounts), mount)
}

/// proc_pid_fdinfo(5): the mount that an open file is on.
fn mount_in(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// proc_pid_mountinfo(5): the mount's number, its parent's, then `major:minor` of its super block.
fn device_in(mountinfo: &str, mount: u64) -> Option<u32> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next()?.parse::<u64>().ok()? != mount {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        fields.next()?; // Without it the list was cut off, perhaps within the number.
        Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
    })
}

/// The kernel's own encoding of a device number: `MKDEV` of include/linux/kdev_t.h.
fn encoded(device: u64) -> u32 {
    libc::major(device) << 20 | libc::minor(device)
}

/// Devices of super blocks, by the device that their files show.
#[derive(Debug)]
struct Devices(BTreeMap<u64, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    device: u32,
    /// When a mount said so; `None` if none did, and the device is the one shown.
    found: Option<Instant>,
    /// When it was asked for last.
    asked: Instant,
}

impl Devices {
    /// What need not be asked for again. That a process's mounts do not have a file says nothing of those of others,
    /// and is taken as an answer for processes only: what is configured is asked for until it is found.
    fn known(&self, shown: u64, of_process: bool, now: Instant) -> Option<u32> {
        let known = self.0.get(&shown)?;
        let at = if of_process { Some(known.asked) } else { known.found };
        at.is_some_and(|at| now.duration_since(at) < AGAIN).then_some(known.device)
    }

    /// Takes in what asking gave, and says what holds.
    fn learn(&mut self, shown: u64, found: Option<u32>, now: Instant) -> u32 {
        let holds = |known: &Known| known.found.is_some_and(|at| now.duration_since(at) < KEPT);
        let before = self.0.get(&shown).copied().filter(holds);
        let known = match (found, before) {
            (Some(device), _) => Known { device, found: Some(now), asked: now },
            (None, Some(before)) => Known { asked: now, ..before },
            (None, None) => Known { device: encoded(shown), found: None, asked: now },
        };
        if self.0.len() >= MOST && !self.0.contains_key(&shown) {
            self.0.clear();
        }
        self.0.insert(shown, known);
        known.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
26 29 0:24 / /proc rw,nosuid shared:12 - proc proc rw
29 1 0:27 /@ / rw,relatime shared:1 - btrfs /dev/vda2 rw,subvolid=256,subvol=/@
290 29 254:3 / /a\\040b rw - ext4 /dev/vda3 rw
31 29 0:4";

    #[test]
    fn a_file_on_a_disk_is_the_one_that_stat_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = fs::metadata(file.path()).unwrap();
        let (device, inode) = file_at(file.path()).unwrap();
        assert_eq!(inode, found.ino());
        // Where these tests run on btrfs it is another, and rightly so.
        if libc::major(found.dev()) != 0 {
            assert_eq!(device, encoded(found.dev()));
        }
        assert_eq!(file_at(file.path().with_extension("gone")), None);
    }

    #[test]
    fn the_mount_of_a_file_without_a_disk_is_found() {
        // One super block without subvolumes: what the mount says is what `stat` says.
        let path = Path::new("/proc/version");
        let found = fs::metadata(path).unwrap();
        assert_eq!(libc::major(found.dev()), 0);
        assert_eq!(superblock(path, found.dev(), None), Some(encoded(found.dev())));
        assert_eq!(superblock(path, found.dev() + 1, None), None, "it is another file by now");
        assert_eq!(superblock(path, found.dev(), Some(Path::new("/proc/self/limits"))), None, "no such mount");
        assert_eq!(file_at(path), Some((encoded(found.dev()), found.ino())));
    }

    #[test]
    fn an_executable_is_the_same_by_whatever_path() {
        let own = file_at("/proc/self/exe").unwrap();
        assert_eq!(own.1, fs::metadata("/proc/self/exe").unwrap().ino());
        assert_eq!(file_at(format!("/proc/{}/exe", std::process::id())), Some(own));
        assert_eq!(mounts_beside(Path::new("/proc/7/exe")), Some("/proc/7/mountinfo".into()));
        assert_eq!(mounts_beside(Path::new("/usr/bin/exe")), None);
        assert_eq!(mounts_beside(Path::new("/proc/version")), None);
    }

    #[test]
    fn a_mount_says_the_device_of_its_super_block() {
        assert_eq!(mount_in("pos:\t0\nflags:\t012000000\nmnt_id:\t29\nino:\t257\n"), Some(29));
        assert_eq!(mount_in("pos:\t0\n"), None);
        assert_eq!(device_in(MOUNTS, 29), Some(27));
        assert_eq!(device_in(MOUNTS, 290), Some(254 << 20 | 3));
        assert_eq!(device_in(MOUNTS, 2), None);
        assert_eq!(device_in(MOUNTS, 31), None, "the list was cut off here");
    }

    #[test]
    fn a_mount_that_is_not_listed_leaves_what_was_known_or_what_is_shown() {
        let (mut devices, start) = (Devices(BTreeMap::new()), Instant::now());
        assert_eq!(devices.known(40, true, start), None);
        assert_eq!(devices.learn(40, None, start), 40);
        assert_eq!(devices.known(40, true, start), Some(40));
        assert_eq!(devices.known(40, false, start), None, "a path is asked for until it is found");
        assert_eq!(devices.learn(40, Some(27), start), 27);
        assert_eq!(devices.known(40, false, start), Some(27));
        let later = start + AGAIN;
        assert_eq!(devices.known(40, true, later), None);
        assert_eq!(devices.learn(40, None, later), 27);
        assert_eq!((devices.known(40, true, later), devices.known(40, false, later)), (Some(27), None));
        assert_eq!(devices.learn(40, None, start + KEPT), 40, "it can be another file system's by now");
    }

    #[test]
    fn no_more_devices_are_remembered_than_there_is_room_for() {
        let (mut devices, now) = (Devices(BTreeMap::new()), Instant::now());
        for shown in 0..2 * MOST as u64 {
            devices.learn(shown, Some(1), now);
            assert!(devices.0.len() <= MOST);
        }
    }
}
