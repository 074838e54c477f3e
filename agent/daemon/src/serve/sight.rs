//! What the host says of a process that asks, but for the accounts it leads to: read beside the engine, which would otherwise
//! stand still for as long as a name service takes to answer.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Group, Uid, User};

use crate::engine::Actor;
use crate::kernel::process_descriptor;
use crate::process::{self, Ancestor, OwnFiles};

/// How long what was seen of a process is taken for what it is. It holds only while a connection is open that the process had
/// before it could become anything else; whether the process is there is looked at every time.
const LOOK: Duration = Duration::from_millis(100);
/// How long those it descends from are taken for what they are. An ancestor is older than its descendants, so nobody is added to
/// them; and what one of them becomes afterwards is not where the process came from.
const DESCENT: Duration = Duration::from_secs(60);
/// How long a user's or group's name is what it is. After that it is asked for anew.
const NAME: Duration = Duration::from_secs(5);
/// How long nobody waits for that, if there was one: a name service takes longer than all else that a signal needs.
const LAST_NAME: Duration = Duration::from_secs(60);
/// How many names are kept; then all are asked for anew.
const MOST_NAMES: usize = 4_096;

/// A process, and as whom it connected: uid, pid, start in clock ticks.
pub(super) type Process = (u32, i32, u64);

/// What was seen of the processes that have connections open: those of one process share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings {
    known: Arc<Mutex<HashMap<Process, Weak<Sighting>>>>,
    names: Names,
}

/// One process: itself, as long as it lives, and what was seen of it last.
#[derive(Debug)]
pub(super) struct Sighting {
    /// `None` where it could not be had: then its start is compared each time.
    process: Option<OwnedFd>,
    files: OwnFiles,
    names: Names,
    last: Mutex<Option<Arc<Sight>>>,
    /// Which actor that is, and under which tables.
    known: Mutex<Option<(Arc<Sight>, u64, Actor)>>,
}

/// What was seen at one look.
#[derive(Debug)]
pub(super) struct Sight {
    at: Instant,
    /// When its ancestors were looked at.
    descended: Instant,
    /// Name of the user that it connected as.
    pub(super) user: Option<String>,
    /// Names of its groups.
    pub(super) groups: Vec<String>,
    pub(super) loginuid: Option<u32>,
    /// As whom it connected, who logged in, as whom it runs.
    pub(super) uids: Vec<u32>,
    /// Itself, then its ancestors.
    pub(super) lineage: Vec<Ancestor>,
    pub(super) cgroup: Option<String>,
    pub(super) executable: Option<String>,
}

impl Sightings {
    /// Nobody yet. The name service is loaded meanwhile: with the first name that is asked for, while nobody waits for it.
    pub(super) fn begin() -> Self {
        let sightings = Self::default();
        let names = sightings.names.clone();
        tokio::task::spawn_blocking(move || names.ask(0, &[0]));
        sightings
    }

    /// What was seen of a process, for as long as one of its connections is open.
    pub(super) fn of(&self, process: Process) -> Arc<Sighting> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sighting) = known.get(&process).and_then(Weak::upgrade) {
            return sighting;
        }
        known.retain(|_, sighting| sighting.strong_count() > 0);
        let sighting = Arc::new(Sighting::new(process, self.names.clone()));
        known.insert(process, Arc::downgrade(&sighting));
        sighting
    }
}

impl Sighting {
    fn new((_, pid, started): Process, names: Names) -> Self {
        let own = pid.unsigned_abs();
        let (process, files) = (process_descriptor(own).ok(), OwnFiles::open(own));
        // What has the pid by now can be another one.
        let is_it = process::start_ticks_of(pid) == Some(started);
        let process = process.filter(|_| is_it);
        let files = if process.is_some() { files } else { OwnFiles::of_whoever_has(own) };
        Self { process, files, names, last: Mutex::default(), known: Mutex::default() }
    }

    /// Nobody's: of a peer of which nothing is known.
    pub(super) fn of_nobody() -> Self {
        let (process, names, last, known) = Default::default();
        Self { process, files: OwnFiles::of_whoever_has(0), names, last, known }
    }

    /// Whether the process has ended; `None`: it cannot be told by this.
    pub(super) fn has_ended(&self) -> Option<bool> {
        let mut asked = [PollFd::new(self.process.as_ref()?.as_fd(), PollFlags::POLLIN)];
        Some(poll(&mut asked, PollTimeout::ZERO).ok()? > 0)
    }

    /// What the host says of the process, now or a moment ago; `None` if it is gone, or one that it descends from cannot be seen.
    pub(super) async fn look(&self, (uid, pid, _): Process) -> Option<Arc<Sight>> {
        let last = self.last();
        if let Some(last) = last.as_ref().filter(|last| last.at.elapsed() < LOOK) {
            return Some(Arc::clone(last));
        }
        let at = Instant::now();
        let process = pid.unsigned_abs();
        let loginuid = self.files.loginuid();
        let known = last.as_ref().filter(|last| last.descended.elapsed() < DESCENT);
        let (descended, lineage) = match known {
            Some(last) => (last.descended, process::lineage_again(&last.lineage, &self.files)),
            None => (at, process::lineage(process)),
        };
        // Whoever is not seen could be the very account that may not ask this.
        let lineage = Some(lineage).filter(|lineage| process::is_whole(lineage))?;
        let credentials = lineage.first()?.credentials.as_ref()?;
        let [real, effective, _] = credentials.gids;
        let gids = credentials.groups.iter().copied().chain([effective, real]).collect();
        let uids = [uid].into_iter().chain(loginuid).chain(credentials.uids).collect();
        let executable = process::executable_of(process);
        let cgroup = self.files.cgroup();
        let (user, groups) = self.names.of(uid, gids).await;
        let sight = Arc::new(Sight { at, descended, user, groups, loginuid, uids, lineage, cgroup, executable });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&sight));
        Some(sight)
    }

    fn last(&self) -> Option<Arc<Sight>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process was an actor before.
    pub(super) fn is_known(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The actor that this was under tables of this generation, which `made` makes if nobody asked yet.
    pub(super) fn actor(&self, sight: &Arc<Sight>, generation: u64, made: impl FnOnce() -> Actor) -> Actor {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, under, actor)) = known.as_ref()
            && Arc::ptr_eq(of, sight)
            && *under == generation
        {
            return actor.clone();
        }
        let actor = made();
        *known = Some((Arc::clone(sight), generation, actor.clone()));
        actor
    }
}

/// Names of users and groups. The name service can be a server on another host: it is asked on a thread that may wait.
#[derive(Clone, Debug, Default)]
struct Names {
    users: Known,
    groups: Known,
    /// Whether names are being asked for though nobody waits for them.
    asking: Arc<AtomicBool>,
}

/// Names by number, and when they were asked for; `None`: nobody has it.
type Known = Arc<Mutex<HashMap<u32, (Instant, Option<String>)>>>;

impl Names {
    /// The name of a user, and those of groups that have one.
    async fn of(&self, uid: u32, gids: Vec<u32>) -> (Option<String>, Vec<String>) {
        if let Some((oldest, user, groups)) = self.known(uid, &gids) {
            if oldest >= NAME && !self.asking.swap(true, Ordering::AcqRel) {
                let names = self.clone();
                tokio::task::spawn_blocking(move || {
                    names.ask(uid, &gids);
                    names.asking.store(false, Ordering::Release);
                });
            }
            return (user, groups);
        }
        let names = self.clone();
        // A service that fails names nobody.
        tokio::task::spawn_blocking(move || names.ask(uid, &gids)).await.unwrap_or_default()
    }

    /// What is known of all of them, and how long ago the first of them was asked for; `None` if that is not good enough.
    fn known(&self, uid: u32, gids: &[u32]) -> Option<(Duration, Option<String>, Vec<String>)> {
        let (mut oldest, user) = recent(&self.users, uid)?;
        let mut groups = Vec::with_capacity(gids.len());
        for gid in gids {
            let (age, name) = recent(&self.groups, *gid)?;
            oldest = oldest.max(age);
            groups.extend(name);
        }
        Some((oldest, user, groups))
    }

    fn ask(&self, uid: u32, gids: &[u32]) -> (Option<String>, Vec<String>) {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        keep(&self.users, uid, user.as_ref());
        let group = |gid: &u32| {
            let name = Group::from_gid(Gid::from_raw(*gid)).ok().flatten().map(|group| group.name);
            keep(&self.groups, *gid, name.as_ref());
            name
        };
        (user, gids.iter().filter_map(group).collect())
    }
}

fn recent(known: &Known, number: u32) -> Option<(Duration, Option<String>)> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, name) = known.get(&number)?;
    let (age, holds) = (at.elapsed(), if name.is_some() { LAST_NAME } else { NAME });
    (age < holds).then(|| (age, name.clone()))
}

fn keep(known: &Known, number: u32, name: Option<&String>) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MOST_NAMES {
        known.clear();
    }
    known.insert(number, (Instant::now(), name.cloned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        let pid = i32::try_from(std::process::id()).unwrap();
        (nix::unistd::geteuid().as_raw(), pid, process::start_ticks_of(pid).unwrap())
    }

    #[tokio::test]
    async fn a_process_is_seen_with_its_names_and_is_asked_about_anew_under_other_tables() {
        let sighting = Sightings::default().of(own());
        let sight = sighting.look(own()).await.unwrap();
        let user = User::from_uid(nix::unistd::geteuid()).unwrap().map(|user| user.name);
        assert_eq!(sight.user, user);
        let group = Group::from_gid(nix::unistd::getegid()).unwrap().map(|group| group.name);
        assert_eq!(group.filter(|group| !sight.groups.contains(group)), None);
        assert_eq!(sight.lineage.first().map(|process| process.pid), Some(std::process::id()));
        assert_eq!(sighting.has_ended(), Some(false));
        assert!(!sighting.is_known());
        sighting.actor(&sight, 1, Actor::default);
        sighting.actor(&sight, 1, || panic!("it is known"));
        let mut asked = false;
        sighting.actor(&sight, 2, || {
            asked = true;
            Actor::default()
        });
        assert!(asked, "other tables, perhaps other accounts");
    }

    #[tokio::test]
    async fn names_are_asked_for_once_in_a_while_and_one_that_nobody_has_is_none() {
        let names = Names::default();
        let nobody = u32::MAX - 7;
        assert_eq!(names.of(nobody, vec![nobody]).await, (None, Vec::new()));
        keep(&names.users, nobody, Some(&"given since".to_owned()));
        assert_eq!(names.of(nobody, vec![nobody]).await.0.as_deref(), Some("given since"));
        let ago = |age| Some((Instant::now().checked_sub(age)?, Some("gone".to_owned())));
        names.users.lock().unwrap().insert(nobody, ago(NAME).unwrap());
        assert_eq!(names.of(nobody, vec![nobody]).await.0.as_deref(), Some("gone"), "nobody waits");
        let behind = async {
            while recent(&names.users, nobody).unwrap().1.is_some() || names.asking.load(Ordering::Acquire) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), behind).await.expect("it is asked for behind");
        names.users.lock().unwrap().insert(nobody, ago(LAST_NAME).unwrap());
        assert_eq!(names.of(nobody, vec![nobody]).await.0, None, "asked for again");
        let unnamed = (Instant::now().checked_sub(NAME).unwrap(), None);
        names.users.lock().unwrap().insert(nobody, unnamed);
        assert_eq!(recent(&names.users, nobody), None, "that nobody has it is not taken for so long");
    }
}
