//! The lines of one segment, one after the other, with their place in the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use writ_core::record::MAX_LINE;

use super::LogError;

/// Why a segment does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// It cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The file ends within a line, or a line is longer than any record.
    #[error("{}: torn line at byte {offset}", path.display())]
    Torn {
        /// Which segment.
        path: PathBuf,
        /// Where the torn line begins.
        offset: u64,
    },
}

/// A segment being read.
pub(crate) struct SegmentLines {
    reader: BufReader<File>,
    path: PathBuf,
    offset: u64,
    line: Vec<u8>,
}

impl SegmentLines {
    /// Opens a segment at its beginning.
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        let file = File::open(path).map_err(LogError::io("open", path))?;
        Ok(Self {
            reader: BufReader::with_capacity(256 * 1024, file),
            path: path.to_owned(),
            offset: 0,
            line: Vec::new(),
        })
    }

    /// Where the next line begins.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to a place where a line begins.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<(), LogError> {
        self.reader.seek(SeekFrom::Start(offset)).map_err(LogError::io("seek in", &self.path))?;
        self.offset = offset;
        Ok(())
    }

    /// Whether a file begins with the same line.
    pub(crate) fn begins_like(&mut self, other: &Path) -> bool {
        let place = self.offset;
        let first = |lines: &mut Self| Some(lines.next_line().ok()??.to_vec());
        let own = self.seek(0).ok().and_then(|()| first(self));
        let theirs = Self::open(other).ok().and_then(|mut lines| first(&mut lines));
        // Where it was: a file that cannot be read says so again.
        let back = self.seek(place).is_ok();
        back && own.is_some() && own == theirs
    }

    /// The next line without its newline; `None` at the end of the file. After a torn line, the place is where that line
    /// begins: it may be complete when it is asked for again.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, LineError> {
        self.line.clear();
        let limit = MAX_LINE as u64 + 2;
        let read = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut self.line)
            .map_err(LogError::io("read", &self.path))?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.pop() != Some(b'\n') {
            let offset = self.offset;
            self.seek(offset)?;
            return Err(LineError::Torn { path: self.path.clone(), offset });
        }
        self.offset += read as u64;
        Ok(Some(&self.line))
    }
}
