//! Commands that need no daemon: they read the log directory, which is an argument, and nothing else.

mod explain;
mod find;
mod prove;
mod report;
mod show;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use explain::{ExplainArgs, explain};
pub(crate) use prove::{ProveArgs, prove};
pub(crate) use report::{ReportArgs, report};
pub(crate) use tail::{TailArgs, tail};
pub(crate) use verify::{VerifyArgs, verify};
