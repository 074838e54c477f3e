//! The harness of the whole-system tests: a host under policy, processes in it, and the records they leave.
//!
//! A test makes a [`Host`], makes its service account do something real through a probe, and asserts on what the process
//! saw *and* on what was recorded. Everything a host makes is undone when it is dropped. Nothing here sleeps for a
//! guessed time: [`wait`] polls a condition until a deadline.
#![expect(clippy::expect_used, clippy::panic, reason = "a test harness fails by panicking")]

pub mod answer;
pub mod api;
pub mod bpf;
pub mod cedar;
pub mod cgroup;
pub mod config;
pub mod disk;
pub mod estate;
pub mod failing_disk;
pub mod follow;
pub mod foreign;
pub mod held;
pub mod host;
pub mod journal;
pub mod listener;
pub mod network;
pub mod postgres;
pub mod probe;
pub mod random;
pub mod record;
pub mod resident;
pub mod scale;
pub mod schema;
mod second;
pub mod settled;
mod sweep;
pub mod user;
pub mod wait;

pub use answer::Answer;
pub use api::Api;
pub use config::Config;
pub use disk::SmallDisk;
pub use estate::Estate;
pub use failing_disk::FailingDisk;
pub use follow::Follower;
pub use held::{Held, KeepingPeer};
pub use host::Host;
pub use journal::Journal;
pub use listener::{TcpPeer, UdpPeer};
pub use network::NetworkPair;
pub use postgres::{Postgres, Psql};
pub use probe::{Attempt, Batch, Prober};
pub use random::Random;
pub use record::Record;
pub use resident::Resident;
pub use scale::Scale;
pub use settled::Settled;
