//! The second verifier (tests/verify_log.py), run over what tests leave: it was written from the specifications alone.

use std::path::Path;
use std::process::Command;

/// Logs beyond this are a benchmark's.
pub(crate) const MOST_BYTES: u64 = 256 << 20;

/// Bytes of a log's lines.
pub(crate) fn bytes(log: &Path) -> u64 {
    let entries = std::fs::read_dir(log.join("records")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
}

/// What it says against a log that nobody writes; `None` if it verifies, or has signed nothing yet.
pub(crate) fn problem(log: &Path) -> Option<String> {
    // A virtual machine has the binaries and not the sources.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("verify_log.py");
    if !log.join("checkpoint").exists() || !script.exists() {
        return None;
    }
    let output = Command::new("python3").arg(script).arg(log).output().expect("cannot run python3");
    (!output.status.success()).then(|| format!("verify_log.py: {}", String::from_utf8_lossy(&output.stderr)))
}
