//! writ: decides at run time what a host's service accounts may connect to, and proves every decision.
mod configuration;
mod kernel;
mod log;

fn main() {}
