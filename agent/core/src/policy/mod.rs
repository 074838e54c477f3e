//! Cedar policy: parsed, validated, classed, and evaluated into rows by the real authorizer.
//!
//! [`Bundle::compile`] turns a configuration into a [`Bundle`]; [`Bundle::evaluate`] asks Cedar about one attempt;
//! [`Bundle::row`] asks it about every class of attempts at once, which [`crate::table`] lays out for the kernel.

mod account;
mod action;
mod annotation;
mod atoms;
mod bundle;
mod calendar;
mod classes;
mod compile;
mod cut;
mod extent;
mod finding;
#[cfg(test)]
pub(crate) mod fixture;
mod further;
mod grant;
mod granted;
mod growth;
mod inputs;
mod judge;
mod kinds;
mod literal;
mod moment;
#[cfg(test)]
pub(crate) mod mutation;
mod parse;
mod places;
mod question;
mod rebuilt;
#[cfg(test)]
mod refusals;
mod row;
mod schema;
mod shape;
mod source;
mod spans;
mod state;
#[cfg(test)]
mod tests;

pub use action::{ActionAnswer, ActionError, ActionRequest};
pub use bundle::{Attempt, Bundle};
pub use classes::{Classes, ExecutableClass};
pub use compile::nat64;
pub use extent::STACK;
pub use further::further;
pub use grant::{Grant, GrantTarget};
pub use growth::Growth;
pub use judge::Evaluation;
pub use parse::PolicyInfo;
pub use question::{WrittenRequest, now_json};
pub use rebuilt::Permit;
pub use row::{Projection, Row, RowCell};
pub use state::{AccountState, Approval};

pub(crate) use annotation::GENERATED;
pub(crate) use bundle::{OfAccount, named};
pub(crate) use extent::schema_beyond;
pub(crate) use inputs::{Inputs, TimeAtoms};
pub(crate) use moment::Moment;
pub(crate) use places::Places;
pub(crate) use rebuilt::{Rebuilt, Text};
pub(crate) use row::StateKey;
pub(crate) use schema::{build as schema_of, quoted};
pub(crate) use source::{Statement, statements};

/// What `context.executable` says of every executable that neither a policy nor an account names.
pub const UNLISTED: &str = "unlisted";

/// The most cells one row can have.
pub const MOST_CELLS: usize = 4 << 20;
