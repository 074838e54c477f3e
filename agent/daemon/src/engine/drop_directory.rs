//! The drop directory's files, reached by descriptors alone: whoever may write there can put a link in anything's place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};

/// The largest file.
const LARGEST: u64 = 1 << 20;
/// How many files are looked at in one second: what a flood leaves over is looked at when these are gone.
const LOOKED_AT: usize = 4_096;
/// Where bad files are kept.
const REJECTED: &str = "rejected";
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The directory, open.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: OwnedFd,
    /// Whom it and `rejected` belong to: the daemon.
    owner: Uid,
}

/// A file as it was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) uid: u32,
    pub(super) written: Timestamp,
    /// Device and inode: the same name may lead to another file later.
    pub(super) which: (u64, u64),
}

/// What became of a bad file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Aside {
    /// It is in `rejected`.
    Moved,
    /// It is gone, since `rejected` cannot be trusted.
    Removed(String),
    /// It stays where it is.
    Stuck(String),
}

impl Directory {
    /// Opens it, if it can be trusted to hold what its files' owners put there.
    ///
    /// # Errors
    /// It cannot be opened or trusted.
    pub(super) fn open(path: &Path, owner: Uid) -> Result<Self, String> {
        let descriptor = match open(path, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err("it is no directory".into()),
            opened => opened.map_err(text)?,
        };
        let file = File::from(descriptor);
        let found = file.metadata().map_err(|error| error.to_string())?;
        if found.uid() != owner.as_raw() {
            return Err("it does not belong to root: its owner could put anybody's files there".into());
        }
        if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            return Err(
                "others may write to it and it is not sticky (chmod +t): they could replace each other's files".into(),
            );
        }
        Ok(Self { descriptor: file.into(), owner })
    }

    /// The names of the files to take, in their order, by owner.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn waiting(&self) -> Result<BTreeMap<u32, Vec<String>>, String> {
        let mut entries = Dir::openat(&self.descriptor, ".", DIRECTORY, Mode::empty()).map_err(text)?;
        let mut waiting: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let names = entries.iter().flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        // A file on its way has another name: it is renamed when it is whole.
        let ready =
            names.filter(|name| !name.starts_with('.') && (name.ends_with(".json") || name.ends_with(".jsonl")));
        for name in ready.take(LOOKED_AT) {
            if let Ok(found) = fstatat(&self.descriptor, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                waiting.entry(found.st_uid).or_default().push(name);
            }
        }
        waiting.values_mut().for_each(|names| names.sort());
        Ok(waiting)
    }

    /// A file, its owner, and when it was written.
    ///
    /// # Errors
    /// It cannot be read, or need not be its owner's word.
    pub(super) fn read(&self, name: &str) -> Result<Found, String> {
        // Neither links are followed nor pipes waited for.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.descriptor, name, flags, Mode::empty()) {
            Err(Errno::ELOOP) => return Err("it is a link, not a plain file".into()),
            opened => File::from(opened.map_err(text)?),
        };
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("not a plain file".into());
        }
        if found.nlink() != 1 {
            return Err("it has another name: whoever linked it here need not be its owner".into());
        }
        if found.mode() & 0o022 != 0 {
            return Err("others than its owner may write to it: it cannot be attributed".into());
        }
        if found.len() > LARGEST {
            return Err(format!("it has {} bytes; {LARGEST} is the limit", found.len()));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let content = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
        let written = Timestamp::new(found.mtime(), i32::try_from(found.mtime_nsec()).unwrap_or(0));
        Ok(Found {
            text: content,
            uid: found.uid(),
            written: written.map_err(|error| error.to_string())?,
            which: (found.dev(), found.ino()),
        })
    }

    /// Whether the name still leads to this file.
    pub(super) fn holds(&self, name: &str, which: (u64, u64)) -> bool {
        let found = fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| (found.st_dev, found.st_ino) == which)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It is still there.
    pub(super) fn remove(&self, name: &str) -> Result<(), String> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(text(error)),
        }
    }

    /// Moves a bad file to `rejected`, or removes it where that is not the daemon's own directory.
    pub(super) fn put_aside(&self, name: &str) -> Aside {
        let moved = self.rejected().and_then(|rejected| {
            renameat(&self.descriptor, name, &rejected, name).map_err(|error| format!("it cannot be moved: {error}"))
        });
        let Err(why) = moved else { return Aside::Moved };
        match self.remove(name) {
            Ok(()) => Aside::Removed(why),
            Err(error) => Aside::Stuck(format!("{why}; it cannot be removed either: {error}")),
        }
    }

    /// Whoever may write to the drop directory can make `rejected` first, or put a link in its place.
    fn rejected(&self) -> Result<OwnedFd, String> {
        match mkdirat(&self.descriptor, REJECTED, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(format!("`{REJECTED}` cannot be made: {error}")),
        }
        let rejected = match openat(&self.descriptor, REJECTED, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(format!("`{REJECTED}` is a link or no directory")),
            opened => File::from(opened.map_err(|error| format!("`{REJECTED}` cannot be opened: {error}"))?),
        };
        let found = rejected.metadata().map_err(|error| format!("`{REJECTED}`: {error}"))?;
        if found.uid() != self.owner.as_raw() {
            return Err(format!("`{REJECTED}` belongs to uid {}, not to root", found.uid()));
        }
        Ok(rejected.into())
    }
}

fn text(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    fn directory() -> (TempDir, Directory) {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path(), Uid::effective()).unwrap();
        fs::write(place.path().join("bad.json"), "forged").unwrap();
        (place, directory)
    }

    #[test]
    fn a_bad_file_is_moved_to_a_directory_of_the_daemons_own() {
        let (place, directory) = directory();
        assert_eq!(directory.put_aside("bad.json"), Aside::Moved);
        assert_eq!(fs::read_to_string(place.path().join("rejected/bad.json")).unwrap(), "forged");
    }

    #[test]
    fn no_file_is_moved_through_a_link_in_the_place_of_rejected() {
        let (place, directory) = directory();
        let target = tempfile::tempdir().unwrap();
        fs::write(target.path().join("bad.json"), "state").unwrap();
        symlink(target.path(), place.path().join(REJECTED)).unwrap();
        let aside = directory.put_aside("bad.json");
        assert!(matches!(&aside, Aside::Removed(why) if why.contains("link")), "{aside:?}");
        assert!(!place.path().join("bad.json").exists());
        assert_eq!(fs::read_to_string(target.path().join("bad.json")).unwrap(), "state");
    }

    #[test]
    fn a_rejected_that_is_somebody_elses_takes_nothing() {
        let (place, mut directory) = directory();
        fs::create_dir(place.path().join(REJECTED)).unwrap();
        directory.owner = Uid::from_raw(Uid::effective().as_raw() + 1);
        let aside = directory.put_aside("bad.json");
        assert!(matches!(&aside, Aside::Removed(why) if why.contains("belongs to uid")), "{aside:?}");
        assert!(!place.path().join("bad.json").exists());
        assert!(fs::read_dir(place.path().join(REJECTED)).unwrap().next().is_none());
    }

    #[test]
    fn links_and_pipes_are_not_read() {
        let (place, directory) = directory();
        symlink(place.path().join("bad.json"), place.path().join("link.json")).unwrap();
        mkfifo(&place.path().join("pipe.json"), Mode::S_IRWXU).unwrap();
        assert!(directory.read("link.json").unwrap_err().contains("link"));
        assert!(directory.read("pipe.json").unwrap_err().contains("plain file"));
        assert_eq!(directory.read("bad.json").unwrap().text, "forged");
    }

    #[test]
    fn a_link_to_a_directory_is_no_drop_directory() {
        let (place, _) = directory();
        let link = place.path().join("link");
        symlink(place.path(), &link).unwrap();
        assert!(Directory::open(&link, Uid::effective()).unwrap_err().contains("no directory"));
    }
}
