//! The maps, and nothing else. Sizes of inner maps here are only templates: each generation brings its own.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use writ_abi::{
    BUDGETS as ROWS, Budget, COUNTERS, DecisionEvent, NodeV4, NodeV6, PathHash, ProcessEvent, SESSIONS as LISTED,
    STANCE_WORDS, Session,
};

/// `BPF_F_INNER_MAP`: arrays of different length may take each other's place.
const INNER: usize = 0x1000;
/// `BPF_F_MMAPABLE`
const SHARED: usize = 0x400;
/// `BPF_F_NO_PREALLOC`
const SPARSE: usize = 1;

/// An executable, as the kernel knows it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExecutableKey {
    pub(crate) inode: u64,
    pub(crate) device: u32,
    pub(crate) reserved: u32,
}

/// An address an account has been to.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SeenKey {
    pub(crate) account: u32,
    /// `Address::quads`
    pub(crate) address: [u32; 4],
}

type Words = Array<u64, 1, INNER>;
/// A stance; an array, because Linux 6.1 takes no structure as the value of an inner map.
pub(crate) type Stance = [u64; STANCE_WORDS as usize];

/// Which generation is in force (`writ_abi::Active`); the one word that swaps everything.
#[btf_map]
pub(crate) static ACTIVE: Array<u64, 1> = Array::new();

/// One bit per uid below 65,536: clear means no account is matched by that user. Behind the bits, the rows of subordinate
/// uids of such users.
#[btf_map]
pub(crate) static USER_FILTER: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// uid → clause list (low half) and selector number (high half).
#[btf_map]
pub(crate) static USERS: ArrayOfMaps<HashMap<u32, u64, 1, SPARSE>, 2> = ArrayOfMaps::new();
/// cgroup id → clause list. Filled by the loader, by `cgroup_mkdir`, and as a memo by connects.
#[btf_map]
pub(crate) static CGROUPS: ArrayOfMaps<HashMap<u64, u32, 65536, SPARSE>, 2> = ArrayOfMaps::new();
/// cgroup id → clause list, of cgroups that a match names themselves: what [`CGROUPS`], which anybody who may make cgroups
/// can fill, is worked out from. Filled by the loader and by `cgroup_mkdir`.
#[btf_map]
pub(crate) static NAMED_CGROUPS: ArrayOfMaps<HashMap<u64, u32, 16384, SPARSE>, 2> = ArrayOfMaps::new();
/// By generation: not 0 once [`NAMED_CGROUPS`] could not take one.
#[btf_map]
pub(crate) static CGROUPS_LOST: Array<u64, 2> = Array::new();
/// Hash of a cgroup path → clause list.
#[btf_map]
pub(crate) static CGROUP_PATHS: ArrayOfMaps<HashMap<PathHash, u32, 1, SPARSE>, 2> = ArrayOfMaps::new();
/// Hash of a system unit's name → clause list.
#[btf_map]
pub(crate) static UNITS: ArrayOfMaps<HashMap<PathHash, u32, 1, SPARSE>, 2> = ArrayOfMaps::new();
/// Executable → clause list (low half) and class (high half).
#[btf_map]
pub(crate) static EXECUTABLES: ArrayOfMaps<HashMap<ExecutableKey, u64, 1, SPARSE>, 2> = ArrayOfMaps::new();
/// Clause lists: a count, then that many `writ_abi::Clause`.
#[btf_map]
pub(crate) static CLAUSES: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// IPv4 address → class: nodes of a search tree.
#[btf_map]
pub(crate) static ADDRESSES_V4: ArrayOfMaps<Array<NodeV4, 1, INNER>, 2> = ArrayOfMaps::new();
/// IPv6 address → class, likewise.
#[btf_map]
pub(crate) static ADDRESSES_V6: ArrayOfMaps<Array<NodeV6, 1, INNER>, 2> = ArrayOfMaps::new();
/// Port classes, four to a word.
#[btf_map]
pub(crate) static PORTS: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// Projections of classes onto accounts, four to a word.
#[btf_map]
pub(crate) static PROJECTIONS: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// Cells of all rows.
#[btf_map]
pub(crate) static CELLS: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// Stances (`writ_abi::Stance::to_words`).
#[btf_map]
pub(crate) static STANCES: ArrayOfMaps<Array<Stance, 1, INNER>, 2> = ArrayOfMaps::new();
/// Account flags by account.
#[btf_map]
pub(crate) static FLAGS: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();
/// Slots by account.
#[btf_map]
pub(crate) static SLOTS: ArrayOfMaps<Words, 2> = ArrayOfMaps::new();

/// Holds nothing: updating it makes the loader wait until every program that was running has returned.
#[btf_map]
pub(crate) static BARRIER: ArrayOfMaps<Words, 1> = ArrayOfMaps::new();

/// Where each account has been; never evicts. Outlives generations.
#[btf_map]
pub(crate) static SEEN: HashMap<SeenKey, u64, 262144, SPARSE> = HashMap::new();
/// How many entries of [`SEEN`] each account has, so that none fills it alone.
#[btf_map]
pub(crate) static SEEN_COUNT: Array<u64, 4096> = Array::new();
/// Process → the first executable of its lineage that belongs to an account.
#[btf_map]
pub(crate) static LINEAGE: HashMap<u32, ExecutableKey, 65536, SPARSE> = HashMap::new();

/// One bit per process: it has a lineage that [`LINEAGE`] could not take. 2²² processes are the most a kernel can have.
#[btf_map]
pub(crate) static LINEAGE_LOST: Array<u64, 65536> = Array::new();

/// Session by socket; goes with the socket.
#[btf_map]
pub(crate) static TRACKED: SkStorage<Session> = SkStorage::new();
/// The accounts for which a socket without a destination was let through (`Caller::accounts` as one word).
#[btf_map]
pub(crate) static OPENED: SkStorage<u64> = SkStorage::new();
/// [`TRACKED`] by cookie, for the daemon, which cannot walk [`TRACKED`].
#[btf_map]
pub(crate) static SESSIONS: HashMap<u64, Session, { LISTED as usize }, SPARSE> = HashMap::new();
/// Not 0 while [`SESSIONS`] may list what was open before writ judged, which no connect put into [`TRACKED`]. Written by the
/// daemon, so that packets of no session ask for a cookie only while that is worth it.
#[btf_map]
pub(crate) static FOUND: Array<u64, 1> = Array::new();
/// How many sessions each account has in its own share (rows as in [`BUDGETS`]); the last row: how many there are beyond.
#[btf_map]
pub(crate) static SESSIONS_USED: Array<u64, { ROWS as usize + 1 }> = Array::new();
/// How many sessions each account may always have. Written by the daemon.
#[btf_map]
pub(crate) static SESSIONS_SHARE: Array<u64, 1> = Array::new();

/// Decisions on their way to the daemon.
#[btf_map]
pub(crate) static DECISIONS: RingBuf<DecisionEvent, 16777216> = RingBuf::new();
/// Process starts on their way to the daemon.
#[btf_map]
pub(crate) static PROCESSES: RingBuf<ProcessEvent, 1048576> = RingBuf::new();
/// Each account's share of both rings; the daemon maps it, and says there what it has taken.
#[btf_map]
pub(crate) static BUDGETS: Array<Budget, { ROWS as usize }, SHARED> = Array::new();
/// `writ_abi::Counter`, one set per CPU.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<[u64; COUNTERS as usize], 1> = PerCpuArray::new();

/// Where `cgroup_mkdir` reads a path into: too long for the stack.
#[btf_map]
pub(crate) static PATH: PerCpuArray<crate::cgroup::Scratch, 1> = PerCpuArray::new();
