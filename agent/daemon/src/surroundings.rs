//! What around writ could undo it: programs of somebody else on the same hooks, and accounts that hold capabilities by which
//! enforcement can be removed or altered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::User;
use procfs::process::{Process, all_processes};
use serde::{Deserialize, Serialize};
use writ_core::config::{Account, Match};

use crate::kernel::{CgroupMount, ForeignProgram, foreign_programs};
use crate::process::{cgroup_of, unit_of};

/// The capabilities that end containment, by the kernel's numbers.
const UNDOING: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];
/// For how long an answer is given again: looking costs a pass over all processes and cgroups.
const FRESH: Duration = Duration::from_secs(2);

/// A process or unit of an account that can undo enforcement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct NotContainable {
    /// The account.
    pub account: String,
    /// `process` or `unit`.
    pub holder: String,
    /// The process; absent for a unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its executable, or the unit's name.
    pub name: String,
    /// What it holds, or the unit's processes may hold.
    pub capabilities: Vec<String>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// Programs of others on the same hooks; absent: could not tell.
    #[serde(default)]
    pub foreign_programs: Option<Vec<ForeignProgram>>,
    /// Accounts that can undo enforcement, by those who hold the capabilities.
    #[serde(default)]
    pub not_containable: Vec<NotContainable>,
}

/// Where to look from: what is declared, what is judged, where writ's own programs are pinned.
#[derive(Clone, Debug)]
pub(crate) struct Vantage {
    /// The accounts.
    pub accounts: BTreeMap<String, Account>,
    /// The judged cgroup.
    pub mount: CgroupMount,
    /// The pin directory.
    pub pins: PathBuf,
}

impl Vantage {
    /// Looks around, or says again what was seen a moment ago. Reads every process and cgroup: not for an engine's turn.
    pub(crate) fn look(&self) -> Surroundings {
        let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, seen)) = &*latest
            && at.elapsed() < FRESH
        {
            return seen.clone();
        }
        let mut not_containable = processes(&self.accounts);
        not_containable.extend(units(&self.accounts));
        let seen = Surroundings { foreign_programs: foreign_programs(&self.mount, &self.pins), not_containable };
        *latest = Some((Instant::now(), seen.clone()));
        seen
    }
}

static LATEST: Mutex<Option<(Instant, Surroundings)>> = Mutex::new(None);

/// Processes that hold such a capability, and lead to an account.
fn processes(accounts: &BTreeMap<String, Account>) -> Vec<NotContainable> {
    let mut found = Vec::new();
    if accounts.is_empty() {
        return found;
    }
    for process in all_processes().into_iter().flatten().flatten() {
        // A process that has ended holds nothing.
        let Ok(status) = process.status() else { continue };
        let capabilities = names(status.capprm | status.capeff | status.capamb.unwrap_or(0));
        if capabilities.is_empty() {
            continue;
        }
        let seen = Seen::of(&process, status.ruid, status.euid);
        for (name, account) in accounts {
            if account.matches.iter().any(|wanted| seen.is(wanted)) {
                found.push(NotContainable {
                    account: name.clone(),
                    holder: "process".into(),
                    pid: Some(process.pid().unsigned_abs()),
                    name: seen.executable.clone(),
                    capabilities: capabilities.clone(),
                });
            }
        }
    }
    found
}

/// What selectors ask of a process.
struct Seen {
    uids: [u32; 2],
    cgroup: String,
    unit: Option<String>,
    executable: String,
}

impl Seen {
    fn of(process: &Process, uid: u32, euid: u32) -> Self {
        let cgroup = cgroup_of(process.pid().unsigned_abs()).unwrap_or_default();
        let executable = process.exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let executable = executable.trim_end_matches(" (deleted)").to_owned();
        Self { uids: [uid, euid], unit: unit_of(&cgroup), cgroup, executable }
    }

    fn is(&self, wanted: &Match) -> bool {
        let user = |name: &String| {
            let uid = name.parse().ok().or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()));
            uid.is_some_and(|uid| self.uids.contains(&uid))
        };
        let within = |cgroup: &String| Path::new(&self.cgroup).starts_with(cgroup);
        let unit = |name: &String| self.unit.as_ref() == Some(name) || self.cgroup.split('/').any(|part| part == name);
        wanted.user.as_ref().is_none_or(user)
            && wanted.unit.as_ref().is_none_or(unit)
            && wanted.cgroup.as_ref().is_none_or(within)
            && wanted.executable.as_ref().is_none_or(|path| *path == self.executable)
    }
}

/// Units of accounts whose processes start with such a capability, running or not, as systemd knows them.
fn units(accounts: &BTreeMap<String, Account>) -> Vec<NotContainable> {
    let mut found = Vec::new();
    for (name, account) in accounts {
        for unit in account.matches.iter().filter_map(|wanted| wanted.unit.as_ref()) {
            let Some(capabilities) = unit_capabilities(unit).filter(|held| !held.is_empty()) else { continue };
            found.push(NotContainable {
                account: name.clone(),
                holder: "unit".into(),
                pid: None,
                name: unit.clone(),
                capabilities,
            });
        }
    }
    found
}

/// `None`: there is no systemd here, or it does not know the unit.
fn unit_capabilities(unit: &str) -> Option<Vec<String>> {
    let mut command = Command::new("systemctl");
    command.args([
        "show",
        "--property=LoadState,User,DynamicUser,AmbientCapabilities,CapabilityBoundingSet",
        "--",
        unit,
    ]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok().filter(|out| out.status.success())?;
    held_by_unit(&String::from_utf8_lossy(&output.stdout))
}

/// What a unit's processes hold, from what `systemctl show` prints: what the bounding set leaves, if it runs as root, and
/// otherwise what it is given beside its user.
fn held_by_unit(shown: &str) -> Option<Vec<String>> {
    let property = |name: &str| {
        shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().trim()
    };
    if property("LoadState") != "loaded" {
        return None;
    }
    let root = matches!(property("User"), "" | "root" | "0") && property("DynamicUser") != "yes";
    let set = if root { property("CapabilityBoundingSet") } else { property("AmbientCapabilities") };
    let held = |name: &str| set.split_ascii_whitespace().any(|held| held.eq_ignore_ascii_case(name));
    Some(UNDOING.iter().filter(|(name, _)| held(name)).map(|(name, _)| (*name).to_owned()).collect())
}

fn names(set: u64) -> Vec<String> {
    UNDOING.iter().filter(|(_, number)| set >> number & 1 == 1).map(|(name, _)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named() {
        assert_eq!(names(0), Vec::<String>::new());
        assert_eq!(names(1 << 13), Vec::<String>::new(), "CAP_NET_RAW undoes nothing");
        assert_eq!(names(1 << 12 | 1 << 39), ["CAP_NET_ADMIN", "CAP_BPF"]);
        assert_eq!(names(u64::MAX).len(), 4);
    }

    #[test]
    fn a_unit_of_root_holds_its_bounding_set_and_another_its_ambient_set() {
        let bounding = "CapabilityBoundingSet=cap_chown cap_net_admin cap_bpf\n";
        let root = format!("LoadState=loaded\nUser=\nDynamicUser=no\nAmbientCapabilities=\n{bounding}");
        assert_eq!(held_by_unit(&root).unwrap(), ["CAP_NET_ADMIN", "CAP_BPF"]);
        let other = format!("LoadState=loaded\nUser=svc\nAmbientCapabilities=cap_sys_ptrace\n{bounding}");
        assert_eq!(held_by_unit(&other).unwrap(), ["CAP_SYS_PTRACE"]);
        let dynamic = format!("LoadState=loaded\nUser=\nDynamicUser=yes\nAmbientCapabilities=\n{bounding}");
        assert_eq!(held_by_unit(&dynamic).unwrap(), Vec::<String>::new());
        assert_eq!(held_by_unit("LoadState=not-found\n"), None);
    }

    #[test]
    fn every_key_of_a_match_is_asked_for() {
        let seen = Seen {
            uids: [7, 0],
            cgroup: "/system.slice/job.service/child".into(),
            unit: Some("job.service".into()),
            executable: "/bin/job".into(),
        };
        let nothing = Match { user: None, unit: None, cgroup: None, executable: None };
        let user = |uid: &str| Match { user: Some(uid.into()), ..nothing.clone() };
        assert!(seen.is(&user("7")) && seen.is(&user("0")) && !seen.is(&user("8")));
        let both = Match { executable: Some("/bin/other".into()), ..user("7") };
        assert!(!seen.is(&both));
        assert!(seen.is(&Match { unit: Some("job.service".into()), ..nothing.clone() }));
        assert!(seen.is(&Match { cgroup: Some("/system.slice".into()), ..nothing.clone() }));
        assert!(!seen.is(&Match { cgroup: Some("/system.slice/job".into()), ..nothing }));
    }
}
