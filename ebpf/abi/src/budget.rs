//! Each account's share of the rings: what it has in flight, what it may always have, and what it lost.

/// How many rows there are: one for each account a configuration can declare, and one for everybody else.
pub const BUDGETS: u32 = 4097;

/// One account's use of the rings. Written by the programs and, word by word, by the daemon, which maps the table.
///
/// An account may always have `share` entries in a ring; more only while the ring is less than half full. The shares of
/// all accounts together fit the other half, so that no account can take the room of another, whoever reads the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Budget {
    /// Entries of the decision ring that were asked for and not refused; also the number each event carries.
    pub issued: u64,
    /// The number of the last event that the daemon took. Behind by what a killed daemon took and did not say, until the
    /// account's next event is taken.
    pub taken: u64,
    /// Entries of the decision ring that the account may always have. Written by the daemon.
    pub share: u64,
    /// Attempts without a record because the ring was full.
    pub lost_ring_full: u64,
    /// Attempts without a record because the account had its share and the ring was more than half full.
    pub lost_budget: u64,
    /// As `issued`, of the ring of process starts.
    pub starts_issued: u64,
    /// As `taken`, of the ring of process starts.
    pub starts_taken: u64,
    /// As `share`, of the ring of process starts.
    pub starts_share: u64,
}

impl Budget {
    /// The row of an account; whoever is no declared account (nobody, a self-test) has the last one together.
    #[inline(always)]
    pub const fn row(account: u16) -> u32 {
        if (account as u32) < BUDGETS - 1 { account as u32 } else { BUDGETS - 1 }
    }

    /// How many entries each of so many accounts may always have in a ring of so many bytes: half the ring, evenly, less
    /// one entry for each CPU, since each can be admitting one at the very moment the ring becomes half full. At least one.
    pub const fn share(ring: u64, entry: u64, accounts: u64, cpus: u64) -> u64 {
        // Each entry has a header of eight bytes and is padded to a multiple of eight.
        let entries = (ring / 2 / (entry.div_ceil(8) * 8 + 8)).saturating_sub(cpus);
        let accounts = if accounts == 0 { 1 } else { accounts };
        let share = entries / accounts;
        if share == 0 { 1 } else { share }
    }

    /// Whether an account with so many entries in flight, the one asked for included, must wait until the ring is less
    /// than half full.
    #[inline(always)]
    pub const fn exceeded(in_flight: u64, share: u64) -> bool {
        // A number taken can be ahead of those issued for a moment: that is nothing in flight.
        in_flight as i64 > share as i64
    }
}
