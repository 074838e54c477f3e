//! The catalogue of ways out of a host: each technique that a process under policy could try, done for real, and a capture
//! that sees whether anything got out.
//!
//! `writ doctor --coverage` runs it against a throw-away account, the whole-system tests assert what comes of it on each
//! kernel, and the hostile tests drive it at full speed: one catalogue for all three. Nothing here judges: a technique says
//! what the kernel answered, the [`Capture`] what arrived.

mod capture;
mod catalogue;
mod executable;
mod families;
mod handed;
mod identity;
pub mod inet;
mod order;
mod scene;
mod system;
mod technique;
mod tried;
mod uring;

pub use capture::{Capture, Wanted};
pub use catalogue::{CATALOGUE, find};
pub use order::{Image, Order};
pub use scene::Scene;
pub use system::{alone_in_network, die_with_parent};
pub use technique::{Claim, Disturbance, Proof, Start, Technique};
pub use tried::{Answer, Failure, Tried};
