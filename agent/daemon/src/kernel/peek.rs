//! Peeking at what a socket has received, each byte once.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has `MSG_PEEK` go on where it ended, not begin anew; what is taken off the queue counts back (`SO_PEEK_OFF`, socket(7)).
///
/// # Errors
/// The kernel keeps no such place for this kind of socket.
pub(crate) fn peek_each_byte_once(socket: &impl AsFd) -> io::Result<()> {
    let from: libc::c_int = 0;
    // SAFETY: the pointer is that of an int, which is what the option takes, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const from).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
