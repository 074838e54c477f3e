//! A journal beside a state file: changes appended one line each, so that one signal does not rewrite everything.
//!
//! The first line names the state file by digest. A journal that names another one is older than the file, which then
//! holds all of it already; a torn last line was never answered for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Beyond this the state file is written anew.
const MOST_BYTES: u64 = 4 << 20;
/// A disk that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The journal of one state file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Digest of the state file it follows.
    follows: String,
    file: Option<File>,
    bytes: u64,
    unsynced: bool,
    /// What is on its way to the disk, on a thread of its own, and since when: nothing waits for it.
    syncing: Option<(Receiver<io::Result<()>>, Instant)>,
}

impl Journal {
    /// A journal at this path that follows nothing yet: [`Journal::follow`] comes first.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, follows: String::new(), file: None, bytes: 0, unsynced: false, syncing: None }
    }

    /// Starts anew after a state file was written. The file is made now, because somebody waits for the first change; where
    /// it cannot be, that change tries again, and until then the old journal names another state file.
    pub(crate) fn follow(&mut self, state: &[u8]) {
        self.follows = digest(state);
        self.bytes = 0;
        self.unsynced = false;
        self.syncing = None;
        self.file = self.begin().ok();
    }

    fn begin(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        file.write_all(format!("{}\n", self.follows).as_bytes())?;
        Ok(file)
    }

    /// Whether the state file should be written anew instead.
    pub(crate) fn full(&self) -> bool {
        self.follows.is_empty() || self.bytes > MOST_BYTES
    }

    /// Appends a change. It outlives this process at once, and a power cut from the next [`Journal::sync`] on.
    ///
    /// # Errors
    /// It could not be written: the state file has to be.
    pub(crate) fn append(&mut self, change: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        let file = match self.file.take() {
            Some(file) => file,
            None => self.begin()?,
        };
        let file = self.file.insert(file);
        if let Err(error) = file.write_all(&line) {
            // Half a line would hide those after it.
            self.follows.clear();
            return Err(error);
        }
        self.bytes += line.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    /// Begins to bring what was appended to the disk, and says what became of what was begun before.
    ///
    /// # Errors
    /// The disk failed, or has not answered for ten seconds; or no thread is free.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if let Some((outcome, since)) = &self.syncing {
            match outcome.try_recv() {
                Ok(outcome) => {
                    self.syncing = None;
                    outcome?;
                }
                Err(TryRecvError::Empty) if since.elapsed() < PATIENCE => return Ok(()),
                Err(_) => {
                    self.syncing = None;
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer"));
                }
            }
        }
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced) {
            let file = file.try_clone()?;
            let (told, outcome) = sync_channel(1);
            std::thread::Builder::new().name("journal".into()).spawn(move || drop(told.send(file.sync_data())))?;
            self.syncing = Some((outcome, Instant::now()));
            self.unsynced = false;
        }
        Ok(())
    }

    /// The changes that follow a state file, oldest first.
    ///
    /// # Errors
    /// The journal is there and cannot be read.
    pub(crate) fn changes<T: DeserializeOwned>(&self, state: &[u8]) -> io::Result<Vec<T>> {
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        if lines.next() != Some(digest(state).as_bytes()) {
            return Ok(Vec::new());
        }
        lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
    }
}

fn digest(state: &[u8]) -> String {
    Sha256::digest(state).iter().fold("sha256-".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::Journal;

    #[test]
    fn changes_count_only_beside_the_file_they_follow_and_only_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.journal");
        let mut journal = Journal::new(path.clone());
        assert!(journal.full(), "nothing to follow yet");
        journal.follow(b"one");
        journal.append(&1).unwrap();
        journal.append(&2).unwrap();
        assert_eq!(Journal::new(path.clone()).changes::<u8>(b"one").unwrap(), [1, 2]);
        assert_eq!(Journal::new(path.clone()).changes::<u8>(b"two").unwrap(), Vec::<u8>::new());
        journal.sync().unwrap();
        let torn = std::fs::read(&path).unwrap();
        std::fs::write(&path, &torn[..torn.len() - 1]).unwrap();
        assert_eq!(Journal::new(path.clone()).changes::<u8>(b"one").unwrap(), [1]);
        journal.follow(b"two");
        assert_eq!(journal.changes::<u8>(b"two").unwrap(), Vec::<u8>::new());
        journal.append(&3).unwrap();
        assert_eq!(Journal::new(path).changes::<u8>(b"two").unwrap(), [3]);
    }
}
