//! writ's core: everything that is decided, without I/O, clock, async or unsafe. Time, files and identities are arguments.
//!
//! connect → [`table`] (kernel tables, compiled by [`policy`]) → verdict → [`record`] → [`log`].
//! [`signal`] → risk → [`stance`] → one table write. [`replay`] decides records again.
#![forbid(unsafe_code)]

pub mod config;
pub mod diagnostic;
pub mod log;
pub mod policy;
pub mod printable;
pub mod record;
pub mod replay;
pub mod signal;
pub mod stance;
pub mod table;
