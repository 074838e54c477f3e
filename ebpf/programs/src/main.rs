//! What writ enforces in the kernel. Every verdict comes from `writ_abi::decide` over the tables of one generation.
//!
//! | hook | what is decided there |
//! |---|---|
//! | cgroup/connect4, connect6 | TCP and UDP connects, TCP Fast Open, MPTCP; `::ffff:a.b.c.d` as IPv4 |
//! | cgroup/sendmsg4, sendmsg6 | each datagram sent to an address |
//! | cgroup/sock_create | IP sockets that are neither TCP nor UDP: `Action::"open-socket"` |
//! | lsm/socket_create | the same for address families that cgroup hooks cannot see, where the kernel has the BPF LSM |
//! | lsm/socket_connect, socket_sendmsg | the first use of such a socket by an account that was handed it |
//! | cgroup/sock_release | a session's end |
//! | cgroup_skb/egress | packets of sessions whose account's stance has changed since, or run out |
//! | raw_tp sched_process_exec, fork, exit | who runs what, and what a process descends from |
//! | raw_tp cgroup_mkdir, cgroup_rmdir | which account a new cgroup belongs to, before any task can enter it |
//!
//! Whatever cannot be read, found or recorded has a name in `writ_abi::Reason` or `writ_abi::Counter`, and denies.
#![no_std]
#![no_main]
// Fetching atomics: `core::sync::atomic` withholds them from targets without compare-and-swap, which BPF has since v3.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "see above; the toolchain is pinned")]

mod cgroup;
mod config;
mod connect;
mod emit;
mod errno;
mod identity;
mod lsm;
mod map;
mod process;
mod session;
mod socket;
mod tables;
mod task;

/// The verifier proves that nothing here can panic; the language wants a handler all the same.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used are open to programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
