//! Cedar policy: parsed, validated, classed, and evaluated into rows by the real authorizer.

mod state;

pub use state::{AccountState, Approval};
