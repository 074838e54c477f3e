//! Live sessions: judged again whenever a stance changes, and cut where it no longer allows them.
//!
//! The kernel keeps the list ([`Kernel::sessions`](crate::kernel::Kernel::sessions)), so nothing here can drift from it: a
//! connect that was let through is on it before the caller knows, and is taken off as its socket closes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use writ_abi::{
    AccountFlags, Active, Address, Attempt, Cell, Decision, Protocol, SESSION_FOUND_CPU, SESSION_JUDGED,
    SESSION_NOBODY, SESSION_STOPPED, SESSION_TOLERATED, Session, Slot, Tables, decide,
};
use writ_core::config::AtStart;
use writ_core::record::{Body, Cut, Endpoint, IdSource, PolicyRef, Time, record_id};
use writ_core::table::Generation;

use super::clock::Clocks;
use super::{Current, Engine};
use crate::kernel::{Diag, FAMILIES, Kernel, Socket, boot_ns};

/// How long network namespaces are looked into for one change: an account can make any number of them, and each is searched for.
const LOOKING: Duration = Duration::from_secs(3);
/// How long a cut waits for the decisions before it to be read: a flood of connects must not hold it up.
const READING: Duration = Duration::from_millis(5);
/// How often a socket that is listed and not found is looked for again: a connect that has been let through takes a moment
/// to become visible.
const LOOKS: u32 = 3;
/// The pause before it is looked for again.
const PAUSE: Duration = Duration::from_millis(1);
/// Sessions to this many ports are looked for port by port; beyond it one list of every socket is as quick.
const MOST_PORTS: usize = 4;

/// What sessions are judged for: every account's, or those of the accounts that changed.
#[derive(Debug)]
pub(super) enum Cause {
    /// Something that can change every account; the record that says so.
    Everything(String, &'static str),
    /// Changes by account index: the record of each; why; which of them tightened the account's access.
    Changes(BTreeMap<u16, String>, String, BTreeSet<u16>),
}

/// Why every session is judged: another configuration. Tolerated sessions end too, if it refuses them.
pub(super) const RECONFIGURED: &str = "the configuration changed";

impl Cause {
    fn of(&self, session: &Session) -> Option<(String, String)> {
        match self {
            Self::Everything(id, reason) => Some((id.clone(), (*reason).to_owned())),
            Self::Changes(changes, reason, _) => {
                session.accounts.iter().find_map(|account| Some((changes.get(account)?.clone(), reason.clone())))
            }
        }
    }

    /// The accounts it is about; `None`: every one.
    pub(super) fn accounts(&self) -> Option<impl Iterator<Item = u16>> {
        match self {
            Self::Everything(..) => None,
            Self::Changes(changes, ..) => Some(changes.keys().copied()),
        }
    }

    /// Whether it ends what was refused when it was found, and left alone.
    fn ends_tolerance(&self, session: &Session, at_start: AtStart) -> bool {
        match self {
            Self::Everything(_, reason) => *reason == RECONFIGURED || at_start == AtStart::Cut,
            Self::Changes(_, _, tightened) => session.accounts.iter().any(|account| tightened.contains(account)),
        }
    }
}

/// One session as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SessionView {
    account: String,
    destination: Endpoint,
    source: Option<Endpoint>,
    since: Time,
    pid: u32,
    executable: Option<String>,
    socket_cookie: u64,
    netns_cookie: u64,
    decision: String,
    /// Whether it is refused now, and only its packets are stopped.
    stopped: bool,
    /// Whether it was open before writ judged, and refused then, and is left alone until its account's access is tightened.
    tolerated: bool,
}

/// A session to be cut, and why.
pub(super) struct Doomed {
    pub(super) session: Session,
    pub(super) decision: Decision,
    pub(super) account: u16,
    pub(super) change: String,
    pub(super) reason: String,
}

/// A session that was cut, as it is to be recorded.
pub(super) struct Ended {
    doomed: Doomed,
    /// Where it was sent from; `None` of one whose packets are stopped.
    source: Option<SocketAddr>,
    method: &'static str,
    took: Duration,
}

impl Ended {
    /// Has it name the records of the changes that ended it, which were not there when it was cut.
    pub(super) fn named(mut self, cause: &Cause) -> Self {
        if let Some((change, reason)) = cause.of(&self.doomed.session) {
            (self.doomed.change, self.doomed.reason) = (change, reason);
        }
        self
    }
}

/// The tables in force: the daemon's own copy, with the kernel's memory of destinations.
pub(super) struct InForce<'a> {
    pub(super) generation: &'a Generation,
    pub(super) kernel: &'a Kernel,
}

impl Tables for InForce<'_> {
    type Row = <Generation as Tables>::Row;

    fn active(&self) -> Active {
        self.generation.active()
    }
    fn flags(&self, account: u32) -> Option<AccountFlags> {
        Tables::flags(self.generation, account)
    }
    fn slot(&self, account: u32) -> Option<Slot> {
        self.generation.slot(account)
    }
    fn stance(&self, index: u32) -> Option<Self::Row> {
        Tables::stance(self.generation, index)
    }
    fn address_class(&self, address: &Address) -> Option<u32> {
        self.generation.address_class(address)
    }
    fn port_class(&self, port: u16) -> Option<u32> {
        self.generation.port_class(port)
    }
    fn projection(&self, index: u32) -> Option<u32> {
        self.generation.projection(index)
    }
    fn cell(&self, index: u32) -> Option<Cell> {
        self.generation.cell(index)
    }
    fn seen(&self, account: u32, address: &Address) -> bool {
        self.kernel.has_seen(account, address.octets())
    }
}

impl Engine {
    /// Judges live sessions again, cuts those that are refused, and records it. What was changed must be in the kernel, and a
    /// grace period over, for this to be the last look: then every session that was let through before is on the list.
    pub(super) fn judge_sessions(&mut self, cause: &Cause, began: Instant, last: bool) {
        let ended = self.end_sessions(cause, began, last);
        self.note_cuts(ended);
        self.flush();
    }

    /// The same, without recording it: that must not hold up a cut.
    pub(super) fn end_sessions(&mut self, cause: &Cause, began: Instant, last: bool) -> Vec<Ended> {
        let sessions = match self.sessions_for(cause, last) {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::error!(%error, "live sessions could not be listed; the egress program stops what is not allowed");
                return Vec::new();
            }
        };
        let at_start = self.current().map(|current| current.config.agent.sessions.at_start).unwrap_or_default();
        let mut doomed: BTreeMap<u64, Vec<Doomed>> = BTreeMap::new();
        for session in sessions {
            let Some((change, reason)) = cause.of(&session) else { continue };
            match self.refused(&session) {
                Some(_) if session.state == SESSION_TOLERATED && !cause.ends_tolerance(&session, at_start) => {}
                // As before: only its packets can be stopped, and they are.
                Some(_) if session.state == SESSION_STOPPED => {}
                Some((account, decision)) => {
                    doomed.entry(session.netns).or_default().push(Doomed {
                        session,
                        decision,
                        account,
                        change,
                        reason,
                    });
                }
                None if matches!(session.state, SESSION_STOPPED | SESSION_TOLERATED) => {
                    // It closed meanwhile, or is listed again: either way it flows.
                    let _ = self.kernel.relist_session(&Session { state: SESSION_JUDGED, ..session });
                }
                None => {}
            }
        }
        let (mut ended, until) = (Vec::new(), Instant::now() + LOOKING);
        for (netns, doomed) in doomed {
            if Instant::now() < until {
                ended.extend(self.cut(netns, doomed, began, last));
            } else {
                let error =
                    std::io::Error::other("they are in more network namespaces than can be looked into at once");
                self.stop_packets(doomed, began, &error, &mut ended);
            }
        }
        ended
    }

    /// Judges every live session again, after something that can change every account. `id`: the record that says what.
    pub(super) fn judge_all_sessions(&mut self, id: String, reason: &'static str, began: Instant) {
        if let Err(error) = self.kernel.barrier() {
            tracing::error!(%error, "the kernel's grace period could not be awaited; a session could be missed");
        }
        self.judge_sessions(&Cause::Everything(id, reason), began, true);
    }

    /// Reads what the ring holds, for a moment.
    pub(super) fn catch_up(&mut self) {
        let until = Instant::now() + READING;
        while self.pump() && Instant::now() < until {}
    }

    /// The account by which a session may not go on, with the judgement.
    fn refused(&self, session: &Session) -> Option<(u16, Decision)> {
        let current = self.current()?;
        let generation = &current.generation;
        let tables = InForce { generation, kernel: &self.kernel };
        let protocol = Protocol::from_bits(session.protocol).unwrap_or(Protocol::Tcp);
        let endpoint = writ_abi::Endpoint { address: session.address, port: session.port, protocol };
        let attempt = Attempt::Connect { endpoint, executable: class_of(current, session) };
        let now = boot_ns();
        session.accounts.iter().take_while(|account| **account != SESSION_NOBODY).find_map(|account| {
            // As in the egress program: an account that is declared no more is nobody's to judge.
            let flags = Tables::flags(generation, u32::from(*account))?;
            let decision = decide(&tables, u32::from(*account), &attempt, now);
            (flags.has(AccountFlags::PRESENT) && decision.refuses()).then_some((*account, decision))
        })
    }

    /// Cuts sessions of one network namespace; if this is the `last` look, one without a connection is forgotten. What was cut
    /// is to be recorded.
    pub(super) fn cut(&mut self, netns: u64, doomed: Vec<Doomed>, began: Instant, last: bool) -> Vec<Ended> {
        let mut ended = Vec::new();
        let Some(pid) = doomed.first().map(|doomed| doomed.session.pid) else { return ended };
        let diag = match Diag::of(netns, pid) {
            Ok(diag) => diag,
            Err(error) => {
                self.stop_packets(doomed, began, &error, &mut ended);
                return ended;
            }
        };
        // Most have sent something, and need not be looked for among all the sockets of the namespace.
        let mut doomed = self.cut_where_they_are(&diag, doomed, began, &mut ended);
        let looks = if last { LOOKS } else { 1 };
        for look in 0..looks {
            doomed.retain(|doomed| self.kernel.session(doomed.session.cookie).is_some());
            if doomed.is_empty() {
                return ended;
            }
            if look > 0 {
                std::thread::sleep(PAUSE);
            }
            let sockets = match listed(&diag, &doomed, look + 1 == LOOKS) {
                Ok(sockets) => sockets,
                Err(error) => {
                    self.stop_packets(doomed, began, &error, &mut ended);
                    return ended;
                }
            };
            let (mut missing, mut left) = (Vec::new(), None);
            for doomed in doomed {
                let Some(socket) = sockets.get(&doomed.session.cookie) else {
                    missing.push(doomed);
                    continue;
                };
                let method = match diag.destroy(socket) {
                    Ok(()) => "sock-destroy",
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => "gone",
                    Err(error) => {
                        left.get_or_insert((error, Vec::new())).1.push(doomed);
                        continue;
                    }
                };
                self.kernel.unlist_session(&doomed.session);
                ended.push(Ended { doomed, source: Some(socket.local), method, took: began.elapsed() });
            }
            if let Some((error, doomed)) = left {
                self.stop_packets(doomed, began, &error, &mut ended);
            }
            doomed = missing;
        }
        if last {
            // Open, and connected to nothing: ended by itself, or never came about. There is nothing to cut.
            for doomed in doomed {
                self.kernel.unlist_session(&doomed.session);
            }
        }
        ended
    }

    /// Cuts the sessions whose sockets are where their last connect and first packet say; the others are left.
    fn cut_where_they_are(
        &mut self,
        diag: &Diag,
        doomed: Vec<Doomed>,
        began: Instant,
        ended: &mut Vec<Ended>,
    ) -> Vec<Doomed> {
        let mut left = Vec::new();
        for doomed in doomed {
            let known = Socket::of_session(&doomed.session).and_then(|socket| diag.where_it_was(&socket).ok());
            let closed = known.filter(|socket| diag.destroy(socket).is_ok());
            match closed {
                Some(socket) => {
                    self.kernel.unlist_session(&doomed.session);
                    let (source, took) = (Some(socket.local), began.elapsed());
                    ended.push(Ended { doomed, source, method: "sock-destroy", took });
                }
                None => left.push(doomed),
            }
        }
        left
    }

    /// What is left where a socket cannot be closed: the egress program stops its packets, as it does from the moment of
    /// the change.
    fn stop_packets(&mut self, doomed: Vec<Doomed>, began: Instant, error: &std::io::Error, ended: &mut Vec<Ended>) {
        tracing::warn!(%error, sessions = doomed.len(), "sockets could not be closed; their packets are stopped");
        for doomed in doomed {
            if doomed.session.state == SESSION_STOPPED {
                continue;
            }
            // If it closed meanwhile it must not be listed anew.
            if self.kernel.session(doomed.session.cookie).is_some() {
                let _ = self.kernel.relist_session(&Session { state: SESSION_STOPPED, ..doomed.session });
                ended.push(Ended { doomed, source: None, method: "egress", took: began.elapsed() });
            }
        }
    }

    /// Records what was cut. What is said of the policies is taken from the tables that judged; the decisions that opened the
    /// sessions come before it in the log, and what is read for that can lead to others.
    pub(super) fn note_cuts(&mut self, ended: Vec<Ended>) {
        if ended.is_empty() {
            return;
        }
        let described: Vec<_> = ended.iter().filter_map(|ended| Some((ended, self.described(ended)?))).collect();
        self.catch_up();
        for (Ended { doomed: Doomed { session, .. }, .. }, mut cut) in described {
            cut.decision = (session.sequence != 0).then(|| self.opening_of(session));
            self.note(Body::Cut(Box::new(cut)));
        }
    }

    fn described(&self, ended: &Ended) -> Option<Cut> {
        let current = self.current()?;
        let Ended { doomed, source, method, took } = ended;
        let Doomed { session, decision, account, change, reason } = doomed;
        let generation = &current.generation;
        let policies = generation
            .explanation(decision.explanation)
            .map(|explanation| if explanation.errors.is_empty() { &explanation.policies } else { &explanation.errors });
        let named = |id: &String| PolicyRef::new(id, current.bundle.policy(id));
        Some(Cut {
            account: generation.account_name(u32::from(*account)).unwrap_or("unknown").to_owned(),
            destination: destination(session),
            source: source.map(|source| endpoint(source, session.protocol)),
            socket_cookie: session.cookie,
            pid: Some(session.pid),
            method: (*method).to_owned(),
            change: (!change.is_empty()).then(|| change.clone()),
            decision: None,
            reason: format!("{reason}: {}", decision.reason.code()),
            stance_digest: generation.digests.get(decision.stance as usize).cloned().unwrap_or_default(),
            policies: policies.into_iter().flatten().map(named).collect(),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Id of the decision that opened a session.
    fn opening_of(&self, session: &Session) -> String {
        self.openings.decision_of(session).map(str::to_owned).unwrap_or_else(|| {
            // Recorded by an earlier daemon. The millisecond can differ by one from its reading of the clocks.
            let at = Clocks::read().wall_of(session.opened);
            let source = match session.cpu {
                SESSION_FOUND_CPU => IdSource::Agent(session.sequence),
                cpu => IdSource::Kernel { cpu, sequence: session.sequence },
            };
            record_id(at, self.boot, source)
        })
    }

    /// How many sessions are open.
    pub(crate) fn session_count(&self) -> u64 {
        self.kernel.sessions().map_or(0, |sessions| sessions.len() as u64)
    }

    /// The sessions that are open, of one account or of all.
    pub(crate) fn sessions(&self, account: Option<&str>) -> Vec<SessionView> {
        let Some(current) = self.current() else { return Vec::new() };
        let generation = &current.generation;
        let name = |session: &Session| generation.account_name(u32::from(session.account)).unwrap_or("unknown");
        let mut sessions = self.kernel.sessions().unwrap_or_default();
        sessions.retain(|session| account.is_none_or(|wanted| name(session) == wanted));
        sessions.sort_by_key(|session| (session.netns, session.opened));
        let known = sessions.iter().filter_map(|session| Some((session.cookie, Socket::of_session(session)?)));
        let mut sockets: HashMap<u64, Socket> = known.collect();
        // What has sent nothing yet is looked for.
        for of_one in sessions.chunk_by(|a, b| a.netns == b.netns) {
            let Some(unknown) = of_one.iter().find(|session| !sockets.contains_key(&session.cookie)) else { continue };
            let Ok(diag) = Diag::of(unknown.netns, unknown.pid) else { continue };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let found = diag.connected(protocol).unwrap_or_default();
                sockets.extend(found.into_iter().map(|socket| (socket.cookie, socket)));
            }
        }
        let clocks = Clocks::read();
        let paths: HashMap<u32, &String> = generation.executables.iter().map(|(path, class)| (*class, path)).collect();
        let view = |session: &Session| SessionView {
            account: name(session).to_owned(),
            destination: destination(session),
            source: sockets.get(&session.cookie).map(|socket| endpoint(socket.local, session.protocol)),
            since: Time(clocks.wall_of(session.opened)),
            pid: session.pid,
            executable: paths.get(&class_of(current, session)).map(|path| (*path).clone()),
            socket_cookie: session.cookie,
            netns_cookie: session.netns,
            decision: self.opening_of(session),
            stopped: session.state == SESSION_STOPPED,
            tolerated: session.state == SESSION_TOLERATED,
        };
        sessions.iter().map(view).collect()
    }
}

/// The class of the executable that opened a session, in the generation in force.
pub(super) fn class_of(current: &Current, session: &Session) -> u32 {
    let file = (session.executable_device, session.executable_inode);
    current.identities.class_of(Some(file).filter(|(_, inode)| *inode != 0))
}

/// The sockets of a namespace that could be among these, by cookie; at `last` wherever they lead, because somebody else's
/// program may have sent one elsewhere.
fn listed(diag: &Diag, doomed: &[Doomed], last: bool) -> std::io::Result<HashMap<u64, Socket>> {
    let mut found = HashMap::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let of_it = || doomed.iter().filter(|doomed| doomed.session.protocol == protocol as u8);
        let mut ports: BTreeSet<u16> = of_it().map(|doomed| doomed.session.port).collect();
        if ports.len() > MOST_PORTS || last && !ports.is_empty() {
            ports = BTreeSet::from([0]);
        }
        // Most are of the first family; the second is asked for what is not among them.
        for family in FAMILIES {
            if of_it().all(|doomed| found.contains_key(&doomed.session.cookie)) {
                break;
            }
            for port in &ports {
                let sockets = diag.connected_to(protocol, family, *port)?;
                found.extend(sockets.into_iter().map(|socket| (socket.cookie, socket)));
            }
        }
    }
    Ok(found)
}

fn destination(session: &Session) -> Endpoint {
    let address: IpAddr = session.address.into();
    endpoint(SocketAddr::new(address.to_canonical(), session.port), session.protocol)
}

pub(super) fn endpoint(at: SocketAddr, protocol: u8) -> Endpoint {
    let protocol = Protocol::from_bits(protocol).map_or_else(|| protocol.to_string(), |known| known.name().to_owned());
    Endpoint { address: at.ip().to_string(), port: at.port(), protocol }
}
