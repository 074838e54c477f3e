//! The API on the unix socket: peer credentials decide who may do what, the engine does it, errors say what to do.

mod authzen;
mod caller;
mod changes;
mod connection;
#[cfg(test)]
mod fuzz;
mod held;
mod https;
mod limit;
mod metrics;
#[cfg(test)]
mod openapi;
mod pace;
mod quiet;
mod routes;
mod segment;
mod sight;
mod socket;
mod ssf;
mod tls;
mod token;

pub(crate) use connection::make_room;
pub(crate) use https::{HttpsServer, bind_https};
pub(crate) use socket::{Server, bind};
