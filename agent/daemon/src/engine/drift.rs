//! Workload drift seen from here: a process of an account that runs what the account's `executables` do not list.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use nix::unistd::{Uid, User};
use writ_abi::{DecisionEvent, PATH_LEN, ProcessEvent};
use writ_core::config::Account;
use writ_core::signal::{Caller, Incoming};

use super::{Actor, Engine};
use crate::process::{kernel_device, unit_of};

/// The built-in kind; declaring it in `signals.d` sets its risk, time to live and flag.
pub(crate) const UNEXPECTED_EXECUTABLE: &str = "workload.unexpected-executable";
/// What it says where it is not declared.
const RISK: u8 = 50;
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
    raised: Vec<Incoming>,
}

impl Drift {
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
}

impl Engine {
    /// Looks at the program that made an attempt.
    pub(crate) fn look_at_attempt(&mut self, account: &str, event: &DecisionEvent, executable: Option<&str>) {
        let Some(path) = executable else { return }; // What could not be named is no finding.
        let file = (event.executable_device, event.executable_inode);
        self.look_at(account, (event.pid, event.start_time), file, path);
    }

    /// Looks at a program that was started, where it is plain whose it is.
    pub(crate) fn look_at_exec(&mut self, event: &ProcessEvent) {
        let Some(current) = &self.current else { return };
        let restricted = || current.config.accounts.values().filter(|account| !account.executables.is_empty());
        if restricted().next().is_none() {
            return;
        }
        let file = (event.executable_device, event.executable_inode);
        let given = event.path.get(..(event.path_len as usize).min(PATH_LEN)).unwrap_or_default();
        let given = String::from_utf8_lossy(given).into_owned();
        let path = self.processes.path_of(file).or_else(|| given.starts_with('/').then_some(given));
        let Some(path) = path else { return };
        let cgroup = self.processes.cgroup_of_exec(event.cgroup, event.pid);
        let Some(current) = &self.current else { return };
        let user = User::from_uid(Uid::from_raw(event.uid)).ok().flatten().map(|user| user.name);
        let whose: Vec<String> = current
            .config
            .accounts
            .values()
            .filter(|account| !account.executables.is_empty())
            .filter(|account| is_of(account, event.uid, user.as_deref(), cgroup.as_deref()))
            .map(|account| account.name.clone())
            .collect();
        for account in whose {
            self.look_at(&account, (event.pid, event.start_time), file, &path);
        }
    }

    fn look_at(&mut self, account: &str, process: (u32, u64), file: (u32, u64), path: &str) {
        let Some(listed) = self.current.as_ref().and_then(|current| current.config.accounts.get(account)) else {
            return;
        };
        // A program replaced by an upgrade runs on under its old name.
        let path = path.trim_end_matches(" (deleted)");
        if listed.executables.is_empty() || STARTERS.contains(&path) {
            return;
        }
        if !self.drift.first(account, (process.0, process.1, file.1)) {
            return;
        }
        let is_listed = |known: &String| {
            known == path
                // The same file by another name: a link, or `/bin` for `/usr/bin`.
                || fs::metadata(known).is_ok_and(|found| (kernel_device(found.dev()), found.ino()) == file)
        };
        if listed.executables.iter().any(is_listed) {
            return;
        }
        let declared =
            self.current.as_ref().is_some_and(|current| current.config.signals.contains_key(UNEXPECTED_EXECUTABLE));
        self.drift.raised.push(Incoming {
            account: account.to_owned(),
            kind: UNEXPECTED_EXECUTABLE.to_owned(),
            risk: (!declared).then_some(RISK),
            ttl: (!declared).then_some(TTL),
            evidence: Some(format!("process {} runs {path}", process.0)),
            ..Incoming::default()
        });
    }

    /// Raises what was found, once the records that show it are written.
    pub(crate) fn raise_drift(&mut self) {
        for incoming in std::mem::take(&mut self.drift.raised) {
            let actor = Actor { caller: Caller::detector("writ"), ..Actor::default() };
            if let Err(error) = self.signal(&incoming, &actor) {
                tracing::error!(%error, account = incoming.account, "workload drift could not be signalled");
            }
        }
    }
}

/// Whether a process with these views is one of the account's by user, unit or cgroup. A match by executable is left to
/// the kernel, which follows lineages.
fn is_of(account: &Account, uid: u32, user: Option<&str>, cgroup: Option<&str>) -> bool {
    account.matches.iter().any(|way| {
        if way.executable.is_some() || (way.user.is_none() && way.unit.is_none() && way.cgroup.is_none()) {
            return false;
        }
        let by_user = way.user.as_deref().is_none_or(|wanted| Some(wanted) == user || wanted.parse() == Ok(uid));
        let by_unit = way.unit.as_deref().is_none_or(|wanted| cgroup.and_then(unit_of).as_deref() == Some(wanted));
        let by_cgroup = way.cgroup.as_deref().is_none_or(|wanted| {
            let wanted = wanted.trim_end_matches('/');
            cgroup.is_some_and(|path| {
                path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        });
        by_user && by_unit && by_cgroup
    })
}
