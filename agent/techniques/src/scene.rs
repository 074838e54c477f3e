//! Where an attempt takes place: who tries, what is forbidden and what permitted, and where things lie.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One scene. Everything in it is on the loopback device of a network namespace without any other device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scene {
    /// The uid that tries.
    pub uid: u32,
    /// A uid that no account has, for helpers who pass things in.
    pub stranger: u32,
    /// The IPv4 address that nothing may reach.
    pub forbidden: Ipv4Addr,
    /// The IPv6 address that nothing may reach.
    pub forbidden_v6: Ipv6Addr,
    /// The port that nothing may reach, on any address.
    pub port: u16,
    /// The endpoint that policy permits.
    pub permitted: SocketAddrV4,
    /// What every payload carries.
    pub marker: String,
    /// A directory that every user can read: copies of the program, a local relay's socket.
    pub directory: PathBuf,
    /// The program that an account is matched by, or a copy that none is.
    pub tool: PathBuf,
    /// The cgroup, below the judged one, that attempts are made in.
    pub inside: PathBuf,
    /// Another cgroup below the judged one.
    pub elsewhere: PathBuf,
    /// Processes that acted beside the first.
    #[serde(skip)]
    pub others: RefCell<Vec<u32>>,
}

impl Scene {
    /// The forbidden endpoint.
    pub fn target(&self) -> SocketAddr {
        SocketAddrV4::new(self.forbidden, self.port).into()
    }

    /// The forbidden endpoint over IPv6.
    pub fn target_v6(&self) -> SocketAddr {
        SocketAddrV6::new(self.forbidden_v6, self.port, 0, 0).into()
    }

    /// The forbidden endpoint as IPv6 writes IPv4.
    pub fn target_mapped(&self) -> SocketAddr {
        SocketAddrV6::new(self.forbidden.to_ipv6_mapped(), self.port, 0, 0).into()
    }

    pub(crate) fn note(&self, pid: u32) {
        self.others.borrow_mut().push(pid);
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.marker.as_bytes()
    }
}
