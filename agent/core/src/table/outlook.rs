//! What is known of an account when its stance is made: its state now, and what expiry alone will make of it.

use crate::policy::AccountState;
use jiff::Timestamp;

/// An account's state and its foreseeable future.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// The state now.
    pub state: AccountState,
    /// The states that follow as signals, freshness and approvals expire, in order of their `now`: each holds from its
    /// `now` until the next one's. Windows and grants that policies write as time are found by themselves.
    pub later: Vec<AccountState>,
    /// Break-glass: verdicts are only observed until then.
    pub observe_until: Option<Timestamp>,
    /// Destinations are learnt, and `new_destination` stays false, until then.
    pub learning_until: Option<Timestamp>,
    /// Everything is refused.
    pub offboarded: bool,
    /// The account's epoch.
    pub epoch: u32,
}

impl From<AccountState> for Outlook {
    fn from(state: AccountState) -> Self {
        Self { state, later: Vec::new(), observe_until: None, learning_until: None, offboarded: false, epoch: 0 }
    }
}

/// An instant in boot-time nanoseconds, if there is one.
pub(super) fn deadline(at: Option<Timestamp>, absent: u64, boot_ns_of: &dyn Fn(Timestamp) -> u64) -> u64 {
    at.map_or(absent, boot_ns_of)
}
