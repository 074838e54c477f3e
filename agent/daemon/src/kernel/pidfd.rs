//! A process by a descriptor, which stays that process's when its number is given to another.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A process that has this pid now, whoever has it later (`pidfd_open`, Linux 5.3); it becomes readable as the process ends.
///
/// # Errors
/// There is none, or no descriptor is free.
pub(crate) fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
