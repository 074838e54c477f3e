//! The ABI's types as bytes: what may be handed to the kernel as it lies in memory, and how ring entries are read back.

use writ_abi::{
    ABI_VERSION, DecisionEvent, EVENT_DECISION, EVENT_PROCESS, KernelConfig, PathHash, ProcessEvent, Session,
};

/// An ABI type handed to aya. The wrapper exists because neither the trait nor the types are ours to join elsewhere.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `repr(C)` integers only; the one gap (after `offsets`, before `nat64`'s end) is read by nobody.
unsafe impl aya::Pod for Plain<KernelConfig> {}
// SAFETY: two u64s.
unsafe impl aya::Pod for Plain<PathHash> {}
// SAFETY: a u64 and two u32s, without padding.
unsafe impl aya::Pod for Plain<ExecutableKey> {}
// SAFETY: u32s and bytes in multiples of four, without padding.
unsafe impl aya::Pod for Plain<SeenKey> {}

// SAFETY: integers without padding: `tests/layout.rs` of the ABI pins the size.
unsafe impl aya::Pod for Plain<Session> {}

/// An executable as the programs' maps know it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ExecutableKey {
    pub(super) inode: u64,
    pub(super) device: u32,
    pub(super) reserved: u32,
}

/// A destination an account has been to, as the programs' maps know it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct SeenKey {
    pub(super) account: u32,
    pub(super) address: [u8; 16],
}

/// A ring entry that is not what this ABI says it must be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ring entry of {length} bytes, kind {kind}, ABI {abi}: not an entry of ABI {ABI_VERSION}")]
pub(crate) struct Malformed {
    /// Its length.
    pub length: usize,
    /// Its kind, if it was long enough to have one.
    pub kind: u32,
    /// Its ABI, if it was long enough to have one.
    pub abi: u32,
}

/// Reads a decision from a ring entry.
pub(super) fn decision(entry: &[u8]) -> Result<DecisionEvent, Malformed> {
    check(entry, size_of::<DecisionEvent>(), EVENT_DECISION)?;
    // SAFETY: the length was checked; every bit pattern is a valid `DecisionEvent`, which is made of integers.
    Ok(unsafe { entry.as_ptr().cast::<DecisionEvent>().read_unaligned() })
}

/// Reads a process start from a ring entry.
pub(super) fn process(entry: &[u8]) -> Result<ProcessEvent, Malformed> {
    check(entry, size_of::<ProcessEvent>(), EVENT_PROCESS)?;
    // SAFETY: as above.
    Ok(unsafe { entry.as_ptr().cast::<ProcessEvent>().read_unaligned() })
}

fn check(entry: &[u8], length: usize, expected: u32) -> Result<(), Malformed> {
    let word = |at: usize| entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let (kind, abi) = (word(0), word(4));
    if entry.len() == length && kind == expected && abi == ABI_VERSION {
        Ok(())
    } else {
        Err(Malformed { length: entry.len(), kind, abi })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_another_kind_abi_or_length_is_refused() {
        let mut entry = vec![0u8; size_of::<DecisionEvent>()];
        entry[0] = EVENT_DECISION as u8;
        entry[4] = ABI_VERSION as u8;
        assert!(decision(&entry).is_ok());
        assert!(process(&entry).is_err());
        assert!(decision(&entry[1..]).is_err());
        entry[4] = ABI_VERSION as u8 + 1;
        assert_eq!(decision(&entry).unwrap_err().abi, ABI_VERSION + 1);
        assert!(decision(&[]).is_err());
    }
}
