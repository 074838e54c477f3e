//! Who is on the other end of a connection, from the kernel and never from what it says.

use std::fs;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use nix::unistd::{Gid, Group, Uid, User};
use writ_core::signal::Caller;
use writ_core::table::Identities;

use super::limit::Limited;
use crate::engine::{Actor, Engine};
use crate::process;

/// The peer of one connection, as the kernel gave it when the connection was made.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
    /// Start of the process, in clock ticks: a pid that was reused has another.
    started: Option<u64>,
}

impl Connected<IncomingStream<'_, Limited>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Limited>) -> Self {
        let credentials = stream.io().stream().peer_cred().ok();
        let pid = credentials.as_ref().and_then(tokio::net::unix::UCred::pid);
        Self {
            uid: credentials.as_ref().map(tokio::net::unix::UCred::uid),
            pid,
            started: pid.and_then(process::start_ticks_of),
        }
    }
}

/// A peer that is gone, or whose pid belongs to somebody else by now, is nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the caller could not be identified: it is gone, or not on this host")]
pub(super) struct Unidentified;

impl Peer {
    /// What the host knows of the peer now. `engine` knows which accounts its views lead to.
    pub(super) fn actor(&self, engine: &Engine) -> Result<Actor, Unidentified> {
        let (Some(uid), Some(pid)) = (self.uid, self.pid) else { return Err(Unidentified) };
        if self.started.is_none() || process::start_ticks_of(pid) != self.started {
            return Err(Unidentified);
        }
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let loginuid = fs::read_to_string(format!("/proc/{pid}/loginuid"))
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .filter(|loginuid| *loginuid != u32::MAX);
        let status =
            procfs::process::Process::new(pid).and_then(|process| process.status()).map_err(|_| Unidentified)?;
        let groups = status
            .groups
            .iter()
            .copied()
            .chain([status.egid, status.rgid])
            .filter_map(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten())
            .map(|group| group.name)
            .collect();
        let uids = [Some(uid), loginuid, Some(status.ruid), Some(status.euid), Some(status.suid)];
        let accounts = engine.accounts_of(&uids.into_iter().flatten().collect::<Vec<_>>(), pid.unsigned_abs());
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned());
        let caller = Caller { uid, loginuid, name: user.map(|user| user.name), groups, accounts };
        Ok(Actor { caller, pid: Some(pid.unsigned_abs()), executable })
    }
}

impl Engine {
    /// The accounts that any of these uids, the process's cgroup or its executables (its ancestors' included) lead to.
    pub(crate) fn accounts_of(&self, uids: &[u32], pid: u32) -> Vec<String> {
        let Some(current) = self.current() else { return Vec::new() };
        let mut found: Vec<String> = Vec::new();
        let identities: &Identities = &current.identities;
        let mut lists: Vec<u32> =
            uids.iter().filter_map(|uid| identities.users.get(uid)).map(|(_, list)| *list).collect();
        if let Some(cgroup) = process::cgroup_of(pid) {
            let mut path = cgroup.as_str();
            loop {
                lists.extend(identities.cgroups.get(path));
                lists.extend(path.rsplit('/').next().and_then(|unit| identities.units.get(unit)));
                match path.rsplit_once('/') {
                    Some((parent, _)) if !parent.is_empty() => path = parent,
                    _ => break,
                }
            }
        }
        for (device, inode) in process::executables_of_lineage(pid) {
            lists.extend(identities.executables.get(&(device, inode)).map(|(_, list)| *list));
        }
        for list in lists {
            // Any account that a view could lead to counts: to approve, it is not enough to be only half the subject.
            for account in accounts_in(list, identities) {
                if let Some(name) = current.generation.account_name(u32::from(account)) {
                    found.push(name.to_owned());
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

fn accounts_in(list: u32, identities: &Identities) -> Vec<u16> {
    if list == 0 {
        return Vec::new();
    }
    if let Some(account) = writ_abi::ClauseList(list).account() {
        return vec![account];
    }
    let first = list as usize;
    let length = identities.clauses.get(first).copied().unwrap_or(0) as usize;
    let clauses = identities.clauses.get(first + 1..first + 1 + length).unwrap_or(&[]);
    clauses.iter().map(|clause| writ_abi::Clause(*clause).account()).collect()
}
