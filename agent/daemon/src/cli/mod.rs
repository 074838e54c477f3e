//! Commands that need no daemon: they read the log directory, which is an argument, and nothing else.

mod explain;
mod find;
mod prove;
mod report;
mod show;
mod tail;
mod verify;

pub use explain::{ExplainArgs, explain};
pub use prove::{ProveArgs, prove};
pub use report::{ReportArgs, report};
pub use tail::{TailArgs, tail};
pub use verify::{VerifyArgs, verify};
