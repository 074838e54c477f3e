//! What a process has in memory: all of it, and without the kernel's rings, which it maps and the kernel counts as its own.

use std::fs;

use anyhow::Context as _;

/// In bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resident {
    /// All of it: `VmRSS`.
    pub whole: u64,
    /// Without what is mapped of BPF maps.
    pub beside_maps: u64,
    /// The most there ever was of all of it: `VmHWM`.
    pub peak: u64,
}

impl Resident {
    /// What a process has now.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = kibibytes(&status, "VmHWM:").context("no VmHWM")? << 10;
        let (mut whole, mut maps, mut of_map) = (0, 0, false);
        for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            if let Some(resident) = kibibytes(line, "Rss:") {
                whole += resident << 10;
                maps += if of_map { resident << 10 } else { 0 };
            } else if line.split_whitespace().next().is_some_and(|range| range.contains('-')) {
                of_map = line.ends_with("anon_inode:bpf-map");
            }
        }
        Ok(Self { whole, beside_maps: whole - maps, peak })
    }
}

/// The value of a line such as `Rss: 12 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().trim_end_matches("kB").trim().parse().ok()
}
