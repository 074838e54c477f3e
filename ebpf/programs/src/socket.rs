//! What is read from the kernel's sockets, at the offsets of the running kernel.

use core::ffi::c_void;

use crate::{config::config, task};

/// The kernel's `struct sock` behind the context of an address hook, as a number. The verifier lets a program follow
/// `ctx->sk` only to members it knows; but the context is a structure in kernel memory like any other.
#[inline(always)]
pub(crate) fn of_sock_addr(context: *mut c_void) -> u64 {
    // Never 0, which means that there is none: what cannot be read there will deny.
    task::follow(context as u64, config!(sockets.sock_addr_sk)).unwrap_or(1)
}

/// Address of the cgroup a socket was made in; 0 for a socket of the kernel's own and where version 1 of the network
/// controllers is in use on an old kernel; `None` if it could not be read.
#[inline(always)]
pub(crate) fn cgroup(socket: u64) -> Option<u64> {
    // Before Linux 5.16 the lowest two bits are flags, the lowest of which says that this is no pointer.
    let word = task::read::<u64>(socket, config!(sockets.cgroup))?;
    Some(if word & 1 == 1 { 0 } else { word & !3 })
}

/// Cookie of the caller's network namespace; 0 if it could not be read.
#[inline(always)]
pub(crate) fn own_netns() -> u64 {
    if config!(sockets.net_cookie) == 0 {
        return 0;
    }
    let read = || {
        let proxy = task::pointer(task::current(), config!(sockets.nsproxy))?;
        let namespace = task::pointer(proxy, config!(sockets.net_ns))?;
        task::member::<u64>(namespace, config!(sockets.net_cookie))
    };
    read().unwrap_or_default()
}
