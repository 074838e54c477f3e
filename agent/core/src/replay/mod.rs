//! Deciding again: a record's own inputs, put to Cedar with the policies, schema and entities of its moment.
//!
//! [`Archived::read`] rebuilds what a record's `policy_digest` names; [`Archived::replay`] decides one record again and
//! compares; [`Archived::under`] is the same moment with other policies, for what-if; [`files`] are the question as the
//! stock `cedar` command takes it. Nothing but the log directory's content is needed, and nothing of the tables that the
//! kernel decided by is used: what agrees was decided as the policies say.

mod archive;
mod attempt;
mod compare;
mod facts;
pub mod files;
mod remedy;
mod window;

pub use archive::{ArchiveError, Archived, Manifest, Memo, Unanswered};
pub use attempt::{Attempt, NotReplayable};
pub use compare::{Difference, Outcome, without_set};
pub use window::Window;
