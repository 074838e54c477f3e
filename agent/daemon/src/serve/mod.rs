//! The API on the unix socket: peer credentials decide who may do what, the engine does it, errors say what to do.

mod authzen;
mod caller;
mod changes;
#[cfg(test)]
mod fuzz;
mod limit;
mod metrics;
#[cfg(test)]
mod openapi;
mod routes;
mod socket;
mod ssf;

pub(crate) use socket::{Server, bind};
