//! How a cgroup's path is recognised, in the kernel when the cgroup is made and by the daemon for those already there.

/// The longest cgroup path that is recognised, in bytes without the terminating zero.
pub const CGROUP_PATH_LEN: usize = 511;

/// A path or unit name as a map key: two independent 64-bit FNV-1a sums, so that nobody finds a second name for a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct PathHash {
    /// FNV-1a.
    pub first: u64,
    /// FNV-1a over the bytes' complements, from another start.
    pub second: u64,
}

impl PathHash {
    /// The hash of nothing.
    pub const START: Self = Self { first: 0xcbf2_9ce4_8422_2325, second: 0x6c62_272e_07bb_0142 };

    /// The hash with one more byte.
    #[inline(always)]
    #[must_use]
    pub const fn step(self, byte: u8) -> Self {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        Self {
            first: (self.first ^ byte as u64).wrapping_mul(PRIME),
            second: (self.second ^ (!byte) as u64).wrapping_mul(PRIME),
        }
    }

    /// The hash of a whole name.
    pub fn of(name: &[u8]) -> Self {
        name.iter().fold(Self::START, |hash, byte| hash.step(*byte))
    }
}

/// A walk over a cgroup path, byte by byte: what it hashes to, and whether its last component is a system unit.
///
/// A system unit's cgroup lies below slices only; below anything else (a user's manager, a container) the same name is
/// somebody else's to give, and does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PathWalk {
    /// The whole path so far.
    pub path: PathHash,
    /// The last component so far.
    pub unit: PathHash,
    /// The last six bytes of the component.
    pub tail: u64,
    /// 1 while every finished component was a slice.
    pub below_slices: u64,
}

impl PathWalk {
    /// A walk that has seen nothing.
    pub const START: Self = Self { path: PathHash::START, unit: PathHash::START, tail: 0, below_slices: 1 };
    const SLICE: u64 = u64::from_be_bytes([0, 0, b'.', b's', b'l', b'i', b'c', b'e']);

    /// The walk with one more byte.
    #[inline(always)]
    #[must_use]
    pub const fn step(self, byte: u8) -> Self {
        let path = self.path.step(byte);
        if byte == b'/' {
            // The path starts with a slash: nothing has been finished then.
            let finished = self.tail != 0;
            let below_slices = if finished && self.tail != Self::SLICE { 0 } else { self.below_slices };
            return Self { path, unit: PathHash::START, tail: 0, below_slices };
        }
        Self {
            path,
            unit: self.unit.step(byte),
            tail: (self.tail << 8 | byte as u64) & 0xffff_ffff_ffff,
            below_slices: self.below_slices,
        }
    }

    /// The walk over a whole path.
    pub fn over(path: &[u8]) -> Self {
        path.iter().fold(Self::START, |walk, byte| walk.step(*byte))
    }
}
