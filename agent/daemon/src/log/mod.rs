//! The log on disk: one writer that survives crashes and full disks, and readers that need no daemon.
//!
//! `records/*.jsonl` are the log; tiles and checkpoint are made from them and can be made again, which is what
//! [`LogWriter::open`] does with whatever a crash left. docs/log.md has the layout and what is promised.

mod archive;
mod error;
mod file;
mod follow;
mod key;
mod layout;
mod lines;
mod recovery;
mod retention;
#[cfg(test)]
mod tests;
mod tiles;
mod verify;
mod writer;

pub use archive::{archive_get, archive_put};
pub use error::{AppendError, LogError};
pub use follow::Follow;
pub use layout::Layout;
pub use lines::{LineError, SegmentLines};
pub use recovery::Recovery;
pub use retention::PruneOutcome;
pub use tiles::read_hashes as tile_hashes;
pub use verify::{Finding, Report, SequenceReport, Trust, own_key, verify};
pub use writer::LogWriter;
