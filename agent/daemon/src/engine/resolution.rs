//! What the configuration names and this host has: users and executables, looked up again as they appear and are replaced.
//!
//! A name that resolved once is not given up because a lookup fails: a directory service that is away for a moment, or a
//! file between two versions of its package, must not turn an account's processes into nobody's. An executable that was
//! replaced still counts for the processes that run the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use writ_abi::MOST_SUBORDINATES;
use writ_core::config::Config;
use writ_core::record::Lifecycle;
use writ_core::table::{Generation, Identities, Subordinates, Unresolved};

use super::Engine;
use crate::configuration::{SUBUID, is_script};
use crate::process::file_at;

/// How often names without a user are asked for again, and processes that run a replaced executable looked for.
const AGAIN: Duration = Duration::from_secs(5);
/// The local user database: asked again as a whole when it is written.
const USERS: &str = "/etc/passwd";

/// There are more rows of subordinate uids than the kernel takes: those beyond are nobody's.
const TOO_MANY_SUBORDINATES: &str = "too-many-subordinate-uids";

/// A file: device in the kernel's encoding, and inode.
type File = (u32, u64);

/// Names as they were resolved last.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Resolution {
    /// uid by user name.
    users: BTreeMap<String, u32>,
    /// File by path.
    executables: BTreeMap<String, File>,
    /// Files a path had before, as long as processes run them.
    earlier: BTreeMap<String, BTreeSet<File>>,
    /// Users that were asked for and are not there.
    #[serde(skip)]
    missing: BTreeSet<String>,
    #[serde(skip)]
    asked: Option<Asked>,
    #[serde(skip)]
    asking: Asking,
    /// The uids that the users of accounts can take besides their own.
    #[serde(skip)]
    subordinates: Vec<Subordinates>,
    /// When that was written.
    #[serde(skip)]
    given: Option<SystemTime>,
}

/// When users were asked for last, and what the user database was then.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    at: Instant,
    written: Option<SystemTime>,
}

/// Users that nobody had, asked for again on a thread: a directory service can take as long as it likes over a name.
#[derive(Clone, Debug, Default)]
struct Asking(Arc<Mutex<Question>>);

#[derive(Debug, Default)]
enum Question {
    #[default]
    None,
    Asked,
    Answered(BTreeMap<String, u32>),
}

impl Asking {
    /// What was found since the last call.
    fn answers(&self) -> BTreeMap<String, u32> {
        let mut question = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *question {
            Question::Answered(found) => {
                let found = std::mem::take(found);
                *question = Question::None;
                found
            }
            Question::None | Question::Asked => BTreeMap::new(),
        }
    }

    /// Asks, unless something is being asked.
    fn begin(&self, names: Vec<String>) {
        let mut question = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.is_empty() || !matches!(*question, Question::None) {
            return;
        }
        let asking = Arc::clone(&self.0);
        let spawned = std::thread::Builder::new().name("users".into()).spawn(move || {
            let found =
                names.into_iter().filter_map(|name| Some((uid_of(&name)?, name))).map(|(uid, name)| (name, uid));
            let found = Question::Answered(found.collect());
            *asking.lock().unwrap_or_else(PoisonError::into_inner) = found;
        });
        match spawned {
            Ok(_) => *question = Question::Asked,
            Err(error) => tracing::warn!(%error, "users that do not exist could not be asked for again"),
        }
    }
}

/// Two are the same whatever is being asked.
impl PartialEq for Asking {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Asking {}

fn uid_of(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()))
}

/// What a look at the host changed.
#[derive(Debug, Default)]
struct Difference {
    found: Vec<String>,
    gone: Vec<String>,
    replaced: Vec<String>,
}

impl Resolution {
    /// Looks every name of this configuration up.
    fn look(&mut self, config: &Config, generation: &Generation) -> Difference {
        let now = Instant::now();
        let written = fs::metadata(USERS).and_then(|users| users.modified()).ok();
        let rewritten = self.asked.as_ref().is_none_or(|asked| asked.written != written);
        let due = self.asked.as_ref().is_none_or(|asked| now.duration_since(asked.at) >= AGAIN);
        let mut difference = Difference::default();
        let matches = || config.accounts.values().flat_map(|account| &account.matches);
        let users: BTreeSet<&String> = matches().filter_map(|found| found.user.as_ref()).collect();
        // What no account is matched by is not followed: by the time it is named again it can be somebody else's uid.
        self.users.retain(|name, _| users.contains(name));
        self.missing.retain(|name| users.contains(name));
        let answers = self.asking.answers();
        let mut ask = Vec::new();
        for name in users {
            let known = self.users.get(name).copied();
            // Asking a directory service costs; what is known is asked for again only where it can have changed. A name that
            // was never asked for is new in the configuration: its processes are judged from now on.
            let unasked = known.is_none() && !self.missing.contains(name);
            if rewritten || unasked {
                self.user(name, known, &mut difference);
            } else if let Some(uid) = answers.get(name) {
                self.is(name, Some(*uid), known, &mut difference);
            } else if known.is_none() && due {
                ask.push(name.clone());
            }
        }
        self.asking.begin(ask);
        let changed = !(difference.found.is_empty() && difference.gone.is_empty() && difference.replaced.is_empty());
        let given = fs::metadata(SUBUID).and_then(|rows| rows.modified()).ok();
        if self.asked.is_none() || changed || given != self.given {
            self.given = given;
            self.look_at_subordinates();
        }
        let named = matches().filter_map(|found| found.executable.as_ref());
        for path in named.chain(generation.executables.keys()) {
            self.executable(path, &mut difference);
        }
        if due || rewritten {
            self.asked = Some(Asked { at: now, written });
            self.forget();
        }
        difference
    }

    fn user(&mut self, name: &str, known: Option<u32>, difference: &mut Difference) {
        self.is(name, uid_of(name), known, difference);
    }

    fn is(&mut self, name: &str, uid: Option<u32>, known: Option<u32>, difference: &mut Difference) {
        if uid.is_some() {
            self.missing.remove(name);
        } else {
            self.missing.insert(name.to_owned());
        }
        match (uid, known) {
            (Some(uid), known) if known != Some(uid) => {
                self.users.insert(name.to_owned(), uid);
                let list = if known.is_none() { &mut difference.found } else { &mut difference.replaced };
                list.push(format!("user {name}"));
            }
            // Somebody else's now: it would be judged as this account.
            (None, Some(uid)) if matches!(User::from_uid(Uid::from_raw(uid)), Ok(Some(other)) if other.name != name) => {
                self.users.remove(name);
                difference.gone.push(format!("user {name}"));
            }
            _ => {}
        }
    }

    /// What cannot be read is as it was: a file that is away for a moment must not make processes nobody's.
    fn look_at_subordinates(&mut self) {
        let text = match fs::read(SUBUID) {
            // Where nobody has any there is no such file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return tracing::error!(%error, file = SUBUID, "whose subordinate uids are cannot be read");
            }
            Ok(text) => text,
        };
        let mut users = self.users.clone();
        if !text.is_empty() {
            // The file names users by either.
            for (_, uid) in self.users.iter().filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_digit())) {
                users.extend(User::from_uid(Uid::from_raw(*uid)).ok().flatten().map(|user| (user.name, *uid)));
            }
            users.extend(self.users.values().map(|uid| (uid.to_string(), *uid)));
        }
        self.subordinates = Subordinates::read(&String::from_utf8_lossy(&text), &users);
    }

    fn executable(&mut self, path: &str, difference: &mut Difference) {
        // A script is no process's executable: its interpreter is.
        if is_script(Path::new(path)) {
            return;
        }
        let Some(file) = file_at(path) else { return };
        match self.executables.insert(path.to_owned(), file) {
            Some(before) if before == file => {}
            Some(before) => {
                self.earlier.entry(path.to_owned()).or_default().insert(before);
                difference.replaced.push(format!("executable {path}"));
            }
            None => difference.found.push(format!("executable {path}")),
        }
    }

    /// An executable that was looked up by somebody else: the next look does not find it anew.
    pub(super) fn found(&mut self, path: &str, file: File) {
        self.executables.insert(path.to_owned(), file);
    }

    /// Forgets replaced executables that nobody runs any more: their inode can become another file's.
    fn forget(&mut self) {
        if self.earlier.is_empty() {
            return;
        }
        let running = running();
        for (path, files) in &mut self.earlier {
            files.retain(|file| running.contains(&(*file, format!("{path} (deleted)"))));
        }
        self.earlier.retain(|_, files| !files.is_empty());
    }

    /// The selectors of this configuration on this host.
    fn identities(&self, config: &Config, generation: &Generation) -> (Identities, Vec<Unresolved>) {
        let (mut identities, unresolved) = Identities::build(config, &self.users, &self.executables, generation);
        identities.subordinates.clone_from(&self.subordinates);
        for (path, files) in &self.earlier {
            let Some(current) = self.executables.get(path) else { continue };
            for earlier in files {
                identities.count_as(*earlier, *current);
            }
        }
        (identities, unresolved)
    }
}

/// What every process runs: the file, and its path as the kernel tells it.
fn running() -> BTreeSet<(File, String)> {
    let of = |process: fs::DirEntry| {
        let link = process.path().join("exe");
        let file = file_at(&link)?;
        let path = fs::read_link(&link).ok()?;
        Some((file, path.to_string_lossy().into_owned()))
    };
    fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten().filter_map(of).collect()
}

impl Engine {
    /// Looks up what a configuration names, for a generation to come.
    pub(super) fn resolve(&mut self, config: &Config, generation: &Generation) -> (Identities, Vec<Unresolved>) {
        self.resolution.look(config, generation);
        if let Err(error) = self.store.save_resolution(&self.resolution) {
            tracing::error!(%error, "what was resolved could not be kept: a restart forgets replaced executables");
        }
        let (mut identities, unresolved) = self.resolution.identities(config, generation);
        super::selftest::add_identity(&mut identities);
        self.degraded_by(TOO_MANY_SUBORDINATES, identities.subordinates.len() > MOST_SUBORDINATES as usize);
        (identities, unresolved)
    }

    /// Looks every name up again; whether they lead where they led before.
    pub(super) fn resolves_as_before(&mut self) -> bool {
        let Some(current) = &self.current else { return true };
        self.resolution.asked = None;
        self.resolution.look(&current.config, &current.generation);
        let (mut identities, unresolved) = self.resolution.identities(&current.config, &current.generation);
        super::selftest::add_identity(&mut identities);
        (&identities, &unresolved) == (&current.identities, &current.unresolved)
    }

    /// Puts a new generation in force where a named user or executable appeared, was replaced or went to somebody else.
    pub(super) fn resolve_again(&mut self) {
        let Some(current) = &self.current else { return };
        let before = self.resolution.clone();
        let Difference { found, gone, replaced } = self.resolution.look(&current.config, &current.generation);
        let same = before.earlier == self.resolution.earlier && before.subordinates == self.resolution.subordinates;
        if found.is_empty() && gone.is_empty() && replaced.is_empty() && same {
            return;
        }
        match self.regenerate() {
            Ok(()) if found.len() + gone.len() + replaced.len() > 0 => {
                tracing::info!(?found, ?gone, ?replaced, "what the configuration names was resolved anew");
                self.note_lifecycle(Lifecycle::Resolved { found, gone, replaced });
            }
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the kernel could not be told who is who; it is tried again");
                // As if nothing had been seen: the next look finds the same differences.
                self.resolution = before;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_nobody_had_is_asked_for_beside_the_engine_and_once_at_a_time() {
        let asking = Asking::default();
        assert!(asking.answers().is_empty());
        asking.begin(vec!["root".into(), "no-such-user-here".into()]);
        let deadline = Instant::now() + Duration::from_secs(30);
        let found = loop {
            let found = asking.answers();
            if !found.is_empty() {
                break found;
            }
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        };
        assert_eq!(found, BTreeMap::from([("root".to_owned(), 0)]));
        *asking.0.lock().unwrap() = Question::Asked;
        asking.begin(vec!["root".into()]);
        assert!(matches!(*asking.0.lock().unwrap(), Question::Asked), "whatever hangs is not asked a second time");
    }

    #[test]
    fn a_user_that_resolved_once_is_not_given_up_because_a_lookup_fails() {
        let mut resolution = Resolution::default();
        let mut difference = Difference::default();
        resolution.users.insert("no-such-user-here".into(), 4_294_000_001);
        resolution.user("no-such-user-here", Some(4_294_000_001), &mut difference);
        assert_eq!(resolution.users.get("no-such-user-here"), Some(&4_294_000_001));
        // Root's uid is root's.
        resolution.users.insert("no-such-user-here".into(), 0);
        resolution.user("no-such-user-here", Some(0), &mut difference);
        assert_eq!(resolution.users.get("no-such-user-here"), None);
        assert_eq!(difference.gone, ["user no-such-user-here"]);
    }

    #[test]
    fn a_replaced_executable_counts_as_long_as_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let text = path.display().to_string();
        let (mut resolution, mut difference) = (Resolution::default(), Difference::default());
        fs::copy("/bin/sleep", &path).unwrap();
        let mut sleep = std::process::Command::new(&path);
        let mut child = loop {
            match sleep.arg("600").spawn() {
                // Somebody else's child has the descriptor that it was written by, until that child's own exec.
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
                spawned => break spawned.unwrap(),
            }
        };
        resolution.executable(&text, &mut difference);
        let first = *resolution.executables.get(&text).unwrap();
        fs::copy("/bin/sleep", directory.path().join("new")).unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        resolution.executable(&text, &mut difference);
        assert_ne!(resolution.executables.get(&text), Some(&first));
        assert_eq!(difference.replaced, [format!("executable {text}")]);
        resolution.forget();
        assert!(resolution.earlier.get(&text).is_some_and(|files| files.contains(&first)));
        child.kill().unwrap();
        child.wait().unwrap();
        resolution.forget();
        assert!(resolution.earlier.is_empty());
    }
}
