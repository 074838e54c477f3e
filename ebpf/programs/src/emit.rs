//! The only writer to the rings; what it cannot write, it counts.

use core::ffi::c_void;
use core::intrinsics::AtomicOrdering;

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm,
    generated::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ringbuf_query},
};
use writ_abi::{ABI_VERSION, Active, Address, Budget, Counter, Decision, DecisionEvent, EVENT_DECISION, Hook};

use crate::{
    identity::{Caller, NOBODY},
    map::{BUDGETS, COUNTS, DECISIONS},
    task,
};

/// Adds one to a counter of this CPU and returns its new value; atomic, because another task may be judged on the same
/// CPU in the middle of this one.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> u64 {
    let Some(counts) = COUNTS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer is what the map lookup returned; the counter's number is below the array's length.
    unsafe { increment(counts.cast::<u64>().add(counter as usize)) + 1 }
}

/// Adds one to a word and returns what it was. `AtomicU64` has no such method on a target without compare-and-swap.
///
/// Sequentially consistent, because LLVM 22 turns a relaxed addition into the instruction without a result even where the
/// result is used, and then takes the operand for it.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[inline(always)]
pub(crate) unsafe fn increment(word: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, 1) }
}

/// Takes one from a word.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn decrement(word: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, u64::MAX) };
}

/// Whether a ring is more than half full. Asked only for accounts that have their share already.
#[inline(always)]
pub(crate) fn half_full(ring: *mut c_void) -> bool {
    const WAITING: u64 = 0; // BPF_RB_AVAIL_DATA
    const SIZE: u64 = 1; // BPF_RB_RING_SIZE
    // SAFETY: the pointer is that of a ring map, as the verifier sees.
    unsafe { bpf_ringbuf_query(ring, WAITING) > bpf_ringbuf_query(ring, SIZE) / 2 }
}

/// Counts an attempt without a record. The loss before the number: who reads the numbers first finds every loss among them.
///
/// # Safety
/// As for [`increment`]; `word` is one of `budget`.
#[inline(always)]
unsafe fn lost(budget: *mut Budget, word: *mut u64, counter: Counter) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        decrement(&raw mut (*budget).issued);
        increment(word);
    }
    count(counter);
    count(Counter::Seen);
    false
}

/// What was attempted, as the hook saw it; in a C layout, because the verifier is shown it.
#[repr(C)]
pub(crate) struct Seen {
    pub(crate) given: Address,
    pub(crate) address: Address,
    /// Class of the caller's executable.
    pub(crate) executable: u32,
    /// Class of the address.
    pub(crate) class: u32,
    pub(crate) port: u16,
    pub(crate) socket_family: u16,
    pub(crate) socket_type: u16,
    pub(crate) socket_protocol: u16,
    /// `Hook`, `Protocol`, `Family` as numbers: the verifier knows no enumerations.
    pub(crate) hook: u8,
    pub(crate) protocol: u8,
    pub(crate) family: u8,
    /// 1 for `open-socket`.
    pub(crate) open_socket: u8,
}

impl Seen {
    /// Whether letting it through opens a session: datagrams sent to an address are judged one by one.
    #[inline(always)]
    pub(crate) fn tracked(&self) -> bool {
        self.hook == Hook::Connect4 as u8 || self.hook == Hook::Connect6 as u8
    }
}

/// The outcome to be recorded.
#[repr(C)]
pub(crate) struct Outcome {
    pub(crate) decision: Decision,
    pub(crate) at: u64,
    pub(crate) account: u16,
    pub(crate) views: u16,
    pub(crate) errno: u16,
    /// Cookie of the socket, and of its network namespace.
    pub(crate) cookies: [u64; 2],
}

/// Hands one decision to the ring; false if there was no room, which is counted.
///
/// The attempt's number is taken once its place in the ring is: an event is then never further behind a later number than
/// what the ring held when that number was given out, and whoever has read so far knows that what is missing was lost.
#[inline(always)]
pub(crate) fn decision(active: Active, caller: &Caller, seen: &Seen, outcome: &Outcome) -> bool {
    write_decision(active.0, caller, seen, outcome) != 0
}

/// Does what [`decision`] says; 0 is false. Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_decision(active: u64, caller: *const Caller, seen: *const Seen, outcome: *const Outcome) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    match unsafe { (caller.as_ref(), seen.as_ref(), outcome.as_ref()) } {
        (Some(caller), Some(seen), Some(outcome)) => u32::from(written(Active(active), caller, seen, outcome)),
        _ => {
            count(Counter::LostBudget);
            count(Counter::Seen);
            0
        }
    }
}

#[inline(always)]
fn written(active: Active, caller: &Caller, seen: &Seen, outcome: &Outcome) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(Budget::row(outcome.account)) else {
        // Every account has a row.
        count(Counter::LostBudget);
        count(Counter::Seen);
        return false;
    };
    // SAFETY: the pointer is what the map lookup returned; the words are aligned.
    let (issued, taken, share) = unsafe {
        let words = &raw mut (*budget).issued;
        (increment(words) + 1, (*budget).taken, (*budget).share)
    };
    if Budget::exceeded(issued.wrapping_sub(taken), share) && half_full(&raw const DECISIONS as *mut c_void) {
        // SAFETY: as above.
        return unsafe { lost(budget, &raw mut (*budget).lost_budget, Counter::LostBudget) };
    }
    let Some(mut entry) = DECISIONS.reserve(0) else {
        // SAFETY: as above.
        return unsafe { lost(budget, &raw mut (*budget).lost_ring_full, Counter::LostRingFull) };
    };
    let sequence = count(Counter::Seen);
    let event: *mut DecisionEvent = entry.as_mut_ptr();
    let [a, b, c, d] = caller.accounts;
    let named = outcome.account;
    let but_named = |account: u16| if account == named { NOBODY } else { account };
    // The account that is named can be any of the four; the other three follow.
    let also = if a == named {
        [b, c, d]
    } else {
        [a, if b == named { c } else { b }, if d == named { but_named(c) } else { d }]
    };
    // SAFETY: the entry is a whole `DecisionEvent` in ring memory; the helpers have no preconditions.
    unsafe {
        let ids = bpf_get_current_pid_tgid();
        let task = task::current();
        (*event).kind = EVENT_DECISION;
        (*event).abi = ABI_VERSION;
        (*event).at = outcome.at;
        (*event).sequence = sequence;
        (*event).executable_inode = caller.executable.inode;
        (*event).start_time = task::start_time(task).unwrap_or_default();
        (*event).cgroup = bpf_get_current_cgroup_id();
        (*event).socket_cookie = outcome.cookies[0];
        (*event).netns_cookie = outcome.cookies[1];
        (*event).address = seen.address;
        (*event).given = seen.given;
        (*event).cpu = bpf_get_smp_processor_id();
        (*event).generation = active.generation();
        (*event).stance = outcome.decision.stance;
        (*event).epoch = outcome.decision.epoch;
        (*event).explanation = outcome.decision.explanation;
        (*event).pid = (ids >> 32) as u32;
        (*event).tid = ids as u32;
        (*event).parent = task::parent(task).unwrap_or_default();
        (*event).uid = caller.uid;
        (*event).euid = caller.euid;
        (*event).loginuid = task::loginuid(task);
        (*event).executable_device = caller.executable.device;
        (*event).executable_class = caller.executable_class;
        (*event).views = u32::from(outcome.views);
        (*event).count = 1;
        (*event).socket_protocol = u32::from(seen.socket_protocol);
        (*event).account = outcome.account;
        (*event).also = also;
        (*event).port = seen.port;
        (*event).hook = seen.hook;
        (*event).protocol = if seen.open_socket == 1 { seen.family } else { seen.protocol };
        (*event).open_socket = seen.open_socket;
        (*event).verdict = outcome.decision.verdict as u8;
        (*event).reason = outcome.decision.reason as u8;
        (*event).enforced = outcome.decision.enforced as u8;
        (*event).would = outcome.decision.would as u8;
        (*event).new_destination = outcome.decision.new_destination as u8;
        (*event).errno = outcome.errno;
        (*event).socket_family = seen.socket_family;
        (*event).socket_type = seen.socket_type;
        (*event).issued = issued;
        (*event).comm = bpf_get_current_comm().unwrap_or_default();
    }
    entry.submit(0);
    count(Counter::Recorded);
    true
}
