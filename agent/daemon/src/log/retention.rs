//! Removing old lines: whole closed segments and their entries, never their hashes, and only after saying so.

use std::time::SystemTime;

use writ_core::config::Fsync;
use writ_core::log::{Pruned, TILE_WIDTH, TileKind, TilePath};

use super::file::{remove, replace};
use super::{LogError, LogWriter};

/// What was removed; the daemon writes a record of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PruneOutcome {
    /// Index of the first line that is still there.
    pub first_index: u64,
    /// The segments removed, by name.
    pub files: Vec<String>,
}

impl LogWriter {
    /// Closes a segment that is old enough, and removes closed segments that were last written before `now` minus the
    /// retention; `None` if there was nothing to remove. Call it now and then, a minute apart.
    pub(crate) fn prune(&mut self, now: SystemTime) -> Result<Option<PruneOutcome>, LogError> {
        let (_, begun) = self.current_segment();
        // Whatever its size: a quiet host's lines are shipped, archived and removed by segment too.
        let longest = self
            .settings()
            .retention
            .map_or(self.settings().segment_age, |retention| retention.min(self.settings().segment_age));
        if now.duration_since(begun).is_ok_and(|age| age >= longest) {
            self.rotate()?;
        }
        let Some(retention) = self.settings().retention else { return Ok(None) };
        let (mut current, _) = self.current_segment();
        if self.settings().fsync != Fsync::Never {
            // Until its tiles are on the disk, a segment's lines are what they would be made from.
            self.settled(false)?;
            current = current.min(self.tiles_from);
        }
        let Some(limit) = now.checked_sub(retention) else { return Ok(None) };
        let segments = self.layout().segments()?;
        let mut files = Vec::new();
        let mut first_index = None;
        for pair in segments.windows(2) {
            let [(first, path), (next, _)] = pair else { break };
            let modified = path.metadata().and_then(|data| data.modified()).map_err(LogError::io("look at", path))?;
            if *first >= current || modified >= limit || self.signed().is_none_or(|signed| *next > signed) {
                break;
            }
            files.push(path.clone());
            first_index = Some(*next);
        }
        let Some(first_index) = first_index else { return Ok(None) };
        // The statement comes first: lines that are missing without it are tampering.
        let note = Pruned { origin: self.origin().to_owned(), first_index }.sign(self.signer());
        replace(&self.layout().pruned(), note.as_bytes(), true)?;
        for path in &files {
            remove(path)?;
        }
        let oldest = segments.first().map_or(0, |(first, _)| first / TILE_WIDTH);
        for index in oldest..first_index / TILE_WIDTH {
            remove(&self.layout().tile(TilePath::full(TileKind::Entries, index)))?;
        }
        let name = |path: std::path::PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(PruneOutcome { first_index, files: files.into_iter().map(name).collect() }))
    }
}
