//! Sockets opened by one process and used by another: what is asked of the kernel is not asked by who opened the socket.

use std::io::{IoSlice, IoSliceMut, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, connect,
    recvmsg, sendmsg, sendto, socketpair,
};
use nix::unistd::{ForkResult, fork};

use super::identity::resuid;

/// Opens a socket by the raw numbers.
pub(crate) fn open(family: i32, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: a system call on integers.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the socket as `from`, in a process that hands it over, and uses it as `to`.
pub(crate) fn over(from: &str, to: &str, operation: &str, address: SocketAddr) -> Result<nix::Result<()>> {
    let (family, kind, protocol) = match operation {
        "tcp" => (libc::AF_INET, libc::SOCK_STREAM, 0),
        "udp-judge" | "udp-send" => (libc::AF_INET, libc::SOCK_DGRAM, 0),
        "raw" => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP),
        other => bail!("a socket for `{other}` cannot be handed over"),
    };
    let (uid, cgroup) = from.split_once('@').map_or((from, None), |(uid, cgroup)| (uid, Some(cgroup)));
    let uid: u32 = uid.parse().with_context(|| format!("`{uid}` is no uid"))?;
    let to: u32 = to.parse().with_context(|| format!("`{to}` is no uid"))?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: this program has one thread here, so the child may do anything.
    if let ForkResult::Child = unsafe { fork() }.context("cannot fork")? {
        let handed = (|| {
            if let Some(cgroup) = cgroup {
                let procs = std::fs::File::options().write(true).open(format!("{cgroup}/cgroup.procs"));
                procs.and_then(|mut procs| procs.write_all(b"0")).context("cannot enter the cgroup")?;
            }
            // A raw socket needs the capability, which a change of the effective uid alone would take away.
            let opened = if kind == libc::SOCK_RAW {
                open(family, kind, protocol)?
            } else {
                resuid(uid, uid, uid).context("cannot become who opens the socket")?;
                open(family, kind, protocol)?
            };
            let fds = [opened.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
            anyhow::Ok(())
        })();
        std::process::exit(if handed.is_ok() { 0 } else { 1 });
    }
    drop(theirs);
    let received = receive(ours.as_raw_fd())?;
    resuid(to, to, to).context("cannot become who uses the socket")?;
    let name = SockaddrStorage::from(address);
    Ok(match operation {
        "raw" | "udp-send" => sendto(received.as_raw_fd(), &[0; 16], &name, MsgFlags::empty()).map(drop),
        _ => connect(received.as_raw_fd(), &name),
    })
}

fn receive(from: RawFd) -> Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    bail!("no socket was handed over")
}
