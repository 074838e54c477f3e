//! Which services this host runs and whom they talk to, from procfs: units and system users with sockets open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use nix::unistd::{Uid, User};
use procfs::process::{FDTarget, Process, all_processes};

use super::table::{cgroup_of, unit_of};

/// Uids from here on are people (login.defs `UID_MIN`); 65534 is nobody.
const FIRST_PERSON: u32 = 1_000;

/// What a service is known by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    /// A systemd service.
    Unit(String),
    /// A system user.
    User(String),
}

/// A service with sockets open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Service {
    /// What it is known by.
    pub(crate) owner: Owner,
    /// What it runs.
    pub(crate) executables: BTreeSet<String>,
    /// Ports it listens on.
    pub(crate) listens: BTreeSet<u16>,
    /// Whom it is connected to.
    pub(crate) peers: BTreeSet<(IpAddr, u16, &'static str)>,
}

#[derive(Clone, Copy)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    protocol: &'static str,
    listening: bool,
}

/// Every service with an internet socket open, as far as this process may look.
pub(crate) fn services() -> Vec<Service> {
    let mut found: BTreeMap<Owner, (BTreeSet<String>, Vec<Socket>)> = BTreeMap::new();
    // Sockets by network namespace: a process's own view lists all of its namespace.
    let mut namespaces: HashMap<u64, HashMap<u64, Socket>> = HashMap::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let Some(owner) = owner(&process) else { continue };
        let Ok(descriptors) = process.fd() else { continue };
        let Some(namespace) =
            process.namespaces().ok().and_then(|all| Some(all.0.get(std::ffi::OsStr::new("net"))?.identifier))
        else {
            continue;
        };
        let sockets = namespaces.entry(namespace).or_insert_with(|| sockets(&process));
        let own: Vec<Socket> = descriptors
            .flatten()
            .filter_map(|descriptor| match descriptor.target {
                FDTarget::Socket(inode) => sockets.get(&inode).copied(),
                _ => None,
            })
            .collect();
        if own.is_empty() {
            continue;
        }
        let (executables, all) = found.entry(owner).or_default();
        executables.extend(process.exe().ok().map(|path| {
            let path = path.to_string_lossy().into_owned();
            path.trim_end_matches(" (deleted)").to_owned()
        }));
        all.extend(own);
    }
    found.into_iter().map(|(owner, (executables, sockets))| service(owner, executables, &sockets)).collect()
}

fn service(owner: Owner, executables: BTreeSet<String>, sockets: &[Socket]) -> Service {
    let listens: BTreeSet<u16> =
        sockets.iter().filter(|socket| socket.listening).map(|socket| socket.local.port()).collect();
    let peers = sockets
        .iter()
        .filter(|socket| !socket.listening && socket.remote.port() != 0 && !socket.remote.ip().is_unspecified())
        // A connection at a port it listens on was made by the other side.
        .filter(|socket| !listens.contains(&socket.local.port()))
        .map(|socket| (socket.remote.ip().to_canonical(), socket.remote.port(), socket.protocol))
        .collect();
    Service { owner, executables, listens, peers }
}

/// The unit, or the system user, a process belongs to; `None` for people, kernel threads and root's own.
fn owner(process: &Process) -> Option<Owner> {
    let pid = process.pid().unsigned_abs();
    if let Some(unit) = cgroup_of(pid).as_deref().and_then(unit_of)
        && unit.ends_with(".service")
        && !unit.starts_with("user@")
        && unit != "writ.service"
    {
        return Some(Owner::Unit(unit));
    }
    let uid = process.uid().ok()?;
    if uid == 0 || uid >= FIRST_PERSON {
        return None;
    }
    Some(Owner::User(User::from_uid(Uid::from_raw(uid)).ok()??.name))
}

fn sockets(process: &Process) -> HashMap<u64, Socket> {
    use procfs::net::TcpState;
    let mut found = HashMap::new();
    for entry in process.tcp().into_iter().chain(process.tcp6()).flatten() {
        let listening = entry.state == TcpState::Listen;
        if listening || matches!(entry.state, TcpState::Established | TcpState::SynSent | TcpState::CloseWait) {
            let socket =
                Socket { local: entry.local_address, remote: entry.remote_address, protocol: "tcp", listening };
            found.insert(entry.inode, socket);
        }
    }
    for entry in process.udp().into_iter().chain(process.udp6()).flatten() {
        let listening = entry.remote_address.port() == 0;
        let socket = Socket { local: entry.local_address, remote: entry.remote_address, protocol: "udp", listening };
        found.insert(entry.inode, socket);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_at_a_port_it_listens_on_is_no_destination() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let socket =
            |local, remote, listening| Socket { local: at(local), remote: at(remote), protocol: "tcp", listening };
        let found = service(
            Owner::User("web".into()),
            BTreeSet::new(),
            &[
                socket("0.0.0.0:80", "0.0.0.0:0", true),
                socket("10.0.0.1:80", "10.9.9.9:40000", false),
                socket("[::ffff:10.0.0.1]:50000", "[::ffff:10.0.0.7]:5432", false),
            ],
        );
        assert_eq!(found.listens, BTreeSet::from([80]));
        assert_eq!(found.peers, BTreeSet::from([("10.0.0.7".parse().unwrap(), 5432, "tcp")]));
    }
}
