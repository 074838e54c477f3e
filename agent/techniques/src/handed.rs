//! Sockets that somebody else made: passed over a unix socket, inherited, accepted, taken out of another process.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use socket2::{SockAddr, Socket, Type};

use crate::inet;
use crate::scene::Scene;
use crate::system::{become_user, descriptor_of, in_child};
use crate::tried::{Failure, Tried, call, prepare};

/// Has a helper, who is a stranger to every account, make a socket and pass it over; then becomes the user who tries.
fn passed(scene: &Scene, make: impl FnOnce() -> Tried<Socket>) -> Tried<Socket> {
    let (mine, theirs) = prepare("making a socket pair", UnixStream::pair())?;
    in_child(scene, || {
        become_user(scene.stranger, &[])?;
        let socket = make()?;
        let descriptors = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let data = [IoSlice::new(b"x")];
        let sent = sendmsg::<UnixAddr>(theirs.as_raw_fd(), &data, &rights, MsgFlags::empty(), None);
        prepare("passing the socket over", sent).map(drop)
    })?;
    become_user(scene.uid, &[])?;
    let (mut byte, mut space) = ([0u8], nix::cmsg_space!(RawFd));
    let mut data = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<UnixAddr>(mine.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::empty());
    let received = call("recvmsg", received.map_err(Into::into))?;
    let messages = prepare("reading what was passed", received.cmsgs())?;
    for message in messages {
        if let ControlMessageOwned::ScmRights(descriptors) = message
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel just gave this process the descriptor, and nobody else knows it.
            return Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(*descriptor) }));
        }
    }
    Err(Failure::Broken("no socket was passed".into()))
}

/// Made by a stranger, connected by the account.
pub(crate) fn unconnected_passed(scene: &Scene) -> Tried {
    let socket = passed(scene, || call("the helper's socket", inet::socket(scene.target(), Type::DGRAM)))?;
    call("connect", socket.connect(&scene.target().into()))?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// Made and connected by a stranger, who may; the account only sends.
pub(crate) fn connected_passed(scene: &Scene) -> Tried {
    let socket = passed(scene, || {
        let socket = call("the helper's socket", inet::socket(scene.target(), Type::DGRAM))?;
        prepare("the helper's connect", socket.connect(&scene.target().into()))?;
        Ok(socket)
    })?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// Made and connected by root, before the process became the account's.
pub(crate) fn connected_inherited(scene: &Scene) -> Tried {
    let socket = call("the parent's socket", inet::socket(scene.target(), Type::DGRAM))?;
    prepare("the parent's connect", socket.connect(&scene.target().into()))?;
    become_user(scene.uid, &[])?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// A raw socket from before the process became the account's.
pub(crate) fn raw_inherited(scene: &Scene) -> Tried {
    let socket = crate::families::open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP)?;
    become_user(scene.uid, &[])?;
    let to: SockAddr = std::net::SocketAddrV4::new(scene.forbidden, 0).into();
    call("sendto", socket.send_to(scene.payload(), &to)).map(drop)
}

/// Data in the connection that somebody else made to a listener of the account's process.
pub(crate) fn accepted(scene: &Scene) -> Tried {
    let listener = call("socket", Socket::new(socket2::Domain::IPV4, Type::STREAM, None))?;
    call("bind", listener.bind(&SockAddr::from(std::net::SocketAddrV4::new(*scene.permitted.ip(), 0))))?;
    call("listen", listener.listen(1))?;
    let at = prepare("asking where it listens", listener.local_addr())?;
    in_child(scene, || {
        become_user(scene.stranger, &[])?;
        let socket = prepare("the stranger's socket", Socket::new(socket2::Domain::IPV4, Type::STREAM, None))?;
        prepare("the stranger's connect", socket.connect(&at))
    })?;
    become_user(scene.uid, &[])?;
    let (socket, _) = call("accept", listener.accept())?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// Takes the connected socket of a process that belongs to somebody else.
pub(crate) fn taken(scene: &Scene) -> Tried {
    let owner = std::process::id();
    // The owner of the socket is this process, as root; whoever takes it is its child, as the account.
    let socket = call("the owner's socket", inet::socket(scene.target(), Type::DGRAM))?;
    prepare("the owner's connect", socket.connect(&scene.target().into()))?;
    let descriptor = socket.as_raw_fd();
    in_child(scene, || {
        become_user(scene.uid, &[])?;
        let taken = Socket::from(call("pidfd_getfd", descriptor_of(owner, descriptor))?);
        let mut nothing = [MaybeUninit::uninit(); 1];
        // Whether it is a socket of the right kind at all.
        let _ = taken.peek(&mut nothing);
        call("send", taken.send(scene.payload())).map(drop)
    })
}
