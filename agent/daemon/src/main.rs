//! `writ`: one binary, the daemon and its command line.

#[cfg_attr(not(test), expect(dead_code, reason = "called by the commands, which are not wired yet"))]
mod configuration;

fn main() {}
