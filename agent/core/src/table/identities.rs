//! Which users, units, cgroups and executables of a host lead to which accounts.

use std::collections::{BTreeMap, BTreeSet};

use writ_abi::{Clause, ClauseList, MAX_CLAUSES};

use super::{Generation, Subordinates};
use crate::config::{Config, Match};
use crate::diagnostic::Diagnostic;

/// A [`ClauseList`] in a map.
pub type ClauseList32 = u32;

/// Which host identities lead to which accounts, resolved by the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identities {
    /// By uid: its selector number (0 if no clause compares it) and its clauses.
    pub users: BTreeMap<u32, (u32, ClauseList32)>,
    /// By system unit name.
    pub units: BTreeMap<String, ClauseList32>,
    /// By cgroup path below the cgroup2 mount.
    pub cgroups: BTreeMap<String, ClauseList32>,
    /// By device (kernel encoding) and inode: its class and its clauses.
    pub executables: BTreeMap<(u32, u64), (u32, ClauseList32)>,
    /// The clause table; index 0 is unused.
    pub clauses: Vec<u64>,
    /// The uids that the users can take besides their own, in order.
    pub subordinates: Vec<Subordinates>,
}

/// What could not be found on the host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unresolved {
    /// A `match.user` that does not exist.
    User {
        /// The account.
        account: String,
        /// The user.
        user: String,
    },
    /// A `match.executable` that does not exist.
    Executable {
        /// The account.
        account: String,
        /// The path.
        path: String,
    },
    /// An executable that policies or accounts name does not exist: it has no processes.
    ExecutableClass {
        /// The path.
        path: String,
    },
    /// Two named paths are one file: its processes count as the first.
    SameFile {
        /// The path whose class is used.
        path: String,
        /// The path whose class is not.
        other: String,
    },
}

/// The key by which a `match` table is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Anchor {
    Unit(String),
    Cgroup(String),
    Executable((u32, u64)),
    User(u32),
}

/// Everything a clause refers to, resolved on the host.
struct Resolved<'a> {
    users: &'a BTreeMap<String, u32>,
    executables: &'a BTreeMap<String, (u32, u64)>,
    /// Class by file.
    classes: BTreeMap<(u32, u64), u32>,
}

impl Identities {
    /// Resolves the `match` tables with the host's users (uid by name) and executables (device and inode by path).
    pub fn build(
        config: &Config,
        users: &BTreeMap<String, u32>,
        executables: &BTreeMap<String, (u32, u64)>,
        generation: &Generation,
    ) -> (Self, Vec<Unresolved>) {
        let mut missing = BTreeSet::new();
        let mut classes: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        let mut named: BTreeMap<(u32, u64), &String> = BTreeMap::new();
        for (path, class) in &generation.executables {
            let Some(file) = executables.get(path) else {
                missing.insert(Unresolved::ExecutableClass { path: path.clone() });
                continue;
            };
            match named.get(file) {
                Some(first) => {
                    missing.insert(Unresolved::SameFile { path: (*first).clone(), other: path.clone() });
                }
                None => {
                    named.insert(*file, path);
                    classes.insert(*file, *class);
                }
            }
        }
        let resolved = Resolved { users, executables, classes };
        let mut selectors: BTreeMap<u32, u32> = BTreeMap::new();
        let mut anchored: BTreeMap<Anchor, BTreeSet<u64>> = BTreeMap::new();
        for (index, name) in generation.accounts.iter().enumerate() {
            let Some(account) = config.accounts.get(name) else { continue };
            for found in &account.matches {
                if let Some((anchor, clause)) = resolved.clause(index as u16, name, found, &mut selectors, &mut missing)
                {
                    anchored.entry(anchor).or_default().insert(clause.0);
                }
            }
        }
        let mut identities = Self { clauses: vec![0], ..Self::default() };
        for (uid, selector) in &selectors {
            identities.users.insert(*uid, (*selector, ClauseList::NONE.0));
        }
        for (file, class) in &resolved.classes {
            identities.executables.insert(*file, (*class, ClauseList::NONE.0));
        }
        for (anchor, clauses) in anchored {
            let list = identities.list(&clauses);
            match anchor {
                Anchor::Unit(unit) => {
                    identities.units.insert(unit, list);
                }
                Anchor::Cgroup(path) => {
                    identities.cgroups.insert(path, list);
                }
                Anchor::Executable(file) => identities.executables.entry(file).or_default().1 = list,
                Anchor::User(uid) => identities.users.entry(uid).or_default().1 = list,
            }
        }
        (identities, missing.into_iter().collect())
    }

    /// What is wrong with the `match` tables whatever the host.
    pub fn check(config: &Config) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        let mut anchored: BTreeMap<String, BTreeSet<(&String, &Match)>> = BTreeMap::new();
        for account in config.accounts.values() {
            for found in &account.matches {
                if let (Some(unit), Some(cgroup)) = (found.unit_besides_cgroup(), &found.cgroup) {
                    let message = format!(
                        "`{}` is matched by unit `{unit}` and by cgroup `{cgroup}`, which is not known to lie in the unit",
                        account.name
                    );
                    let help = format!(
                        "name the unit's own cgroup, or one below it, in `cgroup`: e.g. {{ unit = \"{unit}\", cgroup = \"/system.slice/{unit}\" }}; or name one of them alone"
                    );
                    findings.push(Diagnostic::error("match", message).help(help).at(account.at.clone()));
                }
                let keys = [
                    ("unit", found.unit_besides_cgroup()),
                    ("cgroup", found.cgroup.as_ref()),
                    ("executable", found.executable.as_ref()),
                    ("user", found.user.as_ref()),
                ];
                let anchor = keys.into_iter().find_map(|(kind, value)| Some(format!("{kind} `{}`", value?)));
                match anchor {
                    Some(anchor) => {
                        anchored.entry(anchor).or_default().insert((&account.name, found));
                    }
                    None => findings.push(
                        Diagnostic::error("match", format!("a `match` of `{}` is empty", account.name))
                            .help("name a user, unit, cgroup or executable")
                            .at(account.at.clone()),
                    ),
                }
            }
        }
        for (anchor, clauses) in anchored {
            if clauses.len() > MAX_CLAUSES as usize {
                let names: BTreeSet<&str> = clauses.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.into_iter().collect::<Vec<_>>().join("`, `");
                findings.push(
                    Diagnostic::error(
                        "match",
                        format!(
                            "{} `match` tables begin with {anchor}; {MAX_CLAUSES} is the limit (`{names}`)",
                            clauses.len()
                        ),
                    )
                    .help("match them by different units, cgroups or users"),
                );
            }
        }
        findings
    }

    /// Lets a file count as another: a replaced executable that processes still run. Nothing that has a meaning of its own
    /// loses it.
    pub fn count_as(&mut self, earlier: (u32, u64), current: (u32, u64)) {
        if let Some(entry) = self.executables.get(&current).copied() {
            self.executables.entry(earlier).or_insert(entry);
        }
    }

    fn list(&mut self, clauses: &BTreeSet<u64>) -> ClauseList32 {
        if let [only] = clauses.iter().collect::<Vec<_>>().as_slice() {
            let clause = Clause(**only);
            if clause.user() == 0 && clause.executable() == 0 {
                return ClauseList::direct(clause.account()).0;
            }
        }
        let index = self.clauses.len() as u32;
        self.clauses.push(clauses.len() as u64);
        self.clauses.extend(clauses);
        index
    }
}

impl Resolved<'_> {
    /// The anchor and the rest of one `match` table; `None` if part of it is not on this host.
    fn clause(
        &self,
        index: u16,
        account: &str,
        found: &Match,
        selectors: &mut BTreeMap<u32, u32>,
        missing: &mut BTreeSet<Unresolved>,
    ) -> Option<(Anchor, Clause)> {
        let user = match &found.user {
            None => None,
            Some(name) => match self.uid(name) {
                Some(uid) => Some(uid),
                None => {
                    missing.insert(Unresolved::User { account: account.to_owned(), user: name.clone() });
                    return None;
                }
            },
        };
        let executable = match &found.executable {
            None => None,
            Some(path) => match self.executables.get(path) {
                Some(file) => Some(*file),
                None => {
                    missing.insert(Unresolved::Executable { account: account.to_owned(), path: path.clone() });
                    return None;
                }
            },
        };
        let mut user_selector = || {
            let next = selectors.len() as u32 + 1;
            user.map_or(0, |uid| *selectors.entry(uid).or_insert(next))
        };
        let class = executable.and_then(|file| self.classes.get(&file).copied()).unwrap_or(0);
        Some(match (found.unit_besides_cgroup(), &found.cgroup, executable, user) {
            (Some(unit), _, _, _) => (Anchor::Unit(unit.clone()), Clause::new(index, user_selector(), class)),
            (None, Some(path), _, _) => (Anchor::Cgroup(path.clone()), Clause::new(index, user_selector(), class)),
            (None, None, Some(file), _) => (Anchor::Executable(file), Clause::new(index, user_selector(), 0)),
            (None, None, None, Some(uid)) => (Anchor::User(uid), Clause::new(index, 0, 0)),
            (None, None, None, None) => return None,
        })
    }

    fn uid(&self, name: &str) -> Option<u32> {
        if name.bytes().all(|byte| byte.is_ascii_digit()) { name.parse().ok() } else { self.users.get(name).copied() }
    }
}
