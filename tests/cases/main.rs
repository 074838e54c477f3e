//! The whole-system tests: each file is a subject, each test a claim about a running `writ` and a real kernel.
//!
//! Run them as root and one at a time (`cargo xtask test` does). What they use of a machine is said in `writ_tests`.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod askers;
mod attached;
mod auditor;
mod authzen;
mod away;
mod broker;
mod clock;
mod command_line;
mod connect;
mod contract;
mod coverage;
mod crash;
mod differential;
mod draft;
mod drift;
mod dropped;
mod events;
mod exhausted;
mod expiry;
mod families;
mod forms;
mod gap;
mod gateway;
mod glass;
mod growth;
mod harness;
mod held;
mod hook;
mod hostile;
mod https;
mod identity;
mod kernels;
mod limits;
mod live;
mod loss;
mod model;
mod moved;
mod neighbours;
mod open;
mod opened;
mod paths;
mod people;
mod pins;
mod programs;
mod race;
mod reload;
mod replay;
mod report;
mod resolution;
mod sessions;
mod sinks;
mod situations;
mod ssf;
mod surroundings;
mod survive;
mod tail;
mod unmanaged;
mod unwritable;
mod watched;
