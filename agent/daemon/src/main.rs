//! writ: decides at run time what a host's service accounts may connect to, and proves every decision.
mod api;
mod configuration;
mod engine;
mod kernel;
mod log;
mod process;
mod serve;

fn main() {}
