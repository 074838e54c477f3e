//! The log on disk: one writer that survives crashes and full disks, and readers that need no daemon.
//!
//! `records/*.jsonl` are the log; tiles and checkpoint are made from them and can be made again, which is what
//! [`LogWriter::open`] does with whatever a crash left. docs/log.md has the layout and what is promised.

mod archive;
mod attempts;
mod error;
#[cfg(test)]
mod fault_tests;
mod file;
mod follow;
#[cfg(test)]
mod fuzz;
mod key;
mod layout;
mod lines;
mod recovery;
mod regrow;
mod retention;
mod segment;
mod settling;
mod signing;
#[cfg(test)]
pub(crate) mod tests;
mod tiles;
pub(crate) mod verify;
mod writer;

pub(crate) use archive::{archive_get, archive_put};
pub(crate) use attempts::replay_attempts;
pub(crate) use error::{AppendError, LogError};
pub(crate) use follow::Follow;
pub(crate) use key::KeySource;
pub(crate) use layout::Layout;
pub(crate) use lines::{LineError, SegmentLines};
pub(crate) use recovery::Recovery;
pub(crate) use retention::PruneOutcome;
pub(crate) use tiles::{read_entries as tile_entries, read_hashes as tile_hashes};
pub(crate) use verify::{Report, Trust, own_key, verify};
pub(crate) use writer::LogWriter;
