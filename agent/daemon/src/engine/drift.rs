//! Workload drift seen from here: what an account's processes run that they should not, raised as signals of writ's own.
//!
//! Looked at as a process starts a program, or makes its first judged attempt. The findings themselves are in
//! [`crate::process`]; here it is said whose they are, how grave, and how often they are raised.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use jiff::Timestamp;
use writ_abi::{DecisionEvent, PATH_LEN, ProcessEvent, View};
use writ_core::config::Config;
use writ_core::signal::{Caller, Incoming};
use writ_core::table::Views;

use super::{Actor, Engine};
use crate::process::{Baselines, Changed, Fingerprints, Sighting, file_at};

/// A built-in kind and the risk it has where it is not declared; declaring it in `signals.d` sets risk, time to live, flag.
type Kind = (&'static str, u8);

/// A process runs what the account's `executables` do not list.
const UNEXPECTED: Kind = ("workload.unexpected-executable", 50);
/// A process runs what is in no directory: a memory file, or one that was removed.
const DELETED: Kind = ("workload.executable-deleted", 70);
/// A listed executable has other contents than before, and not as a package is upgraded.
const CHANGED: Kind = ("workload.executable-changed", 80);
/// A service with connections open started a shell.
const SHELL: Kind = ("workload.shell", 70);
/// Somebody logged in as the account.
const LOGIN: Kind = ("workload.login-session", 40);

/// How long an undeclared kind holds.
const TTL: Duration = Duration::from_secs(3_600);
/// How many programs of processes are remembered as looked at.
const MOST: usize = 16_384;
/// systemd's own step between fork and the service's first program, inside the service's cgroup.
const STARTERS: [&str; 4] = [
    "/usr/lib/systemd/systemd-executor",
    "/lib/systemd/systemd-executor",
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
];

/// A process and the program it runs: pid, start, inode.
type Program = (u32, u64, u64);

/// What was looked at, and what is to be raised.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    seen: HashSet<(String, Program)>,
    order: VecDeque<(String, Program)>,
    /// With how often it was found again before it was raised.
    raised: Vec<(Incoming, Finding, u64)>,
    /// What a live signal says already.
    said: HashMap<Finding, Said>,
    fingerprints: Fingerprints,
}

/// Account, kind, executable: what is said once, and then counted.
type Finding = (String, &'static str, String);

/// A finding that a signal was raised for.
#[derive(Clone, Copy, Debug)]
struct Said {
    /// Until when what was said holds.
    until: Timestamp,
    /// From when on it is said again, so that what goes on does not seem to be over.
    again: Timestamp,
    /// How often it was found since.
    repeats: u64,
}

impl Drift {
    /// Goes on from what an earlier daemon had seen of executables.
    pub(crate) fn with(known: Baselines) -> Self {
        Self { fingerprints: Fingerprints::with(known), ..Self::default() }
    }

    /// Whether an account's program has not been looked at yet.
    fn first(&mut self, account: &str, program: Program) -> bool {
        let key = (account.to_owned(), program);
        if !self.seen.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    fn raise(&mut self, config: &Config, account: &str, (kind, risk): Kind, path: &str, evidence: String) {
        let finding = (account.to_owned(), kind, path.to_owned());
        if let Some((.., again)) = self.raised.iter_mut().find(|(_, known, _)| *known == finding) {
            *again += 1;
            return;
        }
        let repeats = self.said.get(&finding).map_or(0, |said| said.repeats);
        let evidence = match repeats {
            0 => evidence,
            1 => format!("{evidence} (and once more since this was last said)"),
            more => format!("{evidence} (and {more} times more since this was last said)"),
        };
        let declared = config.signals.contains_key(kind);
        let incoming = Incoming {
            account: account.to_owned(),
            kind: kind.to_owned(),
            risk: (!declared).then_some(risk),
            ttl: (!declared).then_some(TTL),
            evidence: Some(evidence),
            ..Incoming::default()
        };
        self.raised.push((incoming, finding, 0));
    }

    /// Counts a finding that a signal says already, as long as `holds`; false: it is to be said.
    fn counts(&mut self, account: &str, kind: &'static str, path: &str, now: Timestamp, holds: bool) -> bool {
        let said = self.said.get_mut(&(account.to_owned(), kind, path.to_owned()));
        match said.filter(|said| holds && now < said.again) {
            Some(said) => {
                said.repeats += 1;
                true
            }
            None => false,
        }
    }

    /// A finding is said until its signal ends.
    fn has_said(&mut self, finding: Finding, repeats: u64, from: Timestamp, until: Timestamp) {
        if self.said.len() >= MOST {
            self.said.retain(|_, said| from < said.until);
        }
        let half = until.duration_since(from) / 2;
        let again = from.checked_add(half).unwrap_or(until);
        if self.said.len() < MOST {
            self.said.insert(finding, Said { until, again, repeats });
        }
    }
}

impl Engine {
    /// Looks at the program that made an attempt.
    pub(crate) fn look_at_attempt(&mut self, account: &str, event: &DecisionEvent, executable: Option<&str>) {
        let Some(path) = executable else { return }; // What could not be named is no finding.
        let file = (event.executable_device, event.executable_inode);
        self.look_at_program(account, (event.pid, event.start_time), file, path);
    }

    /// Looks at a program that was started, where user, unit and cgroup say whose it is. A match by executable is left to
    /// the kernel, which follows lineages.
    pub(crate) fn look_at_exec(&mut self, event: &ProcessEvent) {
        let file = (event.executable_device, event.executable_inode);
        let given = event.path.get(..(event.path_len as usize).min(PATH_LEN)).unwrap_or_default();
        let given = String::from_utf8_lossy(given).into_owned();
        let path = self.processes.path_of(file).or_else(|| given.starts_with('/').then_some(given));
        let Some(path) = path.filter(|path| !STARTERS.contains(&path.as_str())) else { return };
        let cgroup = self.processes.cgroup_of_exec(event.cgroup, event.pid);
        let Some(current) = &self.current else { return };
        let views = Views {
            uids: vec![(event.uid, View::UID)],
            cgroups: cgroup.iter().map(|path| (path.clone(), View::CGROUP)).collect(),
            ..Views::default()
        };
        let names = current.identities.accounts(&views).into_keys();
        let whose: Vec<String> = names
            .filter_map(|account| current.generation.account_name(u32::from(account)))
            .map(str::to_owned)
            .collect();
        if whose.is_empty() {
            return;
        }
        let sighting = Sighting { event, path: &path, cgroup: cgroup.as_deref() };
        for account in whose {
            self.look_at_program(&account, (event.pid, event.start_time), file, &path);
            self.look_at_start(&account, &sighting);
        }
    }

    fn look_at_program(&mut self, account: &str, process: (u32, u64), file: (u32, u64), path: &str) {
        let Some(current) = &self.current else { return };
        let Some(listed) = current.config.accounts.get(account).map(|account| &account.executables) else { return };
        // A program replaced by an upgrade runs on under its old name.
        let path = path.trim_end_matches(" (deleted)");
        if listed.is_empty() || STARTERS.contains(&path) || !self.drift.first(account, (process.0, process.1, file.1)) {
            return;
        }
        if is_listed(listed, path, file, process.0) {
            // Its contents are read on a thread of their own; what comes of it is looked at with the next tick.
            self.drift.fingerprints.look(account, path);
            return;
        }
        let evidence = format!("process {} runs {path}", process.0);
        self.find(account, UNEXPECTED, path, evidence);
    }

    /// Raises a finding, or counts it where a live signal says the same already and there is nothing it could still end.
    fn find(&mut self, account: &str, kind: Kind, path: &str, evidence: String) {
        let Some(current) = &self.current else { return };
        let now = Timestamp::now();
        // Drift ends grants for good: one that was made a moment ago must not outlive it.
        let live = self.live.account(account, now, &current.config, current.config.agent.risk, self.base.digest());
        let own = Caller::detector("writ").source();
        let holds = live.signals.iter().any(|signal| signal.kind == kind.0 && signal.source.same(&own));
        let ends_nothing = live.grants.is_empty() && live.approved.is_empty();
        if !self.drift.counts(account, kind.0, path, now, holds && ends_nothing) {
            self.drift.raise(&current.config, account, kind, path, evidence);
        }
    }

    /// What the start of a program says by itself.
    fn look_at_start(&mut self, account: &str, sighting: &Sighting<'_>) {
        let Some(current) = &self.current else { return };
        let listed = current.config.accounts.get(account).map_or(&[][..], |account| &account.executables);
        let file = (sighting.event.executable_device, sighting.event.executable_inode);
        let approved = is_listed(listed, sighting.path, file, sighting.event.pid);
        let found = [
            sighting.deleted().map(|evidence| (DELETED, evidence)),
            (!approved).then(|| sighting.shell_of_a_service()).flatten().map(|evidence| (SHELL, evidence)),
            sighting.login().map(|evidence| (LOGIN, evidence)),
        ];
        for (kind, evidence) in found.into_iter().flatten() {
            self.find(account, kind, sighting.path, evidence);
        }
    }

    /// Takes what reading executables gave.
    pub(crate) fn look_at_fingerprints(&mut self) {
        let Some(current) = &self.current else { return };
        for Changed { account, path, before, after } in self.drift.fingerprints.changed() {
            let evidence = format!("{path} was sha256:{before} and is sha256:{after}");
            // Every change of contents is news.
            self.drift.raise(&current.config, &account, CHANGED, &path, evidence);
        }
        if let Some(known) = self.drift.fingerprints.learnt()
            && let Err(error) = self.store.save_fingerprints(&known)
        {
            tracing::error!(%error, "what executables are could not be kept: after a restart a change goes unseen");
            self.drift.fingerprints.not_kept();
        }
        self.raise_drift();
    }

    /// Raises what was found, once the records that show it are written.
    pub(crate) fn raise_drift(&mut self) {
        for (incoming, finding, repeats) in std::mem::take(&mut self.drift.raised) {
            let actor = Actor { caller: Caller::detector("writ"), ..Actor::default() };
            match self.signal(&incoming, &actor) {
                Ok(received) => {
                    if let Some(signal) = received.outcome.accepted() {
                        self.drift.has_said(finding, repeats, signal.at, signal.expires);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, account = incoming.account, "workload drift could not be signalled");
                }
            }
        }
    }
}

/// Whether a file is one of those listed, under whatever name: a link, or `/bin` for `/usr/bin`. Its path alone says so where
/// only root could have put another file there: in a user namespace of its own a process can.
fn is_listed(listed: &[String], path: &str, file: (u32, u64), pid: u32) -> bool {
    let mut by_path = None;
    listed.iter().any(|known| {
        let found = file_at(known);
        found == Some(file)
            || known == path && (found.is_none() || *by_path.get_or_insert_with(|| in_our_user_namespace(pid)))
    })
}

/// Whether a process is in the user namespace of the daemon; one that has ended cannot tell.
fn in_our_user_namespace(pid: u32) -> bool {
    let of = |process: &str| fs::metadata(format!("/proc/{process}/ns/user")).map(|found| found.ino());
    of("self").and_then(|own| Ok(of(&pid.to_string())? == own)).unwrap_or(false)
}
