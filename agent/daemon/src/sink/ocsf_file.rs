//! A file of OCSF events, one a line: each exactly once, also across kills, power cuts and rotation.
//!
//! The file itself is what tells how far it came: each event carries the index of its record in `metadata.sequence`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use writ_core::record::{Place, Record, to_ocsf};

use super::position::Resumed;
use super::{Line, SinkError, Target};

/// Owner writes, group (shippers) reads.
const MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;
/// How much of a file's end is looked at for its last event: more than any event has.
const TAIL: u64 = 1 << 20;

/// The file.
pub(super) struct OcsfFile {
    path: PathBuf,
    identity: String,
    rotate_size: u64,
    keep: u32,
    open: Option<Open>,
}

struct Open {
    file: File,
    inode: u64,
    /// Bytes of whole events.
    len: u64,
    /// Index at which the file was begun.
    begun: u64,
}

impl OcsfFile {
    pub(super) fn new(path: &Path, identity: &str, rotate_size: u64, keep: u32) -> Self {
        Self { path: path.to_owned(), identity: identity.to_owned(), rotate_size, keep, open: None }
    }

    /// The file to append to, made or found; `next` is where a new one begins.
    fn open(&mut self, next: u64) -> Result<&mut Open, SinkError> {
        // Somebody else (logrotate) may have renamed, removed or emptied it.
        if let Some(open) = &mut self.open {
            match fs::metadata(&self.path) {
                Ok(there) if there.ino() == open.inode => open.len = there.len().min(open.len),
                _ => self.open = None,
            }
        }
        if self.open.is_none() {
            if let Some(directory) = self.path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(DIR_MODE)
                    .create(directory)
                    .map_err(SinkError::io("create", directory))?;
            }
            let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(&self.path);
            let file = file.map_err(SinkError::io("open", &self.path))?;
            let data = file.metadata().map_err(SinkError::io("look at", &self.path))?;
            if !data.is_file() {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
                return Err(SinkError { operation: "write", path: self.path.clone(), source });
            }
            self.open = Some(Open { file, inode: data.ino(), len: data.len(), begun: next });
        }
        self.open.as_mut().ok_or_else(|| SinkError::io("open", &self.path)(io::ErrorKind::NotFound.into()))
    }

    /// Cuts off what is no whole event at the end; the log's name and index in the last one.
    fn mend(&mut self) -> Result<Option<(String, u64)>, SinkError> {
        let path = self.path.clone();
        let open = self.open(0)?;
        let from = open.len.saturating_sub(TAIL);
        let mut tail = Vec::new();
        open.file
            .seek(SeekFrom::Start(from))
            .and_then(|_| open.file.read_to_end(&mut tail))
            .map_err(SinkError::io("read", &path))?;
        let mut last = None;
        while !tail.is_empty() {
            let end = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let start = tail.get(..end.saturating_sub(1)).unwrap_or_default();
            let start = start.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            last = tail.get(start..end).and_then(place_of);
            if last.is_some() {
                tail.truncate(end);
                break;
            }
            tail.truncate(if end == tail.len() { start } else { end });
        }
        let whole = from + tail.len() as u64;
        if whole < open.len {
            // A file that ends in a megabyte of something else is not ours to cut.
            if from > 0 && tail.is_empty() {
                let source = io::Error::new(io::ErrorKind::InvalidData, "it does not hold OCSF events");
                return Err(SinkError { operation: "go on with", path, source });
            }
            tracing::warn!(path = %path.display(), bytes = open.len - whole, "an unfinished event was cut off");
            open.file.set_len(whole).map_err(SinkError::io("truncate", &path))?;
            open.len = whole;
        }
        Ok(last)
    }

    /// Renames the file when it is full, the older ones before it, and lets the oldest go.
    fn rotate(&mut self) -> Result<(), SinkError> {
        if self.open.as_ref().is_none_or(|open| open.len < self.rotate_size) {
            return Ok(());
        }
        self.sync()?;
        let numbered = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.keep).rev() {
            rename_if_there(&numbered(number), &numbered(number + 1))?;
        }
        rename_if_there(&self.path, &numbered(1))?;
        self.open = None;
        Ok(())
    }
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), SinkError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SinkError::io("rename", from)(error)),
        _ => Ok(()),
    }
}

/// The log and the index that an event names.
fn place_of(line: &[u8]) -> Option<(String, u64)> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let metadata = event.get("metadata")?;
    Some((metadata.get("log_name")?.as_str()?.to_owned(), metadata.get("sequence")?.as_u64()?))
}

impl Target for OcsfFile {
    fn resume(&mut self, from: &Resumed) -> Result<u64, SinkError> {
        let last = self.mend()?.filter(|(log, _)| *log == self.identity).map(|(_, index)| index + 1);
        let marked: Vec<u64> = from.mark.split(' ').filter_map(|word| word.parse().ok()).collect();
        let open = self.open(from.next)?;
        let next = match (marked.as_slice(), last) {
            // What was sent had not reached the disk when the power went: the file is shorter than it was.
            ([inode, len, begun], last) if *inode == open.inode && open.len < *len => last.unwrap_or(*begun),
            // Beyond the end of the log: a crash took it. What is here says what was decided; it is not sent twice, but
            // the numbers are given to other records, which are.
            _ if from.mark == "rewound" => from.next,
            // The position could not be kept after the last event.
            (_, Some(last)) => last.max(from.next),
            (_, None) => from.next,
        };
        open.begun = match marked.as_slice() {
            [inode, _, begun] if *inode == open.inode => *begun,
            _ => next,
        };
        Ok(next)
    }

    fn deliver(&mut self, lines: &[Line], done: &mut dyn FnMut(u64, &str)) -> Result<u64, SinkError> {
        let (Some((first, _)), Some((last, _))) = (lines.first(), lines.last()) else { return Ok(0) };
        self.rotate()?;
        let mut events = 0;
        let mut buffer = Vec::new();
        for (index, line) in lines {
            let place = Place { log: &self.identity, index: *index };
            let record = match Record::from_line(line) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(index, %error, "a line of the log is no record; `writ verify` says more");
                    continue;
                }
            };
            if let Some(event) = to_ocsf(&record, Some(&place)) {
                buffer.extend_from_slice(event.to_string().as_bytes());
                buffer.push(b'\n');
                events += 1;
            }
        }
        let path = self.path.clone();
        let open = self.open(*first)?;
        if let Err(error) = open.file.write_all(&buffer) {
            // Half an event must not stay: the lines are written again.
            let cut = open.file.set_len(open.len);
            tracing::debug!(?cut, "cut back after a write that failed");
            return Err(SinkError::io("write", &path)(error));
        }
        open.len += buffer.len() as u64;
        done(last + 1, &format!("{} {} {}", open.inode, open.len, open.begun));
        Ok(events)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        match &self.open {
            Some(open) => open.file.sync_data().map_err(SinkError::io("sync", &self.path)),
            None => Ok(()),
        }
    }
}
