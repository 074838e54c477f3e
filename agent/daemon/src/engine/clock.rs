//! Wall time and boot time together: policies and people speak the one, the kernel counts the other.

use jiff::Timestamp;
use writ_core::signal::{ClockReading, deadline_boot_ns};

use crate::kernel::boot_ns;

/// Both clocks, read as close together as can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Wall time.
    pub(crate) wall: Timestamp,
    /// Nanoseconds since boot, suspend included.
    pub(crate) boot_ns: u64,
}

impl Clocks {
    /// Reads both.
    pub(crate) fn read() -> Self {
        Self { wall: Timestamp::now(), boot_ns: boot_ns() }
    }

    /// The boot time of a wall-clock instant.
    pub(crate) fn boot_of(&self, at: Timestamp) -> u64 {
        deadline_boot_ns(at, self.wall, self.boot_ns)
    }

    /// The wall time of a boot-time instant.
    pub(crate) fn wall_of(&self, boot_ns: u64) -> Timestamp {
        let difference = i128::from(boot_ns) - i128::from(self.boot_ns);
        Timestamp::from_nanosecond(self.wall.as_nanosecond() + difference).unwrap_or(self.wall)
    }

    /// For the live state, which notices when the wall clock was set.
    pub(crate) fn reading(&self, boot_id: &str) -> ClockReading {
        ClockReading { wall: self.wall, boot_ns: self.boot_ns, boot_id: boot_id.to_owned() }
    }
}
