//! One generation of kernel tables, in memory: what the compiler makes, the loader writes and the tests decide with.
//!
//! [`build`] lays out a bundle's rows as a [`Generation`]; [`Generation::append_stance`] adds the stance of a changed state;
//! [`Identities::build`] says which host identities lead to which accounts.

#[cfg(test)]
mod agreement;
mod build;
mod generation;
mod grow;
mod identities;
#[cfg(test)]
mod incremental;
mod layout;
mod outlook;
mod schedule;
#[cfg(test)]
mod tests;
mod views;

pub use build::build;
pub use generation::{Explanation, Generation};
pub use identities::{ClauseList32, Identities, Unresolved};
pub use layout::StanceError;
pub use outlook::Outlook;
pub use views::Views;
