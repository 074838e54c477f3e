//! Finding and closing sockets from outside, in any network namespace: NETLINK_SOCK_DIAG (sock_diag(7)).
//!
//! Written here rather than taken from a crate: two requests of 72 fixed bytes and one answer of 72, no attributes, and the
//! crates for it (netlink-packet-sock-diag) stop short of SOCK_DESTROY.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use writ_abi::{Protocol, Session};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// `inet_diag_msg`
const ANSWER: usize = 72;
/// Every TCP state but TIME_WAIT (6), CLOSE (7) and LISTEN (10): nothing flows in those. A connected UDP socket is
/// ESTABLISHED.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);
const LISTEN: u32 = 1 << 10;
/// Families of sockets with addresses.
pub(crate) const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];
/// `INET_DIAG_CGROUP_ID`
const CGROUP_ID: u16 = 21;
/// The kernel answers at once or not at all.
const TIMEOUT_SECONDS: i64 = 2;

/// One socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Socket {
    /// Its cookie.
    pub cookie: u64,
    /// Its protocol.
    pub protocol: Protocol,
    /// The near end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// The inode by which `/proc/PID/fd` names it; 0 once nobody holds it.
    pub inode: u32,
    /// Who made it.
    pub uid: u32,
    /// The cgroup it was made in (Linux 5.9).
    pub cgroup: Option<u64>,
    family: u8,
    id: [u8; ID],
}

impl Socket {
    /// The socket of a session, as its last connect and its first packet say it is; `None` before that packet. Whether it is
    /// there is for the kernel to say, which compares the cookie.
    pub(crate) fn of_session(session: &Session) -> Option<Self> {
        let protocol = Protocol::from_bits(session.protocol).filter(|_| session.source_port != 0)?;
        let [local, remote] = [(session.source, session.source_port), (session.address, session.port)]
            .map(|(address, port)| SocketAddr::new(IpAddr::from(address).to_canonical(), port));
        let family = if remote.is_ipv4() && local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let (cookie, inode, uid, cgroup) = (session.cookie, 0, 0, None);
        let mut socket = Self { cookie, protocol, local, remote, inode, uid, cgroup, family, id: [0; ID] };
        socket.id = socket.identified();
        Some(socket)
    }

    /// `inet_diag_sockid` of these ends and this cookie, whatever the interface.
    fn identified(&self) -> [u8; ID] {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            IpAddr::V6(address) => address.octets(),
        };
        let ports = [self.local.port(), self.remote.port()].into_iter().flat_map(u16::to_be_bytes);
        let addresses = [self.local.ip(), self.remote.ip()].into_iter().flat_map(octets);
        let cookie = [self.cookie as u32, (self.cookie >> 32) as u32].into_iter().flat_map(u32::to_ne_bytes);
        let mut id = [0; ID];
        let bytes = ports.chain(addresses).chain([0; 4]).chain(cookie);
        id.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        id
    }

    /// Whether this connection came in at a port that is listened on: the other side made it. The kernel does not keep who
    /// did, so a connection whose listener is gone looks like one that was made here.
    pub(crate) fn accepted_at(&self, listening: &[SocketAddr]) -> bool {
        self.protocol == Protocol::Tcp
            && listening
                .iter()
                .any(|at| at.port() == self.local.port() && (at.ip().is_unspecified() || at.ip() == self.local.ip()))
    }
}

/// A way to ask about the sockets of one network namespace. It keeps the namespace alive: not for keeping.
#[derive(Debug)]
pub(crate) struct Diag {
    netlink: OwnedFd,
}

impl Diag {
    /// For the namespace of this thread.
    ///
    /// # Errors
    /// The kernel has no sock_diag.
    pub(crate) fn here() -> io::Result<Self> {
        let netlink =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::NetlinkSockDiag))?;
        setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT_SECONDS, 0))?;
        setsockopt(&netlink, sockopt::RcvBuf, &(1 << 20))?;
        Ok(Self { netlink })
    }

    /// For the namespace with this cookie: this thread's own, that of the process `pid`, or whichever process is in it.
    ///
    /// # Errors
    /// No process is in it any more (a socket can outlive them), or it cannot be entered.
    pub(crate) fn of(netns: u64, pid: u32) -> io::Result<Self> {
        let here = Self::here()?;
        if here.netns() == Some(netns) {
            return Ok(here);
        }
        let mut tried = BTreeSet::new();
        for pid in std::iter::once(pid).chain(processes()) {
            let Ok(namespace) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            let Ok(inode) = namespace.metadata().map(|found| found.ino()) else { continue };
            if !tried.insert(inode) {
                continue;
            }
            if let Ok(there) = Self::inside(&namespace)
                && there.netns() == Some(netns)
            {
                return Ok(there);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no process is in the network namespace {netns}")))
    }

    /// For every network namespace that a process is in, or that is mounted somewhere (`ip netns`): this thread's first.
    ///
    /// # Errors
    /// The kernel has no sock_diag. A namespace that cannot be entered is left out, and counted in the second part.
    pub(crate) fn everywhere() -> io::Result<(Vec<Self>, usize)> {
        let own = fs::metadata("/proc/thread-self/ns/net")?.ino();
        let mut tried = BTreeSet::from([own]);
        let (mut found, mut closed) = (vec![Self::here()?], 0);
        let of_processes = processes().map(|pid| format!("/proc/{pid}/ns/net"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = mounts.lines().filter(|line| line.contains(" - nsfs ")).filter_map(|line| line.split(' ').nth(4));
        for path in of_processes.chain(mounted.map(str::to_owned)) {
            let Ok(namespace) = File::open(path) else { continue };
            let Ok(inode) = namespace.metadata().map(|found| found.ino()) else { continue };
            if !tried.insert(inode) {
                continue;
            }
            match Self::inside(&namespace) {
                Ok(there) => found.push(there),
                // Not a network namespace, or one that may not be entered.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(_) => closed += 1,
            }
        }
        Ok((found, closed))
    }

    /// For the namespace of a file below `/proc`.
    fn inside(namespace: &File) -> io::Result<Self> {
        // A thread of its own, which ends in the other namespace: no other work can land there.
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Self::here()
            });
            opened.join().unwrap_or_else(|_| Err(io::Error::other("entering a network namespace failed")))
        })
    }

    /// Cookie of the namespace.
    pub(crate) fn netns(&self) -> Option<u64> {
        const SO_NETNS_COOKIE: i32 = 71;
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is what `cookie` has.
        let result = unsafe {
            libc::getsockopt(
                self.netlink.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        (result == 0).then_some(cookie)
    }

    fn send(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        protocol: Protocol,
        states: u32,
        id: &[u8; ID],
    ) -> io::Result<()> {
        let number = match protocol {
            Protocol::Tcp => 6u8,
            Protocol::Udp => 17,
        };
        let mut message = Vec::with_capacity(HEADER + 8 + ID);
        message.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend([0; 8]); // sequence, port
        message.extend([family, number, 0, 0]);
        message.extend(states.to_ne_bytes());
        message.extend(id);
        sendto(self.netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Every connected socket of a protocol, IPv4 and IPv6.
    ///
    /// # Errors
    /// The kernel cannot list them: the modules `tcp_diag` and `udp_diag` may be missing.
    pub(crate) fn connected(&self, protocol: Protocol) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            found.extend(self.connected_to(protocol, family, 0)?);
        }
        Ok(found)
    }

    /// The same of one family, and only those whose far end is this port (0: any): the kernel passes over all others, but it
    /// walks its whole table, which takes milliseconds on a host with much memory.
    ///
    /// # Errors
    /// As [`Diag::connected`].
    pub(crate) fn connected_to(&self, protocol: Protocol, family: u8, port: u16) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        let mut id = [0; ID];
        if let Some(far) = id.get_mut(2..4) {
            far.copy_from_slice(&port.to_be_bytes());
        }
        self.send(SOCK_DIAG_BY_FAMILY, DUMP, family, protocol, STATES, &id)?;
        self.read(1 << 16, |body| found.extend(socket_of(body, protocol)))?;
        Ok(found)
    }

    /// The socket, as the kernel has it now, if it still leads there: one that was disconnected since, or listens, is found by
    /// the same addresses and cookie.
    ///
    /// # Errors
    /// ENOENT: it does not, or is gone.
    pub(crate) fn where_it_was(&self, socket: &Socket) -> io::Result<Socket> {
        let mut id = socket.id;
        if socket.protocol == Protocol::Udp {
            // udp_dump_one() in net/ipv4/udp_diag.c takes them the other way round, "for historical reasons".
            id = Socket { local: socket.remote, remote: socket.local, ..socket.clone() }.identified();
        }
        let mut found = None;
        self.send(SOCK_DIAG_BY_FAMILY, ACKNOWLEDGE, socket.family, socket.protocol, STATES, &id)?;
        self.read(1 << 10, |body| {
            let flows = body.get(1).is_some_and(|state| STATES >> state & 1 == 1);
            found = socket_of(body, socket.protocol).filter(|_| flows);
        })?;
        found
            .filter(|found| found.cookie == socket.cookie && found.remote == socket.remote)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Where TCP is listened on.
    ///
    /// # Errors
    /// The kernel cannot list it.
    pub(crate) fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            self.send(SOCK_DIAG_BY_FAMILY, DUMP, family, Protocol::Tcp, LISTEN, &[0; ID])?;
            self.read(1 << 16, |body| found.extend(socket_of(body, Protocol::Tcp).map(|socket| socket.local)))?;
        }
        Ok(found)
    }

    /// Closes a socket under its owner: the peer gets a reset, the owner ECONNABORTED.
    ///
    /// # Errors
    /// ENOENT: it is gone.
    pub(crate) fn destroy(&self, socket: &Socket) -> io::Result<()> {
        self.send(SOCK_DESTROY, ACKNOWLEDGE, socket.family, socket.protocol, STATES, &socket.id)?;
        self.read(1 << 10, |_| ())
    }

    /// Reads answers up to the end of them, `most` bytes at a time.
    fn read(&self, most: usize, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0u8; most];
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or(&[]);
            while rest.len() >= HEADER {
                let size = word(rest, 0) as usize;
                let kind = (word(rest, 4) & 0xffff) as u16;
                let body = rest.get(HEADER..size.max(HEADER)).unwrap_or(&[]);
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match word(body, 0).cast_signed() {
                            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                            _ => Ok(()),
                        };
                    }
                    _ => take(body),
                }
                rest = rest.get(size.max(HEADER).next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A 64-bit attribute behind an answer (rtnetlink(7)): length, type, value.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<u64> {
    while rest.len() >= 4 {
        let size = (word(rest, 0) & 0xffff) as usize;
        if (word(rest, 0) >> 16) as u16 == wanted {
            return Some(u64::from(word(rest, 4)) | u64::from(word(rest, 8)) << 32);
        }
        rest = rest.get(size.max(4).next_multiple_of(4)..).unwrap_or(&[]);
    }
    None
}

fn socket_of(answer: &[u8], protocol: Protocol) -> Option<Socket> {
    let cgroup = answer.get(ANSWER..).and_then(|rest| attribute(rest, CGROUP_ID));
    let answer = answer.get(..ANSWER)?;
    let family = *answer.first()?;
    let id: [u8; ID] = answer.get(4..4 + ID)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            let octets: [u8; 4] = id.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(octets))
        } else {
            let octets: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
        }
    };
    Some(Socket {
        cookie: u64::from(word(&id, 40)) | u64::from(word(&id, 44)) << 32,
        protocol,
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        inode: word(answer, 68),
        uid: word(answer, 64),
        cgroup,
        family,
        id,
    })
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_connection_of_our_own_is_found_and_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let diag = Diag::here().unwrap();
        let port = listener.local_addr().unwrap().port();
        let listed: Vec<Socket> =
            FAMILIES.iter().flat_map(|family| diag.connected_to(Protocol::Tcp, *family, port).unwrap()).collect();
        assert!(listed.iter().all(|socket| socket.remote.port() == port), "{listed:?}");
        let all = diag.connected(Protocol::Tcp).unwrap();
        assert!(all.len() > listed.len(), "the accepted end is one more");
        let found = listed.iter().find(|socket| socket.local == near.local_addr().unwrap()).unwrap();
        assert_eq!(found.remote, listener.local_addr().unwrap());
        assert!(found.inode != 0 && found.cookie != 0);
        assert_eq!(found.uid, nix::unistd::getuid().as_raw());
        assert!(found.cgroup.is_some_and(|cgroup| cgroup != 0));
        let listening = diag.listening().unwrap();
        assert!(!found.accepted_at(&listening));
        let accepted = all.iter().find(|socket| socket.remote == near.local_addr().unwrap()).unwrap();
        assert!(accepted.accepted_at(&listening));

        diag.destroy(found).unwrap();

        assert_eq!(near.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
        assert_eq!(far.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
        assert_eq!(diag.destroy(found).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    fn disconnect(socket: &UdpSocket) {
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        // SAFETY: the address is whole and outlives the call.
        let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as u32) };
        assert_eq!(result, 0);
    }

    #[test]
    fn the_socket_of_a_session_is_ended_without_a_search_and_only_if_it_is_that_one() {
        let session = |socket: &Socket, protocol: Protocol| Session {
            cookie: socket.cookie,
            address: socket.remote.ip().to_canonical().into(),
            port: socket.remote.port(),
            source: socket.local.ip().to_canonical().into(),
            source_port: socket.local.port(),
            protocol: protocol as u8,
            ..crate::kernel::session::NO_SESSION
        };
        let diag = Diag::here().unwrap();
        for (listen, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("127.0.0.1:0", "::ffff:127.0.0.1")] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut near = TcpStream::connect((to, port)).unwrap();
            let listed: Vec<Socket> =
                FAMILIES.iter().flat_map(|family| diag.connected_to(Protocol::Tcp, *family, port).unwrap()).collect();
            let session = session(listed.first().unwrap(), Protocol::Tcp);
            let another = Session { cookie: session.cookie + 1, ..session };
            let refused = diag.where_it_was(&Socket::of_session(&another).unwrap());
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT), "{to}");
            let found = diag.where_it_was(&Socket::of_session(&session).unwrap()).unwrap();
            diag.destroy(&found).unwrap();
            assert_eq!(near.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED), "{to}");
            assert!(Socket::of_session(&Session { source_port: 0, ..session }).is_none(), "it has sent nothing");
        }
        // Bound by number, it keeps its port when it is disconnected.
        let free = UdpSocket::bind("127.0.0.93:0").unwrap().local_addr().unwrap();
        let (near, far) = (UdpSocket::bind(free).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        let port = far.local_addr().unwrap().port();
        let listed = diag.connected_to(Protocol::Udp, libc::AF_INET as u8, port).unwrap();
        let session = session(listed.first().unwrap(), Protocol::Udp);
        let socket = Socket::of_session(&session).unwrap();
        let found = diag.where_it_was(&socket).unwrap();
        assert_eq!((found.local, found.cookie), (near.local_addr().unwrap(), socket.cookie));
        // Disconnected, it is still found by its addresses and cookie, and is no session any more.
        disconnect(&near);
        assert_eq!(diag.where_it_was(&socket).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        near.connect(far.local_addr().unwrap()).unwrap();
        diag.destroy(&diag.where_it_was(&socket).unwrap()).unwrap();
        assert_eq!(near.recv(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
    }

    #[test]
    fn the_namespace_of_this_process_is_found_by_its_cookie() {
        let netns = Diag::here().unwrap().netns().unwrap();
        assert_eq!(Diag::of(netns, std::process::id()).unwrap().netns(), Some(netns));
        assert!(Diag::of(u64::MAX, 0).is_err());
        assert!(Diag::everywhere().unwrap().0.iter().any(|diag| diag.netns() == Some(netns)));
    }
}
