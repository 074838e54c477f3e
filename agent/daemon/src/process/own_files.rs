//! What `/proc` says of one process again and again, read from files that are opened once.
//!
//! Opening takes longer than reading, most of all after the processor has slept: this is on the way from a signal to the kernel.
//! An open file stays that process's when its number is given to another; of one that is gone it says nothing (`ESRCH`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use super::lineage::{Credentials, status_in};
use super::peer::loginuid_in;
use super::table::cgroup_in;

/// What `status` holds, but for users in hundreds of groups: read at once.
const AT_ONCE: usize = 4_096;
/// No file of a process is longer.
const LONGEST: usize = 1 << 20;

/// The files of one process.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    pid: u32,
    status: Option<File>,
    loginuid: Option<File>,
    cgroup: Option<File>,
}

impl OwnFiles {
    /// Those of the process that has this pid now. What cannot be opened is looked for each time.
    pub(crate) fn open(pid: u32) -> Self {
        let open = |name: &str| File::open(path(pid, name)).ok();
        Self { pid, status: open("status"), loginuid: open("loginuid"), cgroup: open("cgroup") }
    }

    /// None of them: all are looked for each time, as those of whoever has the pid then.
    pub(crate) const fn of_whoever_has(pid: u32) -> Self {
        Self { pid, status: None, loginuid: None, cgroup: None }
    }

    /// The process's parent, and as whom it runs; `None` if it is gone.
    pub(crate) fn status(&self) -> Option<(u32, Credentials)> {
        status_in(&self.read(self.status.as_ref(), "status")?)
    }

    /// As whom it logged in; `None` if nobody did, or if it is gone.
    pub(crate) fn loginuid(&self) -> Option<u32> {
        loginuid_in(&self.read(self.loginuid.as_ref(), "loginuid")?)
    }

    /// Path of its cgroup in the unified hierarchy.
    pub(crate) fn cgroup(&self) -> Option<String> {
        cgroup_in(&self.read(self.cgroup.as_ref(), "cgroup")?)
    }

    fn read(&self, kept: Option<&File>, name: &str) -> Option<String> {
        let bytes = match kept {
            Some(file) => from_start(file).ok()?,
            None => fs::read(path(self.pid, name)).ok()?,
        };
        Some(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

fn path(pid: u32, name: &str) -> String {
    format!("/proc/{pid}/{name}")
}

/// All of a file of `/proc` in one read, which says what is so at one moment.
fn from_start(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; AT_ONCE];
    loop {
        let read = file.read_at(&mut bytes, 0)?;
        if read < bytes.len() {
            bytes.truncate(read);
            return Ok(bytes);
        }
        if bytes.len() >= LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        bytes.resize(2 * bytes.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cgroup_of, loginuid_of};
    use super::*;

    #[test]
    fn what_is_read_again_is_what_is_so_now_and_a_process_that_is_gone_says_nothing() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let (kept, looked_for) = (OwnFiles::open(pid), OwnFiles::of_whoever_has(pid));
        assert!(kept.status.is_some() && kept.loginuid.is_some() && kept.cgroup.is_some());
        for files in [&kept, &kept, &looked_for] {
            let (parent, credentials) = files.status().unwrap();
            assert_eq!(parent, std::process::id());
            assert_eq!(credentials.uids, [nix::unistd::geteuid().as_raw(); 3]);
            assert_eq!((files.loginuid(), files.cgroup()), (loginuid_of(pid), cgroup_of(pid)));
        }
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!((kept.status(), kept.cgroup(), looked_for.status()), (None, None, None));
    }

    #[test]
    fn more_than_is_read_at_once_is_read_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for length in [0, 7, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE] {
            fs::write(file.path(), vec![b'x'; length]).unwrap();
            assert_eq!(from_start(file.as_file()).unwrap().len(), length);
        }
        fs::write(file.path(), vec![b'x'; LONGEST]).unwrap();
        assert!(from_start(file.as_file()).is_err());
    }
}
