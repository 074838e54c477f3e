//! Names in the log directory.

use std::path::{Path, PathBuf};

use writ_core::log::TilePath;

use super::LogError;

/// The log directory and where everything in it lies.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of a log directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lines.
    pub(crate) fn records(&self) -> PathBuf {
        self.dir.join("records")
    }

    /// The segment whose first line has this index.
    pub(crate) fn segment(&self, first: u64) -> PathBuf {
        self.records().join(format!("{first:020}.jsonl"))
    }

    /// Hashes and entries.
    pub(crate) fn tiles(&self) -> PathBuf {
        self.dir.join("tile")
    }

    /// One tile.
    pub(crate) fn tile(&self, tile: TilePath) -> PathBuf {
        self.tiles().join(tile.to_string())
    }

    /// The signed tree head.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    /// The signed statement of what was removed.
    pub(crate) fn pruned(&self) -> PathBuf {
        self.dir.join("pruned")
    }

    /// The public key.
    pub(crate) fn vkey(&self) -> PathBuf {
        self.dir.join("writ.vkey")
    }

    /// Policies, schemas and entities by digest.
    pub(crate) fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    /// The segments in log order, each with the index of its first line. A directory that is not there has none.
    pub(crate) fn segments(&self) -> Result<Vec<(u64, PathBuf)>, LogError> {
        let records = self.records();
        let entries = match std::fs::read_dir(&records) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(LogError::io("read", &records)(error)),
        };
        let mut segments = Vec::new();
        for entry in entries {
            let path = entry.map_err(LogError::io("read", &records))?.path();
            if let Some(first) = segment_index(&path) {
                segments.push((first, path));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }
}

/// The index in a segment's name; `None` for other files.
fn segment_index(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
    (name.len() == 20).then(|| name.parse().ok()).flatten()
}
