//! How live state is written and read back. Unknown members are passed over, so that an older writ can read a newer
//! one's file of the same format; a format it does not know is refused.
//!
//! A file that cannot be read is never an empty state: offboardings and drift would be forgotten. The daemon keeps
//! what the kernel holds and says so.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{BreakGlassStore, EscalationStore, GrantStore, LiveState, OffboardingStore};
use crate::signal::{ClockReading, SignalStore};

/// The format written. It is raised when an older reader would misread a file, not when one gains a member.
pub const FORMAT: u32 = 1;

/// Why a file is not a live state.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Not JSON of this shape.
    #[error("the live state cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a newer writ.
    #[error("the live state has format {found}, and this writ reads up to {FORMAT}")]
    Newer {
        /// What the file says.
        found: u32,
    },
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    clock: &'a Option<ClockReading>,
    signals: &'a SignalStore,
    grants: &'a GrantStore,
    escalations: &'a EscalationStore,
    offboardings: &'a OffboardingStore,
    break_glass: &'a BreakGlassStore,
}

/// The format alone, read first: the rest of a newer file may have another shape.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    clock: Option<ClockReading>,
    signals: SignalStore,
    grants: GrantStore,
    escalations: EscalationStore,
    offboardings: OffboardingStore,
    break_glass: BreakGlassStore,
}

impl LiveState {
    /// The state as it is written.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Written {
            format: FORMAT,
            clock: &self.clock,
            signals: &self.signals,
            grants: &self.grants,
            escalations: &self.escalations,
            offboardings: &self.offboardings,
            break_glass: &self.break_glass,
        })
    }

    /// The state that was written. What has ended meanwhile does not count; call [`LiveState::read_clock`] and then
    /// [`LiveState::expire`] to say so.
    pub fn restore(json: &str) -> Result<Self, RestoreError> {
        let Format { format } = serde_json::from_str(json)?;
        if format > FORMAT {
            return Err(RestoreError::Newer { found: format });
        }
        let Read { clock, signals, grants, escalations, offboardings, break_glass } = serde_json::from_str(json)?;
        Ok(Self { signals, grants, escalations, offboardings, break_glass, clock })
    }
}
