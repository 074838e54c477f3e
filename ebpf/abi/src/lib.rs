//! What writ's kernel programs and its agent agree on: addresses, tables, events, counters and the one decision function.
//!
//! Read `decide.rs` first. Everything here is `no_std`, without I/O, clock, allocation or unsafe, so that the same code
//! runs inside the kernel program, the daemon, the replayer and the tests.
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod budget;
mod clause;
mod counter;
mod decide;
mod event;
mod family;
mod path;
mod range;
mod session;
mod stance;
mod verdict;

pub use address::{Address, NAT64_PREFIXES, Nat64Prefix};
pub use budget::{BUDGETS, Budget};
pub use clause::{
    Clause, ClauseList, LEAST_SUBORDINATE, MAX_CLAUSES, MAX_SUBJECTS, MOST_SUBORDINATES, USER_FILTER_WORDS,
};
pub use counter::{COUNTERS, Counter};
pub use decide::{Attempt, Decision, Endpoint, Tables, decide, stricter};
pub use event::{
    COMM_LEN, DecisionEvent, EVENT_DECISION, EVENT_PROCESS, Hook, KernelConfig, LSM_PULSE, LSM_PULSE_ERRNO, PATH_LEN,
    ProcessEvent, SocketOffsets, TaskOffsets, View,
};
pub use family::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, FAMILIES, Family};
pub use path::{CGROUP_PATH_LEN, PathHash, PathWalk};
pub use range::{FAN_V4, FAN_V6, LINK_CLASS, NodeV4, NodeV6, RANGE_DEPTH, class_v4, class_v6};
pub use session::{
    ROOM_NONE, ROOM_OWN, ROOM_SHARED, SESSION_ACCOUNTS, SESSION_FOUND, SESSION_FOUND_CPU, SESSION_JUDGED,
    SESSION_NOBODY, SESSION_STOPPED, SESSION_TOLERATED, SESSIONS, SESSIONS_SHARED, Session, ends_by_time, holds, seal,
    seal_mixed, session_share,
};
pub use stance::{AccountFlags, Active, NEVER, STANCE_WORDS, Slot, Stance, StanceRow, StanceWord};
pub use verdict::{Cell, PROTOCOLS, Protocol, Reason, Verdict};

/// The version of everything in this crate that outlives one process: pinned maps, ring entries, table layouts.
///
/// Raise it whenever a type, constant or meaning here changes in a way an older program would misread; `tests/layout.rs`
/// pins the bytes, so that a change cannot go unnoticed. An agent that finds a newer number in the pins leaves
/// enforcement as it is and refuses to start.
pub const ABI_VERSION: u32 = 6;
