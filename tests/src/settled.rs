//! What became of all attempts, once none is on its way any more.

/// What became of all attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// All of them.
    pub seen: u64,
    /// Those with a record.
    pub recorded: u64,
    /// Those counted in loss records.
    pub lost: u64,
}
