//! Who is on the other end of a connection, from the kernel and never from what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixStream;
use writ_core::record::AskedBy;
use writ_core::signal::Caller;
use writ_core::table::{Identities, Subordinates};

use super::quiet::Arrival;
use super::sight::{Process, Sight, Sighting, Sightings};
use crate::engine::{Actor, Asking, Engine};
use crate::process;

/// The peer of one connection.
#[derive(Clone, Debug)]
pub(super) struct Peer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Local(Local),
    Remote(Remote),
}

/// A process of this host, as the kernel gave it when the connection was made.
#[derive(Clone, Debug)]
struct Local {
    uid: Option<u32>,
    /// `None`: it was gone already, or is none of this host's.
    process: Option<Process>,
    /// What was seen of it last.
    seen: Arc<Sighting>,
    arrival: Arrival,
}

/// The peer, with what the host says of it now: for the engine, which asks the host nothing more.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    peer: Peer,
    /// `None` of a remote one, and of one that is gone.
    sight: Option<Arc<Sight>>,
    /// When what it asks was received.
    asked: Instant,
}

/// A caller on another host.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    /// The declared caller, once it is known.
    pub(super) name: Option<String>,
    pub(super) address: SocketAddr,
    /// How it is known.
    pub(super) by: &'static str,
}

impl Remote {
    /// Somebody who has not said who it is.
    pub(super) fn unknown(address: SocketAddr) -> Self {
        Self { name: None, address, by: "nothing" }
    }

    /// The caller as the account that configuration names for it now.
    fn actor(&self, engine: &Engine) -> Result<Actor, Unidentified> {
        let name = self.name.as_ref().ok_or(Unidentified)?;
        let current = engine.current().ok_or(Unidentified)?;
        let https = current.config.agent.https.as_ref().ok_or(Unidentified)?;
        let account = https.callers.get(name).map(|caller| caller.account.clone()).ok_or(Unidentified)?;
        let mut actor = Actor::remote(&self.address.to_string());
        actor.caller.accounts = vec![account.clone()];
        actor.asked_by =
            Some(AskedBy { caller: name.clone(), account, address: self.address.to_string(), by: self.by.to_owned() });
        Ok(actor)
    }
}

/// A peer that is gone, or whose pid belongs to somebody else by now, is nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the caller could not be identified: it is gone, not on this host, not declared, or a process that it descends from cannot be \
     read"
)]
pub(super) struct Unidentified;

impl Peer {
    /// The process at the other end.
    pub(super) fn local(stream: &UnixStream, sightings: &Sightings, arrival: Arrival) -> Self {
        let credentials = stream.peer_cred().ok();
        let pid = credentials.as_ref().and_then(tokio::net::unix::UCred::pid);
        let uid = credentials.as_ref().map(tokio::net::unix::UCred::uid);
        let started = pid.and_then(process::start_ticks_of);
        let process = uid.zip(pid).zip(started).map(|((uid, pid), started)| (uid, pid, started));
        let seen = process.map_or_else(|| Arc::new(Sighting::of_nobody()), |process| sightings.of(process));
        Self(Kind::Local(Local { uid, process, seen, arrival }))
    }

    /// A caller on another host.
    pub(super) const fn remote(remote: Remote) -> Self {
        Self(Kind::Remote(remote))
    }

    /// The caller on another host, if it is one.
    pub(super) const fn as_remote(&self) -> Option<&Remote> {
        match &self.0 {
            Kind::Remote(remote) => Some(remote),
            Kind::Local(_) => None,
        }
    }

    /// What can be said of a peer that is nobody here.
    fn unknown(&self) -> Actor {
        match &self.0 {
            Kind::Remote(remote) => Actor::remote(&remote.address.to_string()),
            // The uid is the kernel's word, whatever became of the process.
            Kind::Local(local) => {
                Actor { caller: Caller { uid: local.uid.unwrap_or(u32::MAX), ..Caller::default() }, ..Actor::default() }
            }
        }
    }

    /// Whose requests count together.
    pub(super) fn who(&self) -> String {
        match &self.0 {
            Kind::Local(local) => local.uid.map(|uid| uid.to_string()).unwrap_or_default(),
            Kind::Remote(remote) => remote.name.clone().unwrap_or_else(|| remote.address.ip().to_string()),
        }
    }

    /// Asks the host who the peer is, unless that was done a moment ago.
    pub(super) async fn look(&self) -> Looked {
        let asked = match &self.0 {
            Kind::Local(local) => local.arrival.at(),
            Kind::Remote(_) => Instant::now(),
        };
        let sight = match &self.0 {
            Kind::Local(Local { process: Some(process), seen, .. }) => seen.look(*process).await,
            Kind::Local(_) | Kind::Remote(_) => None,
        };
        Looked { peer: self.clone(), sight, asked }
    }
}

impl Looked {
    /// Whether the peer was an actor before.
    pub(super) fn is_known(&self) -> bool {
        match &self.peer.0 {
            Kind::Local(local) => local.seen.is_known(),
            Kind::Remote(_) => true,
        }
    }

    /// What is known of the peer now. `engine` knows which accounts its views lead to.
    pub(super) fn actor(&self, engine: &Engine) -> Result<Actor, Unidentified> {
        let actor = match &self.peer.0 {
            Kind::Local(local) => local.actor(self.sight.as_ref().ok_or(Unidentified)?, engine),
            Kind::Remote(remote) => remote.actor(engine),
        }?;
        Ok(Actor { asked: Some(self.asked), ..actor })
    }

    /// The same, or what can be said of a peer that is nobody here.
    pub(super) fn anybody(&self, engine: &Engine) -> Actor {
        self.actor(engine).unwrap_or_else(|_| self.peer.unknown())
    }
}

impl Local {
    fn actor(&self, sight: &Arc<Sight>, engine: &Engine) -> Result<Actor, Unidentified> {
        let (uid, pid, started) = self.process.ok_or(Unidentified)?;
        let ended = || process::start_ticks_of(pid) != Some(started);
        if self.seen.has_ended().unwrap_or_else(ended) {
            return Err(Unidentified);
        }
        let generation = engine.current().map_or(0, |current| current.generation.active);
        Ok(self.seen.actor(sight, generation, || actor(uid, pid.unsigned_abs(), sight, engine)))
    }
}

/// A process as the accounts that its views lead to.
fn actor(uid: u32, pid: u32, sight: &Sight, engine: &Engine) -> Actor {
    let executables: Vec<(u32, u64)> = sight.lineage.iter().filter_map(|process| process.executable).collect();
    let accounts = engine.accounts_of(&sight.uids, sight.cgroup.as_deref(), &executables);
    let mut origins = engine.accounts_of(&engine.processes.uids_of(&sight.lineage), None, &[]);
    origins.retain(|origin| !accounts.contains(origin));
    let (name, groups, loginuid) = (sight.user.clone(), sight.groups.clone(), sight.loginuid);
    let caller = Caller { uid, loginuid, name, groups, accounts, origins, transmitter: false };
    let asking = Arc::new(Asking::new(pid, &engine.kernel.cgroup().root));
    let executable = sight.executable.clone();
    Actor { caller, pid: Some(pid), executable, process: Some(asking), ..Actor::default() }
}

impl Engine {
    /// The accounts that any of these uids, a cgroup or executables (device and inode) lead to.
    pub(crate) fn accounts_of(&self, uids: &[u32], cgroup: Option<&str>, executables: &[(u32, u64)]) -> Vec<String> {
        let Some(current) = self.current() else { return Vec::new() };
        let mut found: Vec<String> = Vec::new();
        let identities: &Identities = &current.identities;
        // A uid that is somebody's subordinate is that user's, besides being itself.
        let owners = uids.iter().map(|uid| Subordinates::owner_of(&identities.subordinates, *uid));
        let all = uids.iter().copied().chain(owners);
        let mut lists: Vec<u32> = all.filter_map(|uid| identities.users.get(&uid)).map(|(_, list)| *list).collect();
        if let Some(mut path) = cgroup {
            loop {
                lists.extend(identities.cgroups.get(path));
                lists.extend(path.rsplit('/').next().and_then(|unit| identities.units.get(unit)));
                match path.rsplit_once('/') {
                    Some((parent, _)) if !parent.is_empty() => path = parent,
                    _ => break,
                }
            }
        }
        lists.extend(executables.iter().filter_map(|file| identities.executables.get(file)).map(|(_, list)| *list));
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
