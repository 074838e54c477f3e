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
    use std::ffi::CStr;

    use super::*;

    /// What the allocator says of its setup.
    fn control<T>(name: &CStr, mut value: T) -> T {
        let mut size = size_of::<T>();
        let nothing = std::ptr::null_mut();
        // SAFETY: the name ends with a zero, the control reads into a value of its own size, and nothing is written.
        let failed =
            unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), (&raw mut value).cast(), &raw mut size, nothing, 0) };
        assert_eq!((failed, size), (0, size_of::<T>()), "{name:?}");
        value
    }

    #[test]
    fn the_allocator_is_set_up_as_the_build_says() {
        assert_eq!(control(c"opt.narenas", 0_u32), 2);
        assert_eq!(control(c"opt.dirty_decay_ms", 0_isize), 10_000);
        let pages = control(c"opt.thp", c"".as_ptr());
        // SAFETY: a name of jemalloc's own, which is there for as long as the program runs.
        assert_eq!(unsafe { CStr::from_ptr(pages) }, c"always");
        give_back();
    }
}
