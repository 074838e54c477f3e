//! Ids of records: 26 characters that sort by time and cannot collide, made without a clock or randomness.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// Crockford's base 32: no I, L, O, U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// The place of the CPU for records the daemon makes by itself.
const AGENT: u16 = u16::MAX;

/// What makes an id unique within its millisecond and boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdSource {
    /// A kernel event: its CPU and its number there.
    Kernel {
        /// The CPU.
        cpu: u32,
        /// The number of the attempt on that CPU.
        sequence: u64,
    },
    /// A record made by the daemon: a counter that it never sets back, for instance the record's index in the log.
    Agent(u64),
}

/// What the ids of one boot have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootTag(u16);

impl BootTag {
    /// The tag of a boot: 16 bits of its id's hash.
    pub fn of(boot_id: &str) -> Self {
        let digest = Sha256::digest(boot_id.as_bytes());
        Self(digest.iter().take(2).fold(0, |bits, byte| bits << 8 | u16::from(*byte)))
    }
}

/// An id from 48 bits of milliseconds, 16 bits of the boot id's hash, 16 bits of CPU and 48 bits of sequence: laid out as
/// a ULID, so that ULID tools read its time.
pub fn record_id(time: Timestamp, boot: BootTag, source: IdSource) -> String {
    let milliseconds = u128::try_from(time.as_millisecond()).unwrap_or(0) & 0xffff_ffff_ffff;
    let (cpu, sequence) = match source {
        IdSource::Kernel { cpu, sequence } => (u16::try_from(cpu).unwrap_or(AGENT - 1), sequence),
        IdSource::Agent(counter) => (AGENT, counter),
    };
    let (boot, cpu) = (u128::from(boot.0) << 64, u128::from(cpu) << 48);
    let bits = milliseconds << 80 | boot | cpu | u128::from(sequence) & 0xffff_ffff_ffff;
    let mut id = String::with_capacity(26);
    id.extend((0..26u32).rev().map(|place| {
        let digit = (bits >> (place * 5)) as usize & 31;
        DIGITS.get(digit).map_or('0', |byte| char::from(*byte))
    }));
    id
}

/// The millisecond an id was made for; `None` if it is not an id.
pub fn time_of_id(id: &str) -> Option<Timestamp> {
    if id.len() != 26 {
        return None;
    }
    let mut bits = 0u128;
    for character in id.bytes() {
        let digit = DIGITS.iter().position(|known| *known == character)?;
        bits = bits << 5 | digit as u128;
    }
    Timestamp::from_millisecond(i64::try_from(bits >> 80).ok()?).ok()
}
