//! Sockets that are neither TCP nor UDP over IP: raw, packet, ping, SCTP, and the families that no address hook sees.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::scene::Scene;
use crate::system;
use crate::tried::{Tried, call};

const SMC: i32 = 43;
const IPPROTO_UDP: u8 = 17;

/// Makes a socket; that alone is the way out where no hook sees what comes after.
pub(crate) fn open(family: i32, kind: i32, protocol: i32) -> Tried<Socket> {
    // A type of exactly this number: socket2 adds the close-on-exec flag, which some families refuse, to none of them.
    call("socket", Socket::new_raw(Domain::from(family), Type::from(kind), Some(Protocol::from(protocol))))
}

/// A UDP datagram by hand, and the address to send it to.
fn datagram(scene: &Scene) -> Vec<u8> {
    let length = 8 + scene.payload().len() as u16;
    let mut bytes = Vec::with_capacity(usize::from(length));
    // Source port, destination port, length, no checksum.
    for word in [scene.port, scene.port, length, 0] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(scene.payload());
    bytes
}

/// An IPv4 packet by hand. The kernel fills in what is zero: length, identification, source, checksum.
fn packet(scene: &Scene) -> Vec<u8> {
    let datagram = datagram(scene);
    let length = 20 + datagram.len() as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, IPPROTO_UDP, 0, 0, 127, 0, 0, 1]);
    bytes.extend_from_slice(&scene.forbidden.octets());
    bytes.extend_from_slice(&datagram);
    bytes
}

fn without_port(scene: &Scene) -> SockAddr {
    SocketAddrV4::new(scene.forbidden, 0).into()
}

pub(crate) fn raw(scene: &Scene) -> Tried {
    let socket = open(libc::AF_INET, libc::SOCK_RAW, i32::from(IPPROTO_UDP))?;
    call("sendto", socket.send_to(&datagram(scene), &without_port(scene))).map(drop)
}

pub(crate) fn raw_with_header(scene: &Scene) -> Tried {
    let socket = open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    call("sendto", socket.send_to(&packet(scene), &without_port(scene))).map(drop)
}

pub(crate) fn raw_v6(scene: &Scene) -> Tried {
    let socket = open(libc::AF_INET6, libc::SOCK_RAW, i32::from(IPPROTO_UDP))?;
    let to = SocketAddr::from((scene.forbidden_v6, 0));
    call("sendto", socket.send_to(&datagram(scene), &to.into())).map(drop)
}

/// An echo request by a ping socket, which needs no privilege where `ping_group_range` lets it.
pub(crate) fn ping(scene: &Scene) -> Tried {
    const ECHO_REQUEST: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)?;
    let message = [&ECHO_REQUEST, scene.payload()].concat();
    call("sendto", socket.send_to(&message, &without_port(scene))).map(drop)
}

/// A whole frame on the link layer, below every hook of IP.
pub(crate) fn link_layer(scene: &Scene) -> Tried {
    let socket = open(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let to = system::loopback_link(libc::ETH_P_IP as u16);
    call("sendto", socket.send_to(&packet(scene), &to)).map(drop)
}

pub(crate) fn sctp(scene: &Scene) -> Tried {
    let socket = open(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)?;
    started(&socket, scene.target())
}

pub(crate) fn dccp(scene: &Scene) -> Tried {
    const SOCK_DCCP: i32 = 6;
    let socket = open(libc::AF_INET, SOCK_DCCP, libc::IPPROTO_DCCP)?;
    started(&socket, scene.target())
}

pub(crate) fn udplite(scene: &Scene) -> Tried {
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?;
    call("sendto", socket.send_to(scene.payload(), &scene.target().into())).map(drop)
}

/// A socket that is made for shared memory and falls back to TCP by itself.
pub(crate) fn smc(scene: &Scene) -> Tried {
    let socket = open(SMC, libc::SOCK_STREAM, 0)?;
    started(&socket, scene.target())
}

fn started(socket: &Socket, to: SocketAddr) -> Tried {
    call("setting the socket non-blocking", socket.set_nonblocking(true))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        answered => call("connect", answered),
    }
}

/// A local deputy: a unix socket whose other end may send what this process may not.
pub(crate) fn unix(scene: &Scene) -> Tried {
    call("connect", UnixStream::connect(scene.directory.join("relay.sock"))).map(drop)
}
