//! The log as a shipper follows it: each whole line once, in order, without asking the daemon.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
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

    fn poll(&mut self) {
        loop {
            let Some(path) = self.segment.clone().or_else(|| self.after(None)) else { return };
            let next = self.after(Some(&path));
            let mut file = File::open(&path).expect("a segment stays");
            file.seek(SeekFrom::Start(self.offset)).expect("a segment can be read from anywhere");
            let mut text = Vec::new();
            file.read_to_end(&mut text).expect("a segment can be read");
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            text.truncate(whole);
            self.offset += whole as u64;
            self.read.extend(Record::parse_lines(&String::from_utf8_lossy(&text)));
            self.segment = Some(path);
            match next {
                // Looked for before the reading: what is in the next one comes after all of this one.
                Some(next) => (self.segment, self.offset) = (Some(next), 0),
                None => return,
            }
        }
    }

    /// The first segment after this one.
    fn after(&self, path: Option<&Path>) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.directory).ok()?.flatten().map(|entry| entry.path());
        entries.filter(|entry| path.is_none_or(|path| entry.as_path() > path)).min()
    }
}
