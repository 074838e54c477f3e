//! What this kernel gives against every known way out: a second, confined writ on a stage of its own, the catalogue of
//! techniques tried on it, and a judgement of each by what arrived, what the kernel answered and what was recorded.

mod judge;
mod rubble;
mod stage;

pub(crate) use judge::{Outcome, Row, judge};
pub(crate) use stage::{Stage, StageError, Who};
