//! Signals: timed, attributed statements about an account, who may make them, and the risk they add up to.
//!
//! incoming + [`Caller`] → [`SignalStore::receive`] → [`Outcome`]; live signals → [`assess`] → risk.

mod admission;
mod caller;
mod clock;
mod kind;
mod remembered;
mod risk;
mod statement;
mod store;

pub use admission::Unauthorised;
pub use caller::{Approver, ApproverRefusal, Caller, NO_UID, Source, TRANSMITTER};
pub use clock::{ClockReading, deadline_boot_ns};
pub(crate) use clock::{after, shifted};
pub use kind::{is_kind, kind_matches, matches_any};
pub use remembered::REMEMBERED_PER_ACCOUNT;
pub use risk::{Contribution, Risk, RiskRule, assess, risk};
pub use statement::{Accepted, Clipped, Incoming, Malformed, Outcome, Signal};
pub(crate) use statement::{bounded, short_digest};
pub use store::{LIVE_PER_ACCOUNT, LIVE_PER_SOURCE, SKEW, SignalStore, UNDECLARED_MAX_TTL};
