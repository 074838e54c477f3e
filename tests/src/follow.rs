//! The log as a shipper follows it: each whole line once, in order, without asking the daemon.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::record::Record;
use crate::wait;

/// A place in the log.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    segment: Option<PathBuf>,
    offset: u64,
    read: VecDeque<Record>,
}

impl Follower {
    /// Begins at the log's beginning.
    pub fn new(log: &Path) -> Self {
        Self { directory: log.join("records"), segment: None, offset: 0, read: VecDeque::new() }
    }

    /// Waits for so many more decisions and observations, and returns them in order.
    #[track_caller]
    pub fn judgements(&mut self, count: usize) -> Vec<Record> {
        let mut found = Vec::new();
        let all = wait::within(wait::PATIENCE, || {
            self.poll();
            while found.len() < count {
                let Some(record) = self.read.pop_front() else { break };
                if record.is_judgement() {
                    found.push(record);
                }
            }
            (found.len() == count).then_some(())
        });
        assert!(all.is_some(), "{} of {count} records came", found.len());
        found
    }

    /// Everything that is there and was not returned yet.
    pub fn rest(&mut self) -> Vec<Record> {
        self.poll();
        self.read.drain(..).collect()
    }

    /// All that a log holds, whose oldest segments may go meanwhile.
    pub(crate) fn all(log: &Path) -> Vec<Record> {
        loop {
            let mut whole = Self::new(log);
            match whole.try_poll() {
                Ok(()) => return whole.read.into(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("the log cannot be read: {error}"),
            }
        }
    }

    fn poll(&mut self) {
        self.try_poll().expect("a segment stays, and can be read from anywhere");
    }

    fn try_poll(&mut self) -> io::Result<()> {
        loop {
            let Some(path) = self.segment.clone().or_else(|| self.after(None)) else { return Ok(()) };
            let next = self.after(Some(&path));
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            text.truncate(whole);
            self.offset += whole as u64;
            self.read.extend(Record::parse_lines(&String::from_utf8_lossy(&text)));
            self.segment = Some(path);
            match next {
                // Looked for before the reading: what is in the next one comes after all of this one.
                Some(next) => (self.segment, self.offset) = (Some(next), 0),
                None => return Ok(()),
            }
        }
    }

    /// The first segment after this one.
    fn after(&self, path: Option<&Path>) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.directory).ok()?.flatten().map(|entry| entry.path());
        entries.filter(|entry| path.is_none_or(|path| entry.as_path() > path)).min()
    }
}
