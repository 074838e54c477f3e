//! The system calls that no crate offers safely: identities by the raw call, capabilities, descriptors of other processes,
//! addresses that are none, the 32-bit gate.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork};
use socket2::{SockAddr, SockAddrStorage};

use crate::scene::Scene;
use crate::tried::{Failure, Tried, prepare};

/// The kernel's number of CAP_NET_RAW.
pub(crate) const CAP_NET_RAW: u32 = 13;

/// Ends this process when the one that started it ends: nothing is left over, however that happens.
///
/// # Errors
/// The kernel's errno.
pub fn die_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// Moves this process (and what it starts) into a network namespace with nothing but a loopback device, which is brought
/// up; every user may open ping sockets there.
///
/// # Errors
/// The kernel's errno; EPERM without CAP_SYS_ADMIN.
pub fn alone_in_network() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()?;
    // Where it cannot be set, ping sockets are refused to everyone, and the catalogue says so.
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    Ok(())
}

/// Brings the loopback device of the present network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a whole `ifreq` with a name that ends in a zero byte, and outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// Makes this process the given user, with no groups and no privilege but the capabilities named.
pub(crate) fn become_user(uid: u32, capabilities: &[u32]) -> Tried {
    prepare("dropping groups", nix::unistd::setgroups(&[]))?;
    if !capabilities.is_empty() {
        prepare("keeping capabilities", nix::sys::prctl::set_keepcaps(true))?;
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    prepare("changing the group", nix::unistd::setresgid(group, group, group))?;
    prepare("changing the user", nix::unistd::setresuid(user, user, user))?;
    if !capabilities.is_empty() {
        prepare("setting capabilities", set_capabilities(capabilities))?;
    }
    // A change of user clears it.
    prepare("tying the process to its parent", die_with_parent())
}

fn set_capabilities(capabilities: &[u32]) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let low = capabilities.iter().filter(|number| **number < 32).fold(0u32, |bits, number| bits | 1 << number);
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable bits 0 to 31, then 32 to 63.
    let data = [low, low, 0, 0, 0, 0];
    // SAFETY: the header and both data elements of version 3 are laid out as the kernel reads them and outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// Changes every uid of this thread alone: the C library's function would change every thread.
pub(crate) fn thread_becomes(uid: u32) -> io::Result<()> {
    // SAFETY: a system call on integers; no memory is touched.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Does something in a forked child; its failure is this process's.
pub(crate) fn in_child(scene: &Scene, act: impl FnOnce() -> Tried) -> Tried {
    const BROKEN: i32 = 250;
    // SAFETY: the processes that try are single-threaded wherever they fork, so the child may do anything.
    match unsafe { fork() } {
        Err(errno) => Err(Failure::Broken(format!("fork: {errno}"))),
        Ok(ForkResult::Child) => {
            let _ = die_with_parent();
            let code = match act() {
                Ok(()) => 0,
                Err(Failure::Stopped { errno, .. }) => errno as i32,
                Err(Failure::Broken(why)) => {
                    eprintln!("in the child: {why}");
                    BROKEN
                }
            };
            // SAFETY: ends the process without running what its parent still needs, e.g. buffers.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => {
            scene.note(child.as_raw().cast_unsigned());
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => Ok(()),
                Ok(WaitStatus::Exited(_, BROKEN)) => Err(Failure::Broken("the child could not try".into())),
                Ok(WaitStatus::Exited(_, code)) => {
                    Err(Failure::Stopped { call: "a call of the child", errno: Errno::from_raw(code) })
                }
                // What a gate that the kernel was built without answers with.
                Ok(WaitStatus::Signaled(_, Signal::SIGSEGV, _)) => {
                    Err(Failure::Stopped { call: "a call of the child", errno: Errno::ENOSYS })
                }
                other => Err(Failure::Broken(format!("the child ended otherwise: {other:?}"))),
            }
        }
    }
}

/// Moves this process into a cgroup.
pub(crate) fn enter_cgroup(directory: &std::path::Path) -> io::Result<()> {
    File::options().write(true).open(directory.join("cgroup.procs"))?.write_all(b"0")
}

/// The address as a structure of family AF_UNSPEC, which a datagram socket takes for IPv4.
pub(crate) fn unspecified(address: SocketAddrV4) -> SockAddr {
    let inet = SockAddr::from(address);
    let length = inet.len();
    let mut storage: SockAddrStorage = inet.as_storage();
    // SAFETY: the storage is larger than a `sockaddr`, whose family is its first member.
    unsafe { storage.view_as::<libc::sockaddr>() }.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the storage holds a whole address of this length.
    unsafe { SockAddr::new(storage, length) }
}

/// The address of a link-layer socket on the loopback device.
pub(crate) fn loopback_link(protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is larger than a `sockaddr_ll`, and all its members are integers.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as libc::sa_family_t;
    link.sll_protocol = protocol.to_be();
    // The loopback device is the first of every network namespace.
    link.sll_ifindex = 1;
    link.sll_halen = 6;
    // SAFETY: the storage holds a whole address of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// A descriptor of another process (`pidfd_open`, then `pidfd_getfd`).
pub(crate) fn descriptor_of(pid: u32, descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: system calls on integers; the first gives a descriptor that nobody else knows.
    let process = unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    // SAFETY: as above.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Sets a socket option to these bytes.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads exactly `length` bytes of the value, which outlives the call.
    Errno::result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) })?;
    Ok(())
}

/// `connect` through the 32-bit system call gate, by `socketcall`; ENOSYS where the kernel has no such gate.
///
/// To be called in a child: a kernel that was built without the gate answers with SIGSEGV.
#[cfg(target_arch = "x86_64")]
pub(crate) fn connect_32bit(socket: BorrowedFd<'_>, address: SocketAddrV4) -> io::Result<()> {
    const SOCKETCALL: i64 = 102;
    const CONNECT: i64 = 3;
    let length = std::num::NonZeroUsize::MIN.saturating_add(4095);
    let (protection, flags) = (
        nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
        // The gate passes 32-bit pointers.
        nix::sys::mman::MapFlags::MAP_PRIVATE | nix::sys::mman::MapFlags::MAP_32BIT,
    );
    // SAFETY: a new mapping touches no other memory.
    let page = unsafe { nix::sys::mman::mmap_anonymous(None, length, protection, flags) }?.cast::<u8>();
    let [a, b, c, d] = address.ip().octets();
    let [high, low] = address.port().to_be_bytes();
    let name = [libc::AF_INET as u8, 0, high, low, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    let at = page.as_ptr() as u32;
    let arguments = [socket.as_raw_fd().cast_unsigned(), at + 64, 16];
    let answered: i64;
    // SAFETY: the page is this function's own and long enough for both; the gate keeps all registers but the result and,
    // on the way back from 64-bit code, r8 to r11. `rbx` is LLVM's, so it is exchanged around the call.
    unsafe {
        page.as_ptr().cast::<[u32; 3]>().write(arguments);
        page.as_ptr().add(64).cast::<[u8; 16]>().write(name);
        std::arch::asm!(
            "xchg {call}, rbx", "int 0x80", "xchg {call}, rbx",
            call = inout(reg) CONNECT => _,
            inlateout("rax") SOCKETCALL => answered,
            in("rcx") i64::from(at),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let errno = -(answered as i32);
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// Other architectures have no such gate.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn connect_32bit(_: BorrowedFd<'_>, _: SocketAddrV4) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// Makes room for this many bytes of packets, whatever the host's limit is (CAP_NET_ADMIN).
pub(crate) fn receive_buffer(socket: &socket2::Socket, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).map_err(io::Error::other)?;
    set_option(std::os::fd::AsFd::as_fd(socket), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes.to_ne_bytes())
}

/// Packets that a capture did not keep for want of room, since the last call.
pub(crate) fn packets_dropped(socket: &socket2::Socket) -> io::Result<u32> {
    let mut statistics = [0u32; 2];
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes: two counters, all packets and those dropped.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    let [_, dropped] = statistics;
    Ok(dropped)
}
