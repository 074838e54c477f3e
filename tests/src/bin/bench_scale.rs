//! What a large configuration costs: to start, to reload, in the daemon's memory and in the kernel's.
//!
//! `writ-bench-scale [ACCOUNTS POLICIES PREFIXES DESTINATIONS]` runs the real daemon in a cgroup of its own. Without
//! arguments it measures the size that a host is to bear, and then the same with fifty thousand prefixes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use writ_tests::bpf::Memory;
use writ_tests::{Estate, Host, Resident};

/// Reloads of each kind.
const RELOADS: u32 = 5;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<u32> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let sizes = match arguments.as_slice() {
        [] => vec![Estate::FULL, Estate { prefixes: 50_000, ..Estate::FULL }],
        [accounts, policies, prefixes, destinations] => {
            vec![Estate { accounts: *accounts, policies: *policies, prefixes: *prefixes, destinations: *destinations }]
        }
        _ => anyhow::bail!("writ-bench-scale [ACCOUNTS POLICIES PREFIXES DESTINATIONS]"),
    };
    println!(
        "| accounts × policies, prefixes, destinations | start | restart, adopting | reload, unchanged | reload, one \
         account's policy changed | reload, one prefix changed | daemon, resident beside the mapped rings (all, its peak) | maps beside the rings | rings |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for size in sizes {
        measure(size)?;
    }
    Ok(())
}

fn measure(size: Estate) -> anyhow::Result<()> {
    let config = size.config();
    let mut host = Host::prepare(&config);
    let began = Instant::now();
    host.run_daemon();
    let start = began.elapsed();
    let unchanged = median((0..RELOADS).map(|_| reload(&host)).collect::<anyhow::Result<_>>()?);
    let started = Resident::of(host.daemon_pid())?;
    let maps = Memory::below(host.pins())?;
    let changed = median(
        (0..RELOADS)
            .map(|turn| {
                let last = size.accounts - 1;
                let first = last - last % 10;
                let text: String = (first..=last)
                    .map(|account| size.policies_of(account, if account == last { turn_name(turn) } else { "as made" }))
                    .collect();
                fs::write(host.config_directory().join(Estate::policy_file(last)), text)?;
                reload(&host)
            })
            .collect::<anyhow::Result<_>>()?,
    );
    let path = host.config_directory().join("destinations.d/estate.toml");
    let prefixes = fs::read_to_string(&path)?;
    let moved = median(
        (0..RELOADS)
            .map(|turn| {
                let added = format!("addresses = [\"192.0.2.{turn}\", ");
                fs::write(&path, prefixes.replacen("addresses = [", &added, 1))?;
                reload(&host)
            })
            .collect::<anyhow::Result<_>>()?,
    );
    // What was in force before is let go within seconds.
    std::thread::sleep(Duration::from_secs(4));
    let reloaded = Resident::of(host.daemon_pid())?;
    host.stop_daemon();
    let began = Instant::now();
    host.run_daemon();
    let restart = began.elapsed();
    let restarted = Resident::of(host.daemon_pid())?;
    println!(
        "| {} × {}, {}, {} | {} | {} | {} | {} | {} | {}; after the reloads {}; after a restart {} | {} | {} |",
        size.accounts,
        size.policies,
        size.prefixes,
        size.destinations,
        seconds(start),
        seconds(restart),
        seconds(unchanged),
        seconds(changed),
        seconds(moved),
        resident(started),
        resident(reloaded),
        resident(restarted),
        mebibytes(maps.beside_rings()),
        mebibytes(maps.rings),
    );
    let mut largest: Vec<(&String, &u64)> = maps.maps.iter().collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let largest: Vec<String> =
        largest.into_iter().take(6).map(|(name, bytes)| format!("{name} {}", mebibytes(*bytes))).collect();
    eprintln!("largest maps: {}", largest.join(", "));
    Ok(())
}

fn turn_name(turn: u32) -> &'static str {
    if turn.is_multiple_of(2) { "as changed" } else { "as changed again" }
}

/// One `writ reload`, as an operator runs it.
fn reload(host: &Host) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let output = host.writ_output(&["reload"]);
    let took = began.elapsed();
    ensure!(output.status.success(), "reload: {output:?}");
    Ok(took)
}

/// A line of the daemon's `/proc/PID/status`, in bytes.
fn resident(memory: Resident) -> String {
    format!("{} ({}, {})", mebibytes(memory.beside_maps), mebibytes(memory.whole), mebibytes(memory.peak))
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
