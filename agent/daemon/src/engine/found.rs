//! Connections that accounts had open before writ judged them: found, judged, recorded, and sessions from then on.
//!
//! The hooks see connects, and these are over. What is found is an observation: nothing was attempted, nothing refused. With
//! `[sessions] at-start = "cut"` a refused one is cut; otherwise it is tolerated until its account's access is tightened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use writ_abi::{
    Active, Address, Attempt, Decision, DecisionEvent, EVENT_DECISION, Endpoint, Protocol, ROOM_NONE, Reason,
    SESSION_ACCOUNTS, SESSION_FOUND, SESSION_FOUND_CPU, SESSION_NOBODY, SESSION_TOLERATED, Session, View, decide,
    stricter,
};
use writ_core::config::AtStart;
use writ_core::record::{AlreadyOpen, Body, EffectiveMode, IdSource, Record, record_id};
use writ_core::table::Views;

use super::Engine;
use super::clock::Clocks;
use super::evidence::VERSION;
use super::sessions::{Doomed, InForce, endpoint};
use crate::kernel::{Diag, Socket, cgroup_paths};
use crate::process;

/// How many processes that share one socket are looked at.
const MOST_HOLDERS: usize = 64;

/// One connection of an account.
struct Found {
    socket: Socket,
    netns: u64,
    /// A process that holds it.
    holder: Option<u32>,
    /// Whether it was made where connects are judged: the kernel sees its packets there, and that it closes.
    inside: bool,
    executable: Option<(u32, u64)>,
    class: u32,
    address: Address,
    /// The strictest judgement, its account, the views that led to it, and every account.
    decision: Decision,
    account: u16,
    views: u32,
    accounts: [u16; SESSION_ACCOUNTS],
}

/// What is known of this host while it is looked through.
struct Host {
    cgroups: HashMap<u64, String>,
    inside: String,
    views: HashMap<u32, Views>,
}

impl Host {
    fn is_judged(&self, cgroup: &str) -> bool {
        let rest = cgroup.strip_prefix(self.inside.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Engine {
    /// Looks for connections that no hook saw, and takes them up. `because`: the record of what made them visible.
    pub(super) fn take_up_open_connections(&mut self, because: &str) {
        let began = Instant::now();
        self.recall_found();
        if self.current().is_none_or(|current| current.config.accounts.is_empty()) {
            return;
        }
        let found = match self.open_connections() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "connections that were open already could not be listed; they are not judged");
                self.degraded_by("open-connections-unknown", true);
                return;
            }
        };
        self.degraded_by("open-connections-unknown", false);
        let cut = self.current().is_some_and(|current| current.config.agent.sessions.at_start == AtStart::Cut);
        let mut doomed: BTreeMap<u64, Vec<Doomed>> = BTreeMap::new();
        for found in found {
            let refused = found.decision.refuses();
            let session = self.take_up(&found, if refused && !cut { SESSION_TOLERATED } else { SESSION_FOUND });
            if refused && cut {
                doomed.entry(session.netns).or_default().push(Doomed {
                    session,
                    decision: found.decision,
                    account: found.account,
                    change: because.to_owned(),
                    reason: "already open".to_owned(),
                });
            }
        }
        for (netns, doomed) in doomed {
            let ended = self.cut(netns, doomed, began, true);
            self.note_cuts(ended);
        }
        self.flush();
    }

    /// Every connection of an account that is not on the list of sessions.
    fn open_connections(&self) -> std::io::Result<Vec<Found>> {
        let (namespaces, closed) = Diag::everywhere()?;
        if closed > 0 {
            tracing::warn!(
                namespaces = closed,
                "network namespaces that cannot be entered: what is open there is not known"
            );
        }
        let mut sockets: Vec<(u64, Socket)> = Vec::new();
        for diag in &namespaces {
            let netns = diag.netns().unwrap_or(0);
            let listening = diag.listening()?;
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let connected = diag.connected(protocol)?;
                // Without an inode nobody holds it: it is being closed.
                let ours = connected.into_iter().filter(|socket| socket.inode != 0 && !socket.accepted_at(&listening));
                sockets.extend(ours.map(|socket| (netns, socket)));
            }
        }
        drop(namespaces);
        // Read after the sockets: a connect that was judged is on the list before its socket can be seen.
        let known: HashSet<u64> = self.kernel.sessions()?.into_iter().map(|session| session.cookie).collect();
        sockets.retain(|(_, socket)| !known.contains(&socket.cookie));
        if sockets.is_empty() {
            return Ok(Vec::new());
        }
        let held = process::holders(&sockets.iter().map(|(_, socket)| socket.inode).collect());
        let mount = self.kernel.cgroup();
        let mut host = Host {
            cgroups: cgroup_paths(mount).into_iter().collect(),
            inside: mount.relative(&mount.attached),
            views: HashMap::new(),
        };
        let of = |(netns, socket): (u64, Socket)| {
            let holders = held.get(&socket.inode).map_or(&[][..], Vec::as_slice);
            self.judge_found(netns, socket, holders, &mut host)
        };
        Ok(sockets.into_iter().filter_map(of).collect())
    }

    /// Judges one connection for every account that a view of it or of a holder leads to; `None`: it is no account's.
    fn judge_found(&self, netns: u64, socket: Socket, holders: &[u32], host: &mut Host) -> Option<Found> {
        let current = self.current()?;
        let tables = InForce { generation: &current.generation, kernel: &self.kernel };
        let address = judged_address(&current.bundle, socket.remote.ip());
        let made_in = socket.cgroup.and_then(|id| host.cgroups.get(&id)).cloned();
        let ours = made_in.as_deref().is_some_and(|path| host.is_judged(path));
        let mut best: Option<Found> = None;
        let mut accounts: BTreeMap<u16, u32> = BTreeMap::new();
        let mut each: Vec<Option<u32>> = holders.iter().take(MOST_HOLDERS).copied().map(Some).collect();
        if each.is_empty() {
            each.push(None); // Held by the kernel alone: on its way between processes, or by io_uring.
        }
        for holder in each {
            let mut views = holder.map_or_else(Views::default, |pid| {
                host.views.entry(pid).or_insert_with(|| process::views(pid)).clone()
            });
            if !ours && !views.cgroups.iter().any(|(path, _)| host.is_judged(path)) {
                continue;
            }
            views.uids.push((socket.uid, View::SOCKET_UID));
            views.cgroups.extend(made_in.clone().map(|path| (path, View::SOCKET_CGROUP)));
            let class = current.identities.class_of(views.executable);
            let attempt = Attempt::Connect {
                endpoint: Endpoint { address, port: socket.remote.port(), protocol: socket.protocol },
                executable: class,
            };
            for (account, view) in current.identities.accounts(&views) {
                *accounts.entry(account).or_insert(0) |= view;
                let decision = decide(&tables, u32::from(account), &attempt, crate::kernel::boot_ns());
                if best.as_ref().is_none_or(|best| stricter(&best.decision, &decision)) {
                    best = Some(Found {
                        socket: socket.clone(),
                        netns,
                        holder,
                        inside: ours,
                        executable: views.executable,
                        class,
                        address,
                        decision,
                        account,
                        views: 0,
                        accounts: [SESSION_NOBODY; SESSION_ACCOUNTS],
                    });
                }
            }
        }
        let mut found = best?;
        found.views = accounts.get(&found.account).copied().unwrap_or(0);
        // The one that decided first: whatever there is no room for was no stricter.
        let all = std::iter::once(found.account).chain(accounts.into_keys().filter(|other| *other != found.account));
        for (place, account) in found.accounts.iter_mut().zip(all) {
            *place = account;
        }
        Some(found)
    }

    /// Makes a connection a session and writes it down.
    fn take_up(&mut self, found: &Found, state: u8) -> Session {
        let clocks = Clocks::read();
        self.agent_records += 1;
        let number = self.agent_records;
        let id = record_id(clocks.wall, self.boot, IdSource::Agent(number));
        let session = Session {
            opened: clocks.boot_ns,
            held: 0,
            sequence: number,
            cookie: found.socket.cookie,
            netns: found.netns,
            executable_inode: found.executable.unwrap_or_default().1,
            address: found.address,
            epochs: [0; SESSION_ACCOUNTS],
            accounts: found.accounts,
            generation: self.current().map_or(0, |current| Active(current.generation.active).generation()),
            executable_device: found.executable.unwrap_or_default().0,
            cpu: SESSION_FOUND_CPU,
            pid: found.holder.unwrap_or(0),
            port: found.socket.remote.port(),
            account: found.account,
            protocol: found.socket.protocol as u8,
            state,
            room: ROOM_NONE,
            moved: 0,
            source: found.socket.local.ip().to_canonical().into(),
            source_port: found.socket.local.port(),
            reserved: [0; 3],
        };
        let listed = self.kernel.list_found_session(&session);
        if let Err(error) = &listed {
            tracing::error!(%error, pid = session.pid, to = %found.socket.remote, "a connection that was open already is not on the list of sessions: no change will cut it");
        }
        self.found_open.insert(session.cookie);
        let outcome = match (found.decision.refuses(), state) {
            (false, _) => "kept",
            (true, SESSION_TOLERATED) => "tolerated",
            (true, _) => "cut",
        };
        let marker = AlreadyOpen {
            source: endpoint(found.socket.local, session.protocol),
            socket_cookie: session.cookie,
            netns_cookie: session.netns,
            outcome: outcome.to_owned(),
            tracked: listed.is_ok() && found.inside,
        };
        let body = self.describe_found(found, &session, marker, &clocks);
        let record = Record::new(id.clone(), clocks.wall, self.host.clone(), VERSION, body);
        self.push(&record);
        self.remember_opened(session.cookie, session.opened, session.accounts, &id);
        session
    }

    /// The observation, made as those of the kernel's events are.
    fn describe_found(&mut self, found: &Found, session: &Session, marker: AlreadyOpen, clocks: &Clocks) -> Body {
        let event = event_of(found, session, clocks);
        let explained = self.explained(&event, clocks.wall);
        let mut judged = match writ_core::record::Decision::from_event(&event, explained.context) {
            Body::Decision(judged) | Body::Observation(judged) => judged,
            other => return other,
        };
        judged.process = found.holder.map(|holder| process::describe(holder, &self.kernel.cgroup().root));
        judged.kernel = None;
        judged.effective_mode = EffectiveMode::Observe;
        if found.decision.reason == Reason::Policy {
            "already-open".clone_into(&mut judged.reason_code);
        }
        judged.already_open = Some(marker);
        Body::Observation(judged)
    }

    /// Takes off the list what was found open and has closed since, unseen by the kernel's hooks: because the socket was made
    /// outside the judged cgroup, by the kernel itself (a subflow of MPTCP), or between our looking and our listing. Without
    /// any that is open the kernel looks for none.
    pub(super) fn forget_closed(&mut self) {
        if self.found_open.is_empty() {
            return;
        }
        let Ok((namespaces, _)) = Diag::everywhere() else { return };
        let mut open = HashSet::new();
        for diag in &namespaces {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let Ok(connected) = diag.connected(protocol) else { return };
                open.extend(connected.into_iter().map(|socket| socket.cookie));
            }
        }
        let kernel = &self.kernel;
        self.found_open.retain(|cookie| {
            let is_open = open.contains(cookie);
            if !is_open {
                kernel.unlist_closed(*cookie);
            }
            is_open
        });
        if self.found_open.is_empty()
            && let Err(error) = self.kernel.look_for_found_sessions(false)
        {
            tracing::warn!(%error, "the kernel looks for sessions that are over: packets cost a little more");
        }
    }

    /// What a daemon before this one found open.
    fn recall_found(&mut self) {
        let listed = self.kernel.sessions().unwrap_or_default();
        let found = listed.iter().filter(|session| session.cpu == SESSION_FOUND_CPU);
        self.found_open.extend(found.map(|session| session.cookie));
    }
}

/// The address that is judged for one that a socket is connected to.
fn judged_address(bundle: &writ_core::policy::Bundle, ip: IpAddr) -> Address {
    match bundle.canonical(ip) {
        IpAddr::V4(ip) => Address::from_v4(ip.octets()),
        IpAddr::V6(ip) => Address::from_octets(ip.octets()),
    }
}

fn event_of(found: &Found, session: &Session, clocks: &Clocks) -> DecisionEvent {
    let decision = &found.decision;
    let [_, also @ ..] = found.accounts;
    let (device, inode) = found.executable.unwrap_or_default();
    let remote: SocketAddr = found.socket.remote;
    let given = match remote.ip() {
        IpAddr::V4(ip) => Address::from_v4(ip.octets()),
        IpAddr::V6(ip) => Address::from_octets(ip.octets()),
    };
    DecisionEvent {
        kind: EVENT_DECISION,
        abi: writ_abi::ABI_VERSION,
        at: clocks.boot_ns,
        sequence: 0,
        executable_inode: inode,
        start_time: 0,
        cgroup: found.socket.cgroup.unwrap_or(0),
        socket_cookie: session.cookie,
        netns_cookie: session.netns,
        address: found.address,
        given,
        cpu: 0,
        generation: session.generation,
        stance: decision.stance,
        epoch: decision.epoch,
        explanation: decision.explanation,
        pid: session.pid,
        tid: session.pid,
        parent: 0,
        uid: found.socket.uid,
        euid: found.socket.uid,
        loginuid: u32::MAX,
        executable_device: device,
        executable_class: found.class,
        views: found.views,
        count: 1,
        socket_protocol: 0,
        account: found.account,
        also,
        port: session.port,
        hook: 0,
        protocol: session.protocol,
        open_socket: 0,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        enforced: 0,
        would: decision.would as u8,
        new_destination: u8::from(decision.new_destination),
        errno: 0,
        socket_family: 0,
        socket_type: 0,
        issued: 0,
        comm: [0; writ_abi::COMM_LEN],
    }
}
