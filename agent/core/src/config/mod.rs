//! Configuration: TOML text in, final types and all findings at once out.

mod model;

pub use model::*;
