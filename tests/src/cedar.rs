//! The stock `cedar` command, which we did not build: `cargo xtask setup --test` gets it, `CEDAR` names another.

use std::path::Path;

/// Where it is.
pub fn program() -> String {
    std::env::var("CEDAR").unwrap_or_else(|_| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/cedar").display().to_string()
    })
}
