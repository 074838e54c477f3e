//! io_uring: connects and sends that no system call of the process is seen to make, by rings and personalities that may be
//! older than the process's identity.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use socket2::{SockAddr, Socket, Type};

use crate::inet;
use crate::scene::Scene;
use crate::system::become_user;
use crate::tried::{Failure, Tried, call};

fn plain() -> Tried<IoUring> {
    call("io_uring_setup", IoUring::new(8))
}

/// A ring whose requests a kernel thread takes, with the identity of whoever made the ring.
fn polled() -> Tried<IoUring> {
    const IDLE_MILLISECONDS: u32 = 1_000;
    call("io_uring_setup", IoUring::builder().setup_sqpoll(IDLE_MILLISECONDS).build(8))
}

/// Does one request and waits for its end.
fn submit(ring: &mut IoUring, name: &'static str, entry: &squeue::Entry) -> Tried<i32> {
    // SAFETY: what the request points to outlives this function, which waits until the kernel is done with it.
    unsafe { ring.submission().push(entry) }.map_err(|_| Failure::Broken("the submission queue is full".into()))?;
    call("io_uring_enter", ring.submit_and_wait(1))?;
    let Some(completion) = ring.completion().next() else {
        return Err(Failure::Broken("the ring woke without a completion".into()));
    };
    let result = completion.result();
    if result < 0 { Err(Failure::Stopped { call: name, errno: Errno::from_raw(-result) }) } else { Ok(result) }
}

/// Connects by the ring, then sends by an ordinary call.
fn connect_with(scene: &Scene, ring: &mut IoUring, adapt: impl Fn(squeue::Entry) -> squeue::Entry) -> Tried {
    let to = scene.target();
    let socket = call("socket", inet::socket(to, Type::DGRAM))?;
    let name = SockAddr::from(to);
    let request = opcode::Connect::new(Fd(socket.as_raw_fd()), name.as_ptr().cast(), name.len()).build();
    submit(ring, "IORING_OP_CONNECT", &adapt(request))?;
    call("send", socket.send(scene.payload())).map(drop)
}

pub(crate) fn connect(scene: &Scene) -> Tried {
    connect_with(scene, &mut plain()?, |request| request)
}

/// Done by a worker thread of the kernel.
pub(crate) fn connect_async(scene: &Scene) -> Tried {
    connect_with(scene, &mut plain()?, |request| request.flags(squeue::Flags::ASYNC))
}

pub(crate) fn connect_polled(scene: &Scene) -> Tried {
    connect_with(scene, &mut polled()?, |request| request)
}

/// A ring made as root whose thread keeps root's identity; then the process changes its user.
pub(crate) fn ring_before_setuid(scene: &Scene) -> Tried {
    let mut ring = polled()?;
    become_user(scene.uid, &[])?;
    connect_with(scene, &mut ring, |request| request)
}

/// Root's credentials, registered with the ring as a personality that requests can name.
pub(crate) fn personality_before_setuid(scene: &Scene) -> Tried {
    let mut ring = plain()?;
    let root = call("io_uring_register", ring.submitter().register_personality())?;
    become_user(scene.uid, &[])?;
    connect_with(scene, &mut ring, |request| request.personality(root))
}

pub(crate) fn sendmsg(scene: &Scene) -> Tried {
    let to = scene.target();
    let socket = call("socket", inet::socket(to, Type::DGRAM))?;
    let name = SockAddr::from(to);
    let mut data = libc::iovec { iov_base: scene.payload().as_ptr().cast_mut().cast(), iov_len: scene.payload().len() };
    // SAFETY: all-zero bytes are an empty message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_ptr().cast_mut().cast();
    message.msg_namelen = name.len();
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    let request = opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message).build();
    submit(&mut plain()?, "IORING_OP_SENDMSG", &request).map(drop)
}

/// `IORING_OP_SEND` with a destination of its own (Linux 6.0).
pub(crate) fn send_to(scene: &Scene) -> Tried {
    let to = scene.target();
    let socket = call("socket", inet::socket(to, Type::DGRAM))?;
    let name = SockAddr::from(to);
    let length = u32::try_from(scene.payload().len()).unwrap_or(0);
    let request = opcode::Send::new(Fd(socket.as_raw_fd()), scene.payload().as_ptr(), length)
        .dest_addr(name.as_ptr().cast())
        .dest_addr_len(name.len())
        .build();
    submit(&mut plain()?, "IORING_OP_SEND", &request).map(drop)
}

/// A socket made by the ring itself (Linux 5.19), a raw one: made by nobody who called `socket`.
pub(crate) fn raw_socket(scene: &Scene) -> Tried {
    let request = opcode::Socket::new(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP).build();
    let made = submit(&mut plain()?, "IORING_OP_SOCKET", &request)?;
    // SAFETY: the ring just gave this process the descriptor, and nobody else knows it.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(made) });
    let to = SocketAddr::from((scene.forbidden, 0));
    let sent: io::Result<usize> = socket.send_to(&[scene.payload(), scene.payload()].concat(), &to.into());
    call("sendto", sent).map(drop)
}
