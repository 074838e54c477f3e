//! Who is on the other end of a connection, from the kernel and never from what it says.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixStream;
use writ_core::record::AskedBy;
use writ_core::signal::Caller;
use writ_core::table::{Identities, Subordinates};

use crate::engine::{Actor, Asking, Engine};
use crate::kernel::process_descriptor;
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
    pid: Option<i32>,
    /// Start of the process, in clock ticks: a pid that was reused has another.
    started: Option<u64>,
    /// What was seen of it last.
    seen: Arc<Sighting>,
}

/// What was seen of the processes that have connections open: those of one process share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings(Arc<Mutex<HashMap<Process, Weak<Sighting>>>>);

/// A process, and as whom it connected: uid, pid, start in clock ticks.
type Process = (u32, i32, u64);

/// One process: itself, as long as it lives, and what was seen of it last.
#[derive(Debug, Default)]
struct Sighting {
    /// `None` where it could not be had: then its start is compared each time.
    process: Option<OwnedFd>,
    seen: Mutex<Option<Seen>>,
}

impl Sighting {
    fn new((_, pid, started): Process) -> Self {
        let process = process_descriptor(pid.unsigned_abs()).ok();
        // What has the pid by now can be another one.
        let process = process.filter(|_| process::start_ticks_of(pid) == Some(started));
        Self { process, seen: Mutex::default() }
    }

    /// Whether the process has ended; `None`: it cannot be told by this.
    fn has_ended(&self) -> Option<bool> {
        let mut asked = [PollFd::new(self.process.as_ref()?.as_fd(), PollFlags::POLLIN)];
        Some(poll(&mut asked, PollTimeout::ZERO).ok()? > 0)
    }
}

impl Sightings {
    /// What was seen of a process, for as long as one of its connections is open.
    fn of(&self, process: Process) -> Arc<Sighting> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sighting) = known.get(&process).and_then(Weak::upgrade) {
            return sighting;
        }
        known.retain(|_, sighting| sighting.strong_count() > 0);
        let sighting = Arc::new(Sighting::new(process));
        known.insert(process, Arc::downgrade(&sighting));
        sighting
    }
}

/// What was seen of a process, and under which tables.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    generation: u64,
    actor: Actor,
}

/// How long what was seen of a process is taken for what it is. It holds only while a connection is open that the process had
/// before it could become anything else; whether the process is there is looked at every time.
const LOOK: Duration = Duration::from_millis(100);

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
#[error("the caller could not be identified: it is gone, not on this host, or not declared")]
pub(super) struct Unidentified;

impl Peer {
    /// The process at the other end.
    pub(super) fn local(stream: &UnixStream, sightings: &Sightings) -> Self {
        let credentials = stream.peer_cred().ok();
        let pid = credentials.as_ref().and_then(tokio::net::unix::UCred::pid);
        let uid = credentials.as_ref().map(tokio::net::unix::UCred::uid);
        let started = pid.and_then(process::start_ticks_of);
        let process = uid.zip(pid).zip(started).map(|((uid, pid), started)| (uid, pid, started));
        let seen = process.map(|process| sightings.of(process)).unwrap_or_default();
        Self(Kind::Local(Local { uid, pid, started, seen }))
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
    pub(super) fn unknown(&self) -> Actor {
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

    /// Whether the peer was looked at before.
    pub(super) fn is_known(&self) -> bool {
        match &self.0 {
            Kind::Local(local) => local.seen.seen.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
            Kind::Remote(_) => true,
        }
    }

    /// What is known of the peer now. `engine` knows which accounts its views lead to.
    pub(super) fn actor(&self, engine: &Engine) -> Result<Actor, Unidentified> {
        match &self.0 {
            Kind::Local(local) => local.actor(engine),
            Kind::Remote(remote) => remote.actor(engine),
        }
    }
}

impl Local {
    /// What the host knows of the peer now. `engine` knows which accounts its views lead to.
    fn actor(&self, engine: &Engine) -> Result<Actor, Unidentified> {
        let (Some(uid), Some(pid)) = (self.uid, self.pid) else { return Err(Unidentified) };
        let ended = || process::start_ticks_of(pid) != self.started;
        if self.started.is_none() || self.seen.has_ended().unwrap_or_else(ended) {
            return Err(Unidentified);
        }
        let generation = engine.current().map_or(0, |current| current.generation.active);
        let mut seen = self.seen.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| seen.generation == generation && seen.at.elapsed() < LOOK) {
            return Ok(seen.actor.clone());
        }
        let actor = self.look(engine, uid, pid)?;
        *seen = Some(Seen { at: Instant::now(), generation, actor: actor.clone() });
        Ok(actor)
    }

    fn look(&self, engine: &Engine, uid: u32, pid: i32) -> Result<Actor, Unidentified> {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let loginuid = fs::read_to_string(format!("/proc/{pid}/loginuid"))
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .filter(|loginuid| *loginuid != u32::MAX);
        let process = pid.unsigned_abs();
        let credentials = process::credentials(process).ok_or(Unidentified)?;
        let [real, effective, _] = credentials.gids;
        let gids = credentials.groups.iter().copied().chain([effective, real]);
        let groups = gids.filter_map(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten()).map(|group| group.name);
        let groups = groups.collect();
        let uids: Vec<u32> = [uid].into_iter().chain(loginuid).chain(credentials.uids).collect();
        let lineage = process::lineage(process);
        let executables: Vec<(u32, u64)> = lineage.iter().filter_map(|process| process.executable).collect();
        let accounts = engine.accounts_of(&uids, process::cgroup_of(process).as_deref(), &executables);
        let mut origins = engine.accounts_of(&engine.processes.uids_of(&lineage), None, &[]);
        origins.retain(|origin| !accounts.contains(origin));
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned());
        let caller =
            Caller { uid, loginuid, name: user.map(|user| user.name), groups, accounts, origins, transmitter: false };
        let asking = Arc::new(Asking::new(process, &engine.kernel.cgroup().root));
        Ok(Actor { caller, pid: Some(process), executable, process: Some(asking), asked_by: None })
    }
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
