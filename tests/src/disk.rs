//! A small file system of a test's own, which it can fill, empty and make read-only.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system in memory at a directory; gone, with what is on it, when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes; the directory is made where it is missing.
    #[track_caller]
    pub fn mount(at: &Path, bytes: usize) -> Self {
        fs::create_dir_all(at).expect("cannot make the directory to mount at");
        let options = format!("size={bytes},mode=0755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("cannot mount a tmpfs");
        Self { at: at.to_owned() }
    }

    /// Takes all space that is left.
    #[track_caller]
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.ballast()).expect("cannot make a file");
        // Ever smaller, down to the last page.
        for size in [65_536, 4_096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Gives it back.
    #[track_caller]
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("cannot remove a file");
    }

    /// Allows writing, or no more; nobody may be writing.
    #[track_caller]
    pub fn writable(&self, writable: bool) {
        let flags = if writable { MsFlags::MS_REMOUNT } else { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY };
        mount(None::<&str>, &self.at, None::<&str>, flags, None::<&str>).expect("cannot remount the tmpfs");
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A daemon may still have files open; they go with it.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}
