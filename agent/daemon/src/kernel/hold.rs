//! Another process's socket in our hand: a session that no connect hook saw is kept with its socket like any other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use writ_abi::Session;

use super::bytes::Plain;
use super::object::Kernel;
use super::syscall::update_by_descriptor;

impl Kernel {
    /// Keeps a session with its socket, which the process `pid` holds as `descriptor`, and lists it. From here on the
    /// egress program judges its packets, and the list loses it as it closes.
    ///
    /// # Errors
    /// The socket is not that one any more, cannot be had (`pidfd_getfd`, Linux 5.6, needs CAP_SYS_PTRACE), or the list is
    /// full: nothing is kept then.
    pub(crate) fn hold_session(&self, pid: u32, descriptor: i32, session: &Session) -> io::Result<()> {
        let socket = taken(pid, descriptor)?;
        if cookie(&socket)? != session.cookie {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the descriptor is another socket by now"));
        }
        update_by_descriptor(self.tracked.as_fd(), socket.as_fd(), &Plain(*session))?;
        // While we hold the socket it cannot close, so the list cannot keep what is gone.
        self.list_session(session)
    }
}

/// A descriptor of another process, as one of our own.
fn taken(pid: u32, descriptor: i32) -> io::Result<OwnedFd> {
    let process = process(pid)?;
    // SAFETY: integers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) })
}

/// A process that has this pid now, whoever has it later (`pidfd_open`, Linux 5.3); it becomes readable as the process ends.
///
/// # Errors
/// There is none, or no descriptor is free.
pub(crate) fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what `cookie` has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
