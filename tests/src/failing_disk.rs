//! A block device of a test's own that fails when it is told to, with a real file system on it.
//!
//! The device is a loop device over a file in a small file system in memory. Holes are made in that file under the space
//! that another file on the device has taken and not written yet, and the memory is filled: from then on the device cannot
//! write there, as a disk with bad blocks cannot. The kernel reports it as it does for such a disk: writes go well, the page
//! cache drops what it could not write back, and `fsync` says so, once.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::SmallDisk;

/// Bytes of a block of the file system.
const BLOCK: u64 = 4096;

/// Such a device, mounted; gone, with what is on it, when it is dropped.
#[derive(Debug)]
pub struct FailingDisk {
    at: PathBuf,
    device: String,
    backing: SmallDisk,
    image: PathBuf,
    _directory: tempfile::TempDir,
}

impl FailingDisk {
    /// Mounts one of 64 MiB; the directory is made where it is missing.
    #[track_caller]
    pub fn mount(at: &Path) -> Self {
        let directory = tempfile::tempdir().expect("cannot make a directory");
        let backing = SmallDisk::mount(&directory.path().join("backing"), 96 << 20);
        let image = directory.path().join("backing/image");
        run(Command::new("fallocate").args(["--length", "64MiB"]).arg(&image));
        let options =
            ["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"];
        run(Command::new("mke2fs").args(options).arg(&image));
        run(Command::new("fallocate").args(["--length", "64MiB"]).arg(&image));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let disk = Self { at: at.to_owned(), device, backing, image, _directory: directory };
        std::fs::create_dir_all(at).expect("cannot make the directory to mount at");
        disk.mount_again();
        disk
    }

    /// From now on the space that a file on it has taken ahead cannot be written; everything else can.
    #[track_caller]
    pub fn fail_ahead_of(&self, file: &Path) {
        let written = std::fs::metadata(file).expect("cannot look at the file").len().div_ceil(BLOCK);
        let listed = run(Command::new("filefrag").arg("-v").arg(file));
        let mut blocks = 0;
        for line in listed.lines() {
            let Some((first, physical, length)) = extent(line) else { continue };
            let skip = written.saturating_sub(first).min(length);
            if skip < length {
                let (offset, bytes) = ((physical + skip) * BLOCK, (length - skip) * BLOCK);
                let range = [format!("--offset={offset}"), format!("--length={bytes}")];
                run(Command::new("fallocate").arg("--punch-hole").args(range).arg(&self.image));
                blocks += length - skip;
            }
        }
        assert!(blocks > 0, "the file has taken no space ahead: {listed}");
        self.backing.fill();
    }

    /// The device works again. What it failed to write stays unwritten.
    #[track_caller]
    pub fn heal(&self) {
        self.backing.empty();
    }

    /// What is left when nothing of it is in memory any more: unmounted, checked, mounted. Nobody may
    /// have a file open.
    #[track_caller]
    pub fn forget(&self) {
        umount2(&self.at, MntFlags::empty()).expect("cannot unmount");
        run(Command::new("e2fsck").args(["-f", "-n", &self.device]));
        self.mount_again();
    }

    #[track_caller]
    fn mount_again(&self) {
        let device = Some(self.device.as_str());
        mount(device, &self.at, Some("ext4"), MsFlags::empty(), None::<&str>).expect("cannot mount the device");
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // A daemon may still have files open; they go with it, and the device with the last of them.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// First block in the file, first block on the device, and length of an extent, from a line that `filefrag -v` prints:
/// `   1:      256..     511:      33280..     33535:    256:      unwritten,eof`.
fn extent(line: &str) -> Option<(u64, u64, u64)> {
    let mut parts = line.split(':');
    parts.next()?.trim().parse::<u64>().ok()?;
    let first = |range: &str| range.split("..").next()?.trim().parse().ok();
    Some((first(parts.next()?)?, first(parts.next()?)?, parts.next()?.trim().parse().ok()?))
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
