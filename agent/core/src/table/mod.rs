//! One generation of kernel tables, in memory: what the compiler makes, the loader writes and the tests decide with.

mod generation;

pub use generation::*;
