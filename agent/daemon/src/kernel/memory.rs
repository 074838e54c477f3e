//! What the daemon asks of the system for itself: memory given back after a flood, threads that stand back.

/// Gives back what the C library's allocator holds and nobody uses.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and touches only the allocator's own lists, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
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
