//! What can go wrong with the log, always with the file and the operation that failed.

use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on the log. The log stays as it was: the same call can be made again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// What was written could not be forced to the disk, and may be lost: nothing is added until it is there.
    #[error("{}: what was written could not be forced to the disk; it is tried again each second", path.display())]
    InDoubt {
        /// Which segment.
        path: PathBuf,
    },
    /// The system refused: full, read-only, broken, not permitted.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process writes the log.
    #[error("{}: another writ writes this log", path.display())]
    Locked {
        /// The log directory.
        path: PathBuf,
    },
    /// There is no log at all.
    #[error("{}: there is no log here", path.display())]
    None {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file that is there is not what it should be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line that cannot be a log entry: empty, longer than 65,535 bytes, or with a newline in it.
    #[error("line {place} of the batch cannot be a log entry: {reason}")]
    Line {
        /// Its place in the batch.
        place: usize,
        /// Why.
        reason: &'static str,
    },
    /// Tiles could not be written for so long that no more lines are taken.
    #[error("{waiting} lines wait for their tiles: {source}")]
    Backlog {
        /// How many.
        waiting: u64,
        /// Why the tiles cannot be written.
        source: Box<Self>,
    },
}

impl LogError {
    pub(super) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }

    pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }

    #[cfg(test)]
    /// The errno, where the system said one: ENOSPC, EROFS, EIO.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Backlog { source, .. } => source.errno(),
            _ => None,
        }
    }
}

/// A batch that was not written whole.
#[derive(Debug, thiserror::Error)]
#[error("{written} lines written, then: {source}")]
pub(crate) struct AppendError {
    /// How many lines, from the beginning of the batch, are in the log all the same.
    pub written: usize,
    /// Why the next one is not.
    #[source]
    pub source: LogError,
}
