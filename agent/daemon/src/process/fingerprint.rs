//! Contents of approved executables, by digest: read on a thread of their own, and again whenever the file is another.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The largest file that is read.
const LARGEST: u64 = 512 << 20;
/// So much later a change has another time, for certain: until Linux 6.13 files' times are those of the last timer tick, a
/// hundredth of a second at most (include/linux/jiffies.h).
const GRAIN: Duration = Duration::from_millis(20);
/// How many files are told apart.
const MOST: usize = 4_096;

/// What changes whenever a file's contents do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    /// Whether it is root's alone to write, as a package's files are.
    of_root: bool,
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
            of_root: found.uid() == 0 && found.mode() & 0o022 == 0,
        }
    }

    /// How long until another change cannot have this time any more.
    fn settles_in(&self) -> Duration {
        let (seconds, nanoseconds) = self.changed;
        let changed = SignedDuration::new(seconds, i32::try_from(nanoseconds).unwrap_or(0));
        let age = Timestamp::now().as_duration().saturating_sub(changed);
        // One from the future, by a clock that was set since: it need not be waited for.
        if age.is_negative() { Duration::ZERO } else { GRAIN.saturating_sub(age.unsigned_abs()) }
    }
}

/// An executable with other contents than before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Changed {
    /// Whose process runs it.
    pub(crate) account: String,
    /// The file.
    pub(crate) path: String,
    /// Its digest before, in hexadecimal.
    pub(crate) before: String,
    /// Its digest now.
    pub(crate) after: String,
}

#[derive(Debug)]
struct Reading {
    account: String,
    path: String,
    stamp: Stamp,
    digest: Option<String>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    /// `None` until it was read, or if it cannot be.
    digest: Option<String>,
    /// Whether it is being read.
    reading: bool,
}

/// What one executable was, as it is kept across restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    stamp: Stamp,
    digest: String,
}

/// What executables were, by path.
pub(crate) type Baselines = BTreeMap<String, Baseline>;

/// The contents of executables as they were first seen.
#[derive(Debug)]
pub(crate) struct Fingerprints {
    known: HashMap<String, Known>,
    /// Whether something was learnt since it was last asked for.
    learnt: bool,
    sender: Sender<Reading>,
    readings: Receiver<Reading>,
}

impl Default for Fingerprints {
    fn default() -> Self {
        let (sender, readings) = channel();
        Self { known: HashMap::new(), learnt: false, sender, readings }
    }
}

impl Fingerprints {
    /// Goes on from what an earlier daemon had seen.
    pub(crate) fn with(baselines: Baselines) -> Self {
        let known = |Baseline { stamp, digest }| Known { stamp, digest: Some(digest), reading: false };
        let known = baselines.into_iter().take(MOST).map(|(path, found)| (path, known(found))).collect();
        Self { known, ..Self::default() }
    }

    /// What is known, if it is more or something else than when this was last asked. What could not be kept is asked again.
    pub(crate) fn learnt(&mut self) -> Option<Baselines> {
        if !std::mem::take(&mut self.learnt) {
            return None;
        }
        let baseline = |(path, known): (&String, &Known)| {
            let digest = known.digest.clone()?;
            Some((path.clone(), Baseline { stamp: known.stamp, digest }))
        };
        Some(self.known.iter().filter_map(baseline).collect())
    }

    /// What was learnt last is to be asked for again.
    pub(crate) fn not_kept(&mut self) {
        self.learnt = true;
    }

    /// Looks at a file that an account runs, unless it is the one seen before.
    pub(crate) fn look(&mut self, account: &str, path: &str) {
        let Ok(stamp) = fs::metadata(path).map(|found| Stamp::of(&found)) else { return };
        if self.known.get(path).is_some_and(|known| known.reading || known.stamp == stamp) {
            return;
        }
        if self.known.len() >= MOST && !self.known.contains_key(path) {
            return;
        }
        let reading = Reading { account: account.to_owned(), path: path.to_owned(), stamp, digest: None };
        self.known.entry(path.to_owned()).or_insert(Known { stamp, digest: None, reading: true }).reading = true;
        let sender = self.sender.clone();
        let spawned = thread::Builder::new().name("fingerprint".into()).spawn(move || {
            thread::sleep(reading.stamp.settles_in());
            let digest = digest(&reading.path, &reading.stamp);
            let _ = sender.send(Reading { digest, ..reading });
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, path, "an executable could not be read");
            self.known.remove(path);
        }
    }

    /// What was read since the last call and is not what it was. A file that root put in place of another, as package
    /// managers do, is no finding: it is what counts from now on.
    pub(crate) fn changed(&mut self) -> Vec<Changed> {
        let mut found = Vec::new();
        for Reading { account, path, stamp, digest } in self.readings.try_iter() {
            let known = self.known.entry(path.clone()).or_insert(Known { stamp, digest: None, reading: false });
            known.reading = false;
            // What could not be read is looked at again with the next start.
            let Some(after) = digest else { continue };
            let upgraded = stamp.of_root && (known.stamp.device, known.stamp.inode) != (stamp.device, stamp.inode);
            let before = known.digest.replace(after.clone());
            self.learnt |= before.as_ref() != Some(&after) || known.stamp != stamp;
            known.stamp = stamp;
            match before {
                Some(before) if before != after && upgraded => {
                    tracing::info!(path, "an executable was replaced by root, as an upgrade does");
                }
                Some(before) if before != after => found.push(Changed { account, path, before, after }),
                _ => {}
            }
        }
        found
    }
}

fn digest(path: &str, stamp: &Stamp) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let is_it = |file: &File| file.metadata().is_ok_and(|found| Stamp::of(&found) == *stamp);
    if stamp.size > LARGEST || !is_it(&file) {
        return None;
    }
    let mut sum = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let length = std::io::Read::read(&mut file, &mut buffer).ok()?;
        if length == 0 {
            break;
        }
        sum.update(buffer.get(..length)?);
    }
    // Written to while it was read: it is looked at again at the next start.
    is_it(&file).then(|| sum.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, Instant};

    use super::*;

    fn settled(prints: &mut Fingerprints, path: &str) -> Vec<Changed> {
        let stamp = Stamp::of(&fs::metadata(path).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let changed = prints.changed();
            let known = prints.known.get(path).is_some_and(|known| known.stamp == stamp && known.digest.is_some());
            if known || Instant::now() > until {
                return changed;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_upgrade_is_no_finding_and_a_change_in_place_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program").display().to_string();
        let write = |to: &str, text: &str| {
            fs::write(to, text).unwrap();
            fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let mut prints = Fingerprints::default();
        write(&path, "one");
        prints.look("a", &path);
        assert_eq!(settled(&mut prints, &path), []);
        // The same contents under another time: nothing.
        write(&path, "one");
        prints.look("a", &path);
        assert_eq!(settled(&mut prints, &path), []);
        let beside = format!("{path}.new");
        write(&beside, "two");
        fs::rename(&beside, &path).unwrap();
        prints.look("a", &path);
        assert_eq!(settled(&mut prints, &path), [], "the tests run as root");
        write(&path, "three");
        prints.look("a", &path);
        let found = settled(&mut prints, &path);
        let [changed] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((changed.account.as_str(), changed.before.len(), changed.after.len()), ("a", 64, 64));
    }
    #[test]
    fn what_an_earlier_daemon_saw_is_what_the_next_one_compares_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program").display().to_string();
        fs::write(&path, "one").unwrap();
        let mut prints = Fingerprints::default();
        prints.look("a", &path);
        assert_eq!(settled(&mut prints, &path), []);
        let kept = serde_json::to_vec(&prints.learnt().unwrap()).unwrap();
        assert!(prints.learnt().is_none(), "nothing new");

        fs::write(&path, "two").unwrap();
        let mut next = Fingerprints::with(serde_json::from_slice(&kept).unwrap());
        next.look("a", &path);
        let found = settled(&mut next, &path);
        assert!(matches!(found.as_slice(), [changed] if changed.path == path), "{found:?}");
        assert!(next.learnt().is_some(), "it is what counts from now on");
    }
}
