//! How much of something a test does: less where the machine is emulated and a system call takes as long as a hundred.

/// Two sizes of one test.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// On a real kernel.
    pub native: usize,
    /// In `cargo xtask vm`.
    pub emulated: usize,
}

impl Scale {
    /// The size for this machine; the virtual machines say that they are.
    pub fn here(self) -> usize {
        if crate::host::judged_as_a_whole() { self.emulated } else { self.native }
    }
}
