//! Instants: every instant in the core is wall time; the kernel counts boot time; this is where they meet.
//!
//! The daemon reads both clocks together and maps each deadline with [`deadline_boot_ns`] when it writes a stance.
//! When the wall clock is set (timerfd's cancel-on-set tells), lifetimes must not stretch or shrink: the daemon takes
//! [`ClockReading::step_to`] between its last reading and a new one and shifts the live state by it
//! (`LiveState::shift`). Deadlines in the kernel are then unchanged, while time windows, which mean the wall, move.
//! Boot time includes suspend, so a suspended host is no step.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use writ_abi::NEVER;

/// Both clocks, read together, and the boot they belong to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClockReading {
    /// Wall time.
    pub wall: Timestamp,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_ns: u64,
    /// `/proc/sys/kernel/random/boot_id`
    pub boot_id: String,
}

impl ClockReading {
    /// How far the wall clock was set between two readings of one boot; `None` across boots, where nothing but the
    /// wall clock measures the time between.
    pub fn step_to(&self, later: &Self) -> Option<SignedDuration> {
        if self.boot_id != later.boot_id {
            return None;
        }
        let wall = later.wall.as_nanosecond().checked_sub(self.wall.as_nanosecond())?;
        let boot = i128::from(later.boot_ns).checked_sub(i128::from(self.boot_ns))?;
        signed(wall.checked_sub(boot)?)
    }
}

/// The boot-time nanosecond at which the wall clock will read `deadline`, from one reading of both clocks. Clamped to
/// what the kernel can compare: never [`NEVER`], and 0 for what lies before the boot.
pub fn deadline_boot_ns(deadline: Timestamp, wall_now: Timestamp, boot_now_ns: u64) -> u64 {
    let ahead = deadline.as_nanosecond().saturating_sub(wall_now.as_nanosecond());
    let boot = i128::from(boot_now_ns).saturating_add(ahead);
    u64::try_from(boot.clamp(0, i128::from(NEVER - 1))).unwrap_or(0)
}

/// The instant a lifetime ends; the end of time where it has no other.
pub(crate) fn after(at: Timestamp, lifetime: Duration) -> Timestamp {
    at.checked_add(lifetime).unwrap_or(Timestamp::MAX)
}

/// An instant moved by a clock step, kept within what can be represented.
pub(crate) fn shifted(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

fn signed(nanoseconds: i128) -> Option<SignedDuration> {
    const SECOND: i128 = 1_000_000_000;
    let seconds = i64::try_from(nanoseconds / SECOND).ok()?;
    let rest = i32::try_from(nanoseconds % SECOND).ok()?;
    Some(SignedDuration::new(seconds, rest))
}

#[cfg(test)]
mod tests {
    use super::{ClockReading, deadline_boot_ns};
    use jiff::{SignedDuration, Timestamp};
    use writ_abi::NEVER;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_deadline_keeps_its_distance_and_is_clamped_to_what_the_kernel_compares() {
        let now = at(1_000_000);
        for (deadline, boot_now, expected) in [
            (at(1_000_010), 5_000_000_000, 15_000_000_000),
            (at(999_998), 5_000_000_000, 3_000_000_000),
            (at(0), 5_000_000_000, 0),
            (Timestamp::MAX, NEVER - 10, NEVER - 1),
            (now, 7, 7),
        ] {
            assert_eq!(deadline_boot_ns(deadline, now, boot_now), expected);
        }
    }

    #[test]
    fn a_step_is_what_the_wall_gained_over_the_boot_clock() {
        let read = |wall, boot_s: u64, boot: &str| ClockReading {
            wall: at(wall),
            boot_ns: boot_s * 1_000_000_000,
            boot_id: boot.into(),
        };
        let before = read(1_000, 50, "a");
        assert_eq!(before.step_to(&read(1_060, 110, "a")), Some(SignedDuration::ZERO), "time passed, suspend included");
        assert_eq!(before.step_to(&read(4_660, 110, "a")), Some(SignedDuration::from_secs(3_600)));
        assert_eq!(before.step_to(&read(460, 110, "a")), Some(SignedDuration::from_secs(-600)));
        assert_eq!(before.step_to(&read(1_060, 5, "b")), None, "another boot");
    }
}
