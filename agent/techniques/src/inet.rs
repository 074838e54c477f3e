//! TCP and UDP in every form that the kernel takes a destination in.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

use crate::scene::Scene;
use crate::system;
use crate::tried::{Tried, call};

/// A lost packet must not hang anybody.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A socket for this address.
///
/// # Errors
/// The kernel's errno.
pub fn socket(to: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// A TCP socket that is closed at once and without TIME_WAIT, or a loop would run out of ports.
fn stream(to: SocketAddr) -> io::Result<Socket> {
    let socket = socket(to, Type::STREAM)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Connects a TCP socket.
///
/// # Errors
/// The kernel's errno.
pub fn tcp(to: SocketAddr) -> io::Result<()> {
    stream(to)?.connect(&to.into())
}

/// Begins to connect a TCP socket; that it is under way is success.
///
/// # Errors
/// The kernel's errno.
pub fn tcp_start(to: SocketAddr) -> io::Result<()> {
    let socket = stream(to)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        answered => answered,
    }
}

/// TCP Fast Open: `sendto` with `MSG_FASTOPEN`.
///
/// # Errors
/// The kernel's errno.
pub fn fast_open(to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    socket(to, Type::STREAM)?.send_to_with_flags(payload, &to.into(), libc::MSG_FASTOPEN).map(drop)
}

/// Connects a UDP socket, which sends nothing.
///
/// # Errors
/// The kernel's errno.
pub fn udp_judge(to: SocketAddr) -> io::Result<()> {
    socket(to, Type::DGRAM)?.connect(&to.into())
}

/// Connects a UDP socket and sends a datagram.
///
/// # Errors
/// The kernel's errno.
pub fn udp_connect(to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let socket = socket(to, Type::DGRAM)?;
    socket.connect(&to.into())?;
    socket.send(payload).map(drop)
}

/// Sends a datagram from an unconnected UDP socket.
///
/// # Errors
/// The kernel's errno.
pub fn udp_send(to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    socket(to, Type::DGRAM)?.send_to(payload, &to.into()).map(drop)
}

/// Sends one datagram to each address in one call; how many the kernel took.
///
/// # Errors
/// The kernel's errno for the first.
pub fn send_many(to: &[SocketAddr], payload: &[u8]) -> io::Result<usize> {
    let Some(first) = to.first() else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
    let socket = socket(*first, Type::DGRAM)?;
    let names: Vec<Option<SockaddrStorage>> = to.iter().map(|address| Some((*address).into())).collect();
    let messages = vec![[IoSlice::new(payload)]; to.len()];
    let mut headers = MultiHeaders::preallocate(to.len(), None);
    Ok(sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &names, [], MsgFlags::empty())?.count())
}

pub(crate) fn tcp_connect(scene: &Scene) -> Tried {
    call("connect", tcp(scene.target()))
}

pub(crate) fn tcp_connect_nonblocking(scene: &Scene) -> Tried {
    call("connect", tcp_start(scene.target()))
}

pub(crate) fn tcp_connect_v6(scene: &Scene) -> Tried {
    call("connect", tcp(scene.target_v6()))
}

pub(crate) fn tcp_mapped(scene: &Scene) -> Tried {
    call("connect", tcp(scene.target_mapped()))
}

pub(crate) fn tcp_any(scene: &Scene) -> Tried {
    call("connect", tcp((Ipv4Addr::UNSPECIFIED, scene.port).into()))
}

pub(crate) fn tcp_any_v6(scene: &Scene) -> Tried {
    call("connect", tcp((Ipv6Addr::UNSPECIFIED, scene.port).into()))
}

pub(crate) fn tfo_sendto(scene: &Scene) -> Tried {
    call("sendto", fast_open(scene.target(), scene.payload()))
}

pub(crate) fn tfo_sendmsg_v6(scene: &Scene) -> Tried {
    let (to, data) = (SockAddr::from(scene.target_v6()), [IoSlice::new(scene.payload())]);
    let socket = call("socket", socket(scene.target_v6(), Type::STREAM))?;
    let message = MsgHdr::new().with_addr(&to).with_buffers(&data);
    call("sendmsg", socket.sendmsg(&message, libc::MSG_FASTOPEN)).map(drop)
}

/// `TCP_FASTOPEN_CONNECT`: the connect may return before anything is sent, and the first write connects.
pub(crate) fn tfo_connect(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::STREAM))?;
    let on = 1i32.to_ne_bytes();
    call("setsockopt", system::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &on))?;
    call("connect", socket.connect(&scene.target().into()))?;
    call("send", socket.send(scene.payload())).map(drop)
}

pub(crate) fn mptcp(scene: &Scene) -> Tried {
    let socket = call("socket", Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)))?;
    call("connect", socket.connect(&scene.target().into()))
}

pub(crate) fn udp_connect_send(scene: &Scene) -> Tried {
    call("connect", udp_connect(scene.target(), scene.payload()))
}

pub(crate) fn udp_sendto(scene: &Scene) -> Tried {
    call("sendto", udp_send(scene.target(), scene.payload()))
}

pub(crate) fn udp_sendto_v6(scene: &Scene) -> Tried {
    call("sendto", udp_send(scene.target_v6(), scene.payload()))
}

pub(crate) fn udp_mapped(scene: &Scene) -> Tried {
    call("sendto", udp_send(scene.target_mapped(), scene.payload()))
}

pub(crate) fn udp_any(scene: &Scene) -> Tried {
    call("sendto", udp_send((Ipv4Addr::UNSPECIFIED, scene.port).into(), scene.payload()))
}

pub(crate) fn udp_sendmsg(scene: &Scene) -> Tried {
    let (to, data) = (SockAddr::from(scene.target()), [IoSlice::new(scene.payload())]);
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    call("sendmsg", socket.sendmsg(&MsgHdr::new().with_addr(&to).with_buffers(&data), 0)).map(drop)
}

/// The permitted endpoint first, the forbidden one behind it in the same call.
pub(crate) fn udp_sendmmsg(scene: &Scene) -> Tried {
    let sent = call("sendmmsg", send_many(&[scene.permitted.into(), scene.target()], scene.payload()))?;
    // The kernel reports the error of a later message with the next call.
    if sent > 1 { Ok(()) } else { call("sendmmsg", send_many(&[scene.target()], scene.payload())).map(drop) }
}

/// A datagram whose address names no family: the kernel takes it for IPv4.
pub(crate) fn udp_unspecified_name(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    let to = system::unspecified(std::net::SocketAddrV4::new(scene.forbidden, scene.port));
    call("sendto", socket.send_to(scene.payload(), &to)).map(drop)
}

/// An IPv4 address given to an IPv6 socket as it is, not mapped.
pub(crate) fn udp_v4_name_on_v6(scene: &Scene) -> Tried {
    let socket = call("socket", Socket::new(Domain::IPV6, Type::DGRAM, None))?;
    call("sendto", socket.send_to(scene.payload(), &scene.target().into())).map(drop)
}

/// Connect where it is permitted, dissolve (AF_UNSPEC, which no connect hook sees), connect elsewhere.
pub(crate) fn unspec_reconnect(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    call("first connect", socket.connect(&SockAddr::from(scene.permitted)))?;
    call("dissolving connect", socket.connect(&system::unspecified(scene.permitted)))?;
    call("second connect", socket.connect(&scene.target().into()))?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// The same for TCP: a connection that is dissolved leaves a socket that connects again.
pub(crate) fn tcp_unspec_reconnect(scene: &Scene) -> Tried {
    let socket = call("socket", stream(scene.target()))?;
    call("first connect", socket.connect(&SockAddr::from(scene.permitted)))?;
    call("dissolving connect", socket.connect(&system::unspecified(scene.permitted)))?;
    call("second connect", socket.connect(&scene.target().into()))
}

/// Another destination for a connected UDP socket.
pub(crate) fn udp_reconnect(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    call("first connect", socket.connect(&SockAddr::from(scene.permitted)))?;
    call("second connect", socket.connect(&scene.target().into()))?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// An address given with a message, on a socket that is connected where it may be.
pub(crate) fn name_on_connected_udp(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    call("connect", socket.connect(&SockAddr::from(scene.permitted)))?;
    call("sendto", socket.send_to(scene.payload(), &scene.target().into())).map(drop)
}

/// A permitted address given with a message, on a socket that the forbidden connect has left as it was.
pub(crate) fn permitted_name_after_refusal(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    call("connect", socket.connect(&scene.target().into()))?;
    call("sendto", socket.send_to(scene.payload(), &SockAddr::from(scene.permitted)))?;
    call("send", socket.send(scene.payload())).map(drop)
}

/// Loose source routing: the packet goes to the first hop, while the address given is the last one, which is permitted.
pub(crate) fn source_route(scene: &Scene) -> Tried {
    let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
    routed(scene, &socket)?;
    call("sendto", socket.send_to(scene.payload(), &SockAddr::from(scene.permitted))).map(drop)
}

/// The same for TCP: its handshake goes to the first hop.
pub(crate) fn source_route_tcp(scene: &Scene) -> Tried {
    let socket = call("socket", stream(scene.target()))?;
    call("setting the socket non-blocking", socket.set_nonblocking(true))?;
    routed(scene, &socket)?;
    match socket.connect(&SockAddr::from(scene.permitted)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        answered => call("connect", answered),
    }
}

fn routed(scene: &Scene, socket: &Socket) -> Tried {
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    let ([a, b, c, d], [e, f, g, h]) = (scene.forbidden.octets(), scene.permitted.ip().octets());
    // Type, length, pointer to the next hop, the hops; padded to four bytes.
    let option = [LOOSE_SOURCE_ROUTE, 11, 4, a, b, c, d, e, f, g, h, 0];
    call("setsockopt IP_OPTIONS", system::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &option))
}

/// A question to a resolver that policy does not name.
pub(crate) fn dns_elsewhere(scene: &Scene) -> Tried {
    call("sendto", udp_send((scene.forbidden, 53).into(), scene.payload()))
}

/// The same over TCP.
pub(crate) fn dns_elsewhere_tcp(scene: &Scene) -> Tried {
    call("connect", tcp_start((scene.forbidden, 53).into()))
}

/// `socketcall` through the 32-bit gate, which tables of 64-bit system calls do not list.
pub(crate) fn socketcall_32bit(scene: &Scene) -> Tried {
    system::in_child(scene, || {
        let socket = call("socket", socket(scene.target(), Type::DGRAM))?;
        let to = std::net::SocketAddrV4::new(scene.forbidden, scene.port);
        call("socketcall", system::connect_32bit(socket.as_fd(), to))?;
        call("send", socket.send(scene.payload())).map(drop)
    })
}

/// Fills the ring of decisions: attempts that are permitted, so that each makes a record, and are not read by anybody.
pub(crate) fn after_a_flood(scene: &Scene) -> Tried {
    const MORE_THAN_FIT: usize = 2_000;
    for _ in 0..MORE_THAN_FIT {
        // That one is refused is no matter here.
        let _ = udp_judge(scene.permitted.into());
    }
    udp_sendto(scene)
}
