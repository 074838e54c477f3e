//! Process life: which executables a process descends from, and the exec events that name short-lived processes.

use core::intrinsics::AtomicOrdering;

use aya_ebpf::{
    helpers::{
        bpf_get_current_cgroup_id,
        generated::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use writ_abi::{ABI_VERSION, Active, Budget, Counter, EVENT_PROCESS, PATH_LEN, ProcessEvent, Tables};

use crate::{
    config::config,
    emit::{self, count},
    identity::{self, Caller},
    map::{BUDGETS, EXECUTABLES, LINEAGE, LINEAGE_LOST, PROCESSES},
    tables::KernelTables,
    task::{self, Runs},
};

/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;

/// A process replaced its program: `(task, old_pid, bprm)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(context: RawTracePointContext) -> i32 {
    let _ = exec(context.arg::<*const u8>(2) as u64);
    0
}

#[inline(always)]
fn exec(bprm: u64) -> Option<()> {
    if !identity::confined() {
        return None;
    }
    let tables = KernelTables::current()?;
    let mut caller = Caller::NONE;
    identity::find(&tables, &mut caller, 0);
    if caller.executable.inode == 0
        && let Runs::Executable(key) = task::runs()
    {
        caller.executable = key;
    }
    // SAFETY: the helper has no preconditions.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if tables.active().has(Active::MATCHES_EXECUTABLES) {
        let executables = EXECUTABLES.get(tables.side())?;
        // SAFETY: entries of a generation's map are never removed while it is in force.
        let belongs = match unsafe { executables.get(caller.executable) } {
            Some(entry) => *entry as u32 != 0,
            None => false,
        };
        // The first one stays: a process cannot shed its origin by running something else. What could not be read may
        // belong to anybody.
        let unread = caller.executable.inode == 0;
        if (belongs || unread)
            && LINEAGE.get_ptr(pid).is_none()
            && !is_lost(pid)
            && (unread || LINEAGE.insert(pid, caller.executable, IF_ABSENT).is_err())
        {
            lose(pid);
        }
    }
    if caller.unmanaged() {
        return None;
    }
    let [account, ..] = caller.accounts;
    let budget = BUDGETS.get_ptr_mut(Budget::row(account))?;
    // SAFETY: the pointer is what the map lookup returned; the words are aligned.
    let (issued, taken, share) = unsafe {
        let word = &raw mut (*budget).starts_issued;
        (emit::increment(word) + 1, (*budget).starts_taken, (*budget).starts_share)
    };
    let exceeded = Budget::exceeded(issued.wrapping_sub(taken), share)
        && emit::half_full(&raw const PROCESSES as *mut core::ffi::c_void);
    let entry = if exceeded { None } else { PROCESSES.reserve(0) };
    let Some(mut entry) = entry else {
        // SAFETY: as above.
        unsafe { emit::decrement(&raw mut (*budget).starts_issued) };
        count(if exceeded { Counter::ProcessBudget } else { Counter::ProcessLost });
        return None;
    };
    let event: *mut ProcessEvent = entry.as_mut_ptr();
    // SAFETY: the entry is a whole `ProcessEvent` in ring memory; the string helper writes at most `PATH_LEN` bytes.
    unsafe {
        let task = task::current();
        (*event).kind = EVENT_PROCESS;
        (*event).abi = ABI_VERSION;
        (*event).at = bpf_ktime_get_boot_ns();
        (*event).executable_inode = caller.executable.inode;
        (*event).start_time = task::start_time(task).unwrap_or_default();
        (*event).cgroup = bpf_get_current_cgroup_id();
        (*event).pid = pid;
        (*event).parent = task::parent(task).unwrap_or_default();
        (*event).uid = caller.uid;
        (*event).executable_device = caller.executable.device;
        (*event).loginuid = task::loginuid(task);
        (*event).issued = issued;
        (*event).account = account;
        (*event).reserved = [0; 3];
        let path = &raw mut (*event).path;
        // Word by word and volatile: for a `memset` of this length the compiler calls a loop over bytes.
        let mut word = 0;
        while word < PATH_LEN / 8 {
            core::ptr::write_volatile(path.cast::<u64>().add(word), 0);
            word += 1;
        }
        let length = match task::follow(bprm, config!(offsets.filename)) {
            Some(filename) => bpf_probe_read_kernel_str(path.cast(), PATH_LEN as u32, filename as *const _),
            None => 0,
        };
        // The helper counts the terminating zero, and returns the whole length when it had to cut.
        (*event).path_len = if length <= 0 { 0 } else { (length - 1) as u32 };
    }
    entry.submit(0);
    count(Counter::ProcessRecorded);
    None
}

/// A process was forked, and does not run yet: `(parent, child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn process_fork(context: RawTracePointContext) -> i32 {
    let _ = fork(context.arg::<*const u8>(0) as u64, context.arg::<*const u8>(1) as u64);
    0
}

#[inline(always)]
fn fork(parent: u64, child: u64) -> Option<()> {
    let parent = task::read::<u32>(parent, config!(offsets.tgid))?;
    let child = task::read::<u32>(child, config!(offsets.tgid))?;
    if parent == child {
        return None; // A thread: the process already has its origin.
    }
    // Its number may have been another's, whose end was not seen.
    forget(child);
    // SAFETY: an entry is inserted whole and never changed.
    let Some(origin) = (unsafe { LINEAGE.get(parent) }) else {
        if is_lost(parent) {
            lose(child);
        }
        if LINEAGE.get_ptr(child).is_some() {
            let _ = LINEAGE.remove(child); // Of another, whose end was not seen.
        }
        return None;
    };
    let origin = *origin;
    if LINEAGE.insert(child, origin, 0).is_err() {
        lose(child);
    }
    None
}

/// The word that holds a process's bit of [`LINEAGE_LOST`], and the bit.
#[inline(always)]
fn lost_bit(pid: u32) -> Option<(*mut u64, u64)> {
    LINEAGE_LOST.get_ptr_mut(pid >> 6).map(|word| (word, 1 << (pid & 63)))
}

/// Remembers that a process has a lineage which is not known: it could be any account's, and what it attempts is refused.
#[inline(always)]
fn lose(pid: u32) {
    count(Counter::LineageFull);
    if let Some((word, bit)) = lost_bit(pid) {
        // SAFETY: the pointer is what the map lookup returned; aligned.
        unsafe { core::intrinsics::atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bit) };
    }
}

/// Whether a process has a lineage which is not known.
#[inline(always)]
pub(crate) fn is_lost(pid: u32) -> bool {
    match lost_bit(pid) {
        // SAFETY: as above; read whole.
        Some((word, bit)) => unsafe { core::ptr::read_volatile(word) & bit != 0 },
        // The kernel gives out no such number.
        None => true,
    }
}

/// Forgets what was remembered of a process that ended.
#[inline(always)]
fn forget(pid: u32) {
    if let Some((word, bit)) = lost_bit(pid)
        && is_lost(pid)
    {
        // SAFETY: as above.
        unsafe { core::intrinsics::atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(word, !bit) };
    }
}

/// A thread ended: `(task)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(context: RawTracePointContext) -> i32 {
    let _ = exit(context.arg::<*const u8>(0) as u64);
    0
}

#[inline(always)]
fn exit(task: u64) -> Option<()> {
    let signal = task::follow(task, config!(offsets.signal))?;
    if task::read::<i32>(signal, config!(offsets.live))? > 0 {
        return None; // Other threads live on.
    }
    let pid = task::read::<u32>(task, config!(offsets.tgid))?;
    let _ = LINEAGE.remove(pid);
    forget(pid);
    None
}
