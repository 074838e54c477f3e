//! Opening a log after whatever happened: what is whole is kept, what can be made again is, and all of it is said.

use std::path::Path;

use writ_core::log::{Checkpoint, Edge, NoteSigner, TILE_WIDTH};
use writ_core::record::Head;

use super::file::{make_dir, open_for_writing, read_if_there, replace, sync_dir_of};
use super::key::{KeySource, load_or_make};
use super::regrow::{Damage, Regrow};
use super::tiles::{TileWriter, read_entries};
use super::{Layout, LineError, LogError, SegmentLines};

/// What opening a log found and did. Where [`Recovery::is_clean`] says no, the daemon writes a `log-repair` record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recovery {
    /// Lines in the log now.
    pub records: u64,
    /// Whole lines after the last checkpoint; they are kept, and the next checkpoint signs them.
    pub unsigned_tail: u64,
    /// Bytes cut off the end of the last segment.
    pub cut_bytes: u64,
    /// Signed lines that were missing and were restored from entry bundles.
    pub restored: u64,
    /// What was repaired, in words.
    pub repairs: Vec<String>,
    /// Where an earlier log was moved to, if it could not be continued.
    pub set_aside: Option<String>,
}

impl Recovery {
    /// Whether the log was as a clean stop leaves it.
    pub(crate) const fn is_clean(&self) -> bool {
        self.unsigned_tail == 0
            && self.cut_bytes == 0
            && self.restored == 0
            && self.repairs.is_empty()
            && self.set_aside.is_none()
    }
}

/// What the writer continues from.
pub(super) struct State {
    pub(super) edge: Edge,
    pub(super) tiles: TileWriter,
    /// First index and length of the last segment.
    pub(super) segment: Option<(u64, u64)>,
    pub(super) signed: Option<u64>,
    /// From which line on tiles may not be on the disk.
    pub(super) tiles_from: u64,
}

impl State {
    /// A log without a line.
    fn empty() -> Self {
        Self { edge: Edge::default(), tiles: TileWriter::default(), segment: None, signed: None, tiles_from: 0 }
    }
}

pub(super) fn recover(
    layout: &Layout,
    key: &KeySource,
    origin: &str,
) -> Result<(NoteSigner, State, Recovery), LogError> {
    let mut recovery = Recovery::default();
    let signer = load_or_make(key, origin)?;
    let vkey = signer.vkey().to_string();
    if let Some(found) = read_if_there(&layout.vkey())? {
        let found = String::from_utf8_lossy(&found).trim_end().to_owned();
        if found != vkey {
            let name = found.split('+').next().unwrap_or("unknown");
            let prefix = if name == origin { "old-key" } else { "old" };
            set_aside(layout, &format!("{prefix}-{}", file_name(name)), &mut recovery)?;
            recovery.repairs.push(format!("the log in place was written by {found}: a new log was begun"));
        }
    }
    let state = match continue_log(layout, &signer, &mut recovery) {
        Ok(state) => state,
        Err(Damage::System(error)) => return Err(error),
        Err(Damage::Log(reason)) => {
            set_aside(layout, "damaged", &mut recovery)?;
            recovery.repairs.push(format!("the log in place could not be continued ({reason}): a new log was begun"));
            (recovery.unsigned_tail, recovery.cut_bytes, recovery.restored) = (0, 0, 0);
            State::empty()
        }
    };
    let vkey = format!("{vkey}\n");
    if read_if_there(&layout.vkey())?.is_none_or(|there| there != vkey.as_bytes()) {
        replace(&layout.vkey(), vkey.as_bytes(), true)?;
    }
    make_dir(&layout.records())?;
    make_dir(&layout.archive())?;
    recovery.records = state.edge.size();
    Ok((signer, state, recovery))
}

fn continue_log(layout: &Layout, signer: &NoteSigner, recovery: &mut Recovery) -> Result<State, Damage> {
    let checkpoint = read_checkpoint(layout, signer, recovery)?;
    let segments = layout.segments()?;
    let signed = checkpoint.as_ref().map_or(0, |head| head.size);
    let last = match segments.last() {
        Some((first, path)) => Some((*first, mend_last_segment(layout, *first, path, signed, recovery)?)),
        None if signed > 0 => Some((0, mend_last_segment(layout, 0, &layout.segment(0), signed, recovery)?)),
        None => None,
    };
    let Some((last_first, (last_len, total))) = last else {
        return Ok(State::empty());
    };
    recovery.unsigned_tail = total - signed.min(total);
    let regrow = Regrow { layout, checkpoint: checkpoint.as_ref(), total, anew: false };
    // From the beginning of the segment before the last, whose tiles may have been on their way to the disk, where a checkpoint
    // can confirm it; from the log's beginning otherwise.
    let tiles_from = segments.iter().rev().nth(1).map_or(last_first, |(first, _)| *first);
    let near = tiles_from / TILE_WIDTH * TILE_WIDTH;
    let attempt = if checkpoint.is_some() && signed >= near { regrow.run(near) } else { regrow.run(0) };
    let outcome = match attempt {
        Err(Damage::Log(_)) if near > 0 => regrow.run(0)?,
        other => other?,
    };
    if outcome.tiles_made > 0 && recovery.restored == 0 && signed > 0 {
        recovery.repairs.push(format!("{} tiles were missing or wrong and were made again", outcome.tiles_made));
    }
    let tiles = TileWriter::resume(outcome.bundle, outcome.partials, outcome.owed);
    Ok(State {
        edge: outcome.edge,
        tiles,
        segment: Some((last_first, last_len)),
        signed: checkpoint.map(|head| head.size),
        tiles_from,
    })
}

fn read_checkpoint(
    layout: &Layout,
    signer: &NoteSigner,
    recovery: &mut Recovery,
) -> Result<Option<Checkpoint>, LogError> {
    let Some(bytes) = read_if_there(&layout.checkpoint())? else {
        if !layout.segments()?.is_empty() {
            recovery.repairs.push("the checkpoint was missing: the lines were taken as they are".to_owned());
        }
        return Ok(None);
    };
    match Checkpoint::open(&String::from_utf8_lossy(&bytes), &signer.vkey()) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(error) => {
            recovery.repairs.push(format!("the checkpoint was unreadable ({error}): the lines were taken as they are"));
            Ok(None)
        }
    }
}

/// Makes the last segment end with a whole record and hold at least what was signed; returns its length and the log's
/// size.
fn mend_last_segment(
    layout: &Layout,
    first: u64,
    path: &Path,
    signed: u64,
    recovery: &mut Recovery,
) -> Result<(u64, u64), LogError> {
    make_dir(&layout.records())?;
    let file = open_for_writing(path, true)?;
    let length = file.metadata().map_err(LogError::io("look at", path))?.len();
    let mut lines = SegmentLines::open(path)?;
    let mut total = first;
    let mut good = 0;
    loop {
        match lines.next_line() {
            Ok(Some(line)) => {
                // What was signed stays, whatever it is; what was not must at least be a record.
                if total >= signed && Head::of(line).is_err() {
                    break;
                }
                total += 1;
                good = lines.offset();
            }
            Ok(None) | Err(LineError::Torn { .. }) => break,
            Err(LineError::Log(error)) => return Err(error),
        }
    }
    if good < length {
        recovery.cut_bytes = length - good;
        recovery.repairs.push(format!("{} bytes after the last whole record were cut off", length - good));
        file.set_len(good).map_err(LogError::io("truncate", path))?;
    }
    let mut restored = Vec::new();
    while total < signed {
        let entries = read_entries(layout, total / TILE_WIDTH)?;
        let Some(found) = entries.get((total % TILE_WIDTH) as usize..).filter(|found| !found.is_empty()) else { break };
        for entry in found.iter().take((signed - total) as usize) {
            restored.extend_from_slice(entry);
            restored.push(b'\n');
            total += 1;
            recovery.restored += 1;
        }
    }
    if !restored.is_empty() {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&restored, good).map_err(LogError::io("write", path))?;
        file.sync_data().map_err(LogError::io("sync", path))?;
        sync_dir_of(path)?;
        good += restored.len() as u64;
        recovery.repairs.push(format!("{} signed lines were restored from entry bundles", recovery.restored));
    }
    if total < signed {
        return Err(LogError::invalid(path, format!("the log has {total} lines, its checkpoint signs {signed}")));
    }
    Ok((good, total))
}

/// Moves a log out of the way, its key's name last: an interrupted move is found by it and continued.
fn set_aside(layout: &Layout, name: &str, recovery: &mut Recovery) -> Result<(), LogError> {
    let target = (0u32..)
        .map(|attempt| if attempt == 0 { name.to_owned() } else { format!("{name}.{attempt}") })
        .find(|name| !layout.dir().join(name).join("writ.vkey").exists())
        .unwrap_or_else(|| name.to_owned());
    let target_dir = layout.dir().join(&target);
    make_dir(&target_dir)?;
    for part in ["records", "tile", "archive", "pruned", "checkpoint", "writ.vkey"] {
        let from = layout.dir().join(part);
        if from.exists() {
            std::fs::rename(&from, target_dir.join(part)).map_err(LogError::io("move aside", &from))?;
        }
    }
    sync_dir_of(&layout.dir().join("records"))?;
    recovery.set_aside = Some(target);
    Ok(())
}

/// An origin as a file name.
fn file_name(origin: &str) -> String {
    origin.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect()
}

/// Whether a directory beside the records is a log that had to be set aside as damaged.
pub(crate) fn is_damaged_log(name: &str) -> bool {
    name == "damaged" || name.strip_prefix("damaged.").is_some_and(|rest| rest.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_become_harmless_file_names() {
        assert_eq!(file_name("writ.example/host-1"), "writ.example_host-1");
        assert_eq!(file_name("../x"), ".._x");
    }
}
