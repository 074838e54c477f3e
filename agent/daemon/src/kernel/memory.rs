//! What the daemon asks of the system for itself: memory given back after a flood, threads that stand back.

/// Gives back what the allocator holds and nobody uses.
pub(crate) fn give_back() {
    /// Every arena (`MALLCTL_ARENAS_ALL`): jemalloc(3).
    const ALL: &std::ffi::CStr = c"arena.4096.purge";
    let nothing = std::ptr::null_mut();
    // SAFETY: the name ends with a zero; this control reads and writes nothing of its caller's.
    let _ = unsafe { tikv_jemalloc_sys::mallctl(ALL.as_ptr(), nothing, std::ptr::null_mut(), nothing, 0) };
}

/// Has the calling thread run only where nothing else wants to.
pub(crate) fn stand_back() {
    // A nice thread would still keep others waiting for the rest of its slice; an idle one is preempted at once.
    // SAFETY: all zeroes is a valid `sched_param`.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // Under the unit's system call filter it is refused: the default is as right, only less kind to the threads beside it.
    // SAFETY: 0 is the calling thread; the parameters outlive the call.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}
