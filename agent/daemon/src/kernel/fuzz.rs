//! Whatever the bytes, what the kernel hands over is read or refused, and nothing panics: type information, ring entries.

use writ_abi::{ABI_VERSION, DecisionEvent, EVENT_DECISION, EVENT_PROCESS, ProcessEvent};
use writ_core::record::{Context, Decision};
use writ_fuzz::drive;

use super::btf::Btf;
use super::bytes;

/// The kernel's own is megabytes; a piece of it with a header that says so is as good to mutate.
#[test]
fn fuzz_btf() {
    let kernel = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    let mut small = Vec::new();
    // Magic, version, flags; header's length; types at 0, of 4,096 bytes; strings behind them, as many.
    for word in [0x0001_eb9fu32, 24, 0, 4_096, 4_096, 4_096] {
        small.extend_from_slice(&word.to_le_bytes());
    }
    small.extend_from_slice(kernel.get(24..24 + 4_096).unwrap_or(&[1; 4_096]));
    small.extend_from_slice(b"\0task_struct\0cred\0real_cred\0uid\0euid\0user_ns\0group_leader\0");
    small.resize(24 + 8_192, b'a');
    drive("btf", &[&small], |input| Btf::parse(input).and_then(|btf| btf.task_offsets()).is_ok());
}

fn entry(length: usize, kind: u32) -> Vec<u8> {
    let mut entry = vec![1; length];
    for (to, from) in entry.iter_mut().zip([kind.to_le_bytes(), ABI_VERSION.to_le_bytes()].concat()) {
        *to = from;
    }
    entry
}

#[test]
fn fuzz_ring_entries() {
    let seeds = [entry(size_of::<DecisionEvent>(), EVENT_DECISION), entry(size_of::<ProcessEvent>(), EVENT_PROCESS)];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    let driven = drive("ring entries", &seeds, |input| {
        let process = bytes::process(input).is_ok();
        let Ok(event) = bytes::decision(input) else { return process };
        let body = Decision::from_event(&event, Context::default());
        !format!("{body:?}").is_empty()
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}
