//! An errno as the kernel takes it from a program: negative, and seen by the verifier to be one.

/// The greatest errno there can be (`MAX_ERRNO`).
const MAX_ERRNO: u16 = 4095;

/// The errno below zero. The verifier knows the bounds of a difference, and not those of a negation, which LLVM would make of
/// a difference from a zero that it can see.
#[inline(always)]
pub(crate) fn negated(errno: u16) -> i64 {
    if errno > MAX_ERRNO { -1 } else { core::hint::black_box(0i64).wrapping_sub(i64::from(errno)) }
}
