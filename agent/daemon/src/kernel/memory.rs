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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_is_set_up_as_the_build_says() {
        let mut arenas = 0_u32;
        let mut size = size_of::<u32>();
        let nothing = std::ptr::null_mut();
        // SAFETY: the name ends with a zero, the control reads into a number of its own size, and nothing is written.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(c"opt.narenas".as_ptr(), (&raw mut arenas).cast(), &raw mut size, nothing, 0)
        };
        assert_eq!((failed, arenas), (0, 2));
        give_back();
    }
}
