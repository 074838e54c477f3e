//! One generation of kernel tables, in memory: what the compiler makes, the loader writes and the tests decide with.
//!
//! [`build`] lays out a bundle's rows as a [`Generation`]; [`Generation::append_stance`] adds the stance of a changed state;
//! [`Identities::build`] says which host identities lead to which accounts.

#[cfg(test)]
mod agreement;
mod asked;
mod build;
mod generation;
mod grow;
mod identities;
#[cfg(test)]
mod incremental;
mod layout;
mod outlook;
mod prepare;
mod ranges;
mod reach;
#[cfg(test)]
mod reach_tests;
mod schedule;
mod subordinate;
#[cfg(test)]
mod tests;
mod views;

pub use build::build;
pub use generation::{Explanation, Generation};
pub use identities::{ClauseList32, Identities, Unresolved};
pub use layout::{Laid, StanceError};
pub use outlook::Outlook;
pub use prepare::{Preparation, Prepared};
pub use ranges::{nodes_v4, nodes_v6};
pub use reach::{Common, Held, ReachDifference};
pub use subordinate::Subordinates;
pub use views::Views;
