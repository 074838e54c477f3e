//! Stance: what holds for an account now, until when, and what is left of it when time passes without the daemon.
//!
//! [`LiveState`] (signals, grants, escalations, offboardings, broken glass) → [`AccountLive`] → [`Situation`] → row.

mod account;
mod break_glass;
mod change;
mod destination;
mod escalation;
mod expiry;
mod grant;
mod live;
mod offboarding;
mod restore;
mod situation;

pub use account::AccountLive;
pub use break_glass::{BreakGlass, BreakGlassRefusal, BreakGlassRequest, BreakGlassStore};
pub use change::{Delta, Difference, difference};
pub use destination::{DestinationError, GrantDestination};
pub use escalation::{
    Answer, AnswerRefusal, Attempt, Attempted, Escalation, EscalationStatus, EscalationStore, OPEN_PER_ACCOUNT,
    OPEN_QUESTIONS, Target,
};
pub use expiry::{ExpiryStep, TimeClasses, deadline, expiry_states, expiry_steps, valid_until};
pub use grant::{
    GRANTS_PER_ACCOUNT, Grant, GrantRefusal, GrantRequest, GrantStore, Revocation, RevocationCause, RevokeRefusal,
};
pub use live::{ClearRefusal, Ended, LiveState, Received};
pub use offboarding::{Offboarded, OffboardingRefusal, OffboardingStore};
pub use restore::{FORMAT, RestoreError};
pub use situation::Situation;

use crate::signal::bounded;

/// The longest reason that is kept.
const MAX_REASON: usize = 1024;
/// How many ended grants, and how many ended escalations, are kept for listing.
const ENDED_KEPT: usize = 256;

/// A reason as it is kept; `None` if nothing was said.
fn stated(reason: &str) -> Option<String> {
    let reason = reason.trim();
    (!reason.is_empty()).then(|| bounded(reason, MAX_REASON))
}

/// Keeps the latest ended entries only.
fn keep_latest<T>(ended: &mut Vec<T>) {
    ended.drain(..ended.len().saturating_sub(ENDED_KEPT));
}
