//! Memory that the allocator keeps after a flood, given back to the system.

/// Gives back what the C library's allocator holds and nobody uses.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and touches only the allocator's own lists, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
