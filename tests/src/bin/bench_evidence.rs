//! What evidence costs: records a second from connect to disk, and how fast a log is verified, decided again, explained.
//!
//! `writ-bench-evidence [SECONDS]` floods a managed account's connects, first with one process beside the daemon, then with
//! one on every core, and measures the log that this makes. Rates are of this machine in this minute. It ends within four
//! minutes, and needs 4 GB where temporary files are.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use writ_tests::{Config, Host, Resident, UdpPeer, wait};

/// What `explain` is timed on.
const MILLION: u64 = 1_000_000;
/// Records that `explain` is asked about.
const EXPLAINED: u64 = 15;

fn main() -> anyhow::Result<()> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(15), |text| text.parse())?;
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let mut host = Host::start(&config);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("| measured | value |\n|---|---|");
    println!("| cores | {cores} |");
    for flooding in [1, cores] {
        flood(&host, &[open.address, closed.address], flooding, Duration::from_secs(seconds))?;
    }
    // The rest of the million, if it is in reach.
    let more = host.flood("udp-connect", closed.address);
    let patience = Duration::from_secs(60);
    let _reached = wait::within(patience, || (number(&host.status(), "/checkpoint/size") >= MILLION).then_some(()));
    more.stop();
    settle(&host);
    // What a flood took is given back in the first second of rest.
    std::thread::sleep(Duration::from_secs(3));
    let (beside, whole) = resident(host.daemon_pid())?;
    println!(
        "| resident memory of the daemon, settled, beside the mapped rings (aim 60 MiB) | {beside:.0} MiB (with them {whole:.0} MiB) |"
    );
    ensure!(host.stop_daemon() == Some(0), "the daemon did not stop well");
    read(&host)
}

/// One flood: what came through, what it cost, what was lost.
fn flood(host: &Host, to: &[std::net::SocketAddr], flooding: usize, time: Duration) -> anyhow::Result<()> {
    let pid = host.daemon_pid();
    let (before, cpu, began) = (host.status(), cpu_seconds(pid)?, Instant::now());
    let floods: Vec<_> = to.iter().cycle().take(flooding).map(|to| host.flood("udp-connect", *to)).collect();
    std::thread::sleep(time);
    for flood in floods {
        flood.stop();
    }
    let rate_time = began.elapsed();
    settle(host);
    let settled = began.elapsed();
    let (after, cpu) = (host.status(), cpu_seconds(pid)? - cpu);
    let grown = |pointer: &str| number(&after, pointer) - number(&before, pointer);
    let (seen, lost, lines) = (grown("/records/seen"), grown("/records/lost"), grown("/checkpoint/size"));
    println!("| **{flooding} flooding process{}** | |", if flooding == 1 { "" } else { "es" });
    println!("| connects a second | {:.0} |", seen as f64 / rate_time.as_secs_f64());
    println!("| records a second, to the disk | {:.0} |", lines as f64 / settled.as_secs_f64());
    println!("| lost, counted | {lost} of {seen} ({:.2} %) |", 100.0 * lost as f64 / seen.max(1) as f64);
    println!("| the daemon's CPU for 1,000 records | {:.1} ms |", 1e6 * cpu / lines.max(1) as f64);
    let (beside, whole) = resident(pid)?;
    println!("| resident memory of the daemon, beside the mapped rings | {beside:.0} MiB (with them {whole:.0} MiB) |");
    Ok(())
}

/// Waits until the ring is read and everything is in the log.
fn settle(host: &Host) {
    let mut last = 0;
    wait::within(Duration::from_secs(120), || {
        let status = host.status();
        let size = number(&status, "/checkpoint/size");
        let done = size == last && number(&status, "/records/in_flight") == 0;
        last = size;
        std::thread::sleep(Duration::from_millis(300));
        done.then_some(())
    });
}

/// What can be done with the log afterwards.
fn read(host: &Host) -> anyhow::Result<()> {
    let log = host.log_directory();
    let (report, first) = timed_answer(host, &["verify", "--json"]);
    let records = number(&report, "/records");
    let bytes = size_of(&log.join("records"))?;
    println!("| **the log** | |");
    println!("| records | {records} |");
    println!("| bytes of a record's line | {} |", bytes / records.max(1));
    println!("| bytes of a record with tree and entries | {} |", size_of(&log)? / records.max(1));
    let verify = first.min(timed(host, &["verify", "--json"], 1)?);
    println!("| verified a second (aim 300,000) | {:.0} |", records as f64 / verify);
    // Once: what it reads is in memory by now.
    let (replayed, replay) = timed_answer(host, &["replay", "--json"]);
    let judged = number(&replayed, "/judged");
    println!(
        "| decided again a second (aim 50,000) | {:.0} (of {judged}, {} reproduced) |",
        judged as f64 / replay,
        number(&replayed, "/reproduced")
    );
    let mut times = Vec::new();
    for id in ids(&log, EXPLAINED)? {
        times.push(timed(host, &["explain", &id], 1)?);
    }
    times.sort_by(f64::total_cmp);
    let of = |place: usize| times.get(place).copied().unwrap_or(f64::NAN) * 1e3;
    println!(
        "| explain, median and slowest of {EXPLAINED} (aim 100 ms) | {:.0} ms, {:.0} ms |",
        of(times.len() / 2),
        of(times.len() - 1)
    );
    Ok(())
}

/// A command's answer, and how long it took in seconds.
fn timed_answer(host: &Host, arguments: &[&str]) -> (Value, f64) {
    let began = Instant::now();
    let answer = host.writ_json(arguments);
    (answer, began.elapsed().as_secs_f64())
}

/// The shortest of so many runs of a command, in seconds.
fn timed(host: &Host, arguments: &[&str], runs: usize) -> anyhow::Result<f64> {
    let mut shortest = f64::INFINITY;
    for _ in 0..runs {
        let mut command = host.writ(arguments);
        command.stdout(Stdio::null());
        let began = Instant::now();
        ensure!(command.status()?.success(), "`writ {}` failed", arguments.join(" "));
        shortest = shortest.min(began.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

/// The ids of so many decisions, from everywhere in the log.
fn ids(log: &Path, count: u64) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut segments: Vec<_> = fs::read_dir(log.join("records"))?.flatten().map(|entry| entry.path()).collect();
    segments.sort();
    for segment in &segments {
        let text = fs::read_to_string(segment)?;
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("\"type\":\"decision\"")).collect();
        let each = (count as usize).div_ceil(segments.len()).max(1);
        for line in lines.iter().step_by((lines.len() / each).max(1)).take(each) {
            let record: Value = serde_json::from_str(line)?;
            found.extend(record.get("id").and_then(Value::as_str).map(str::to_owned));
        }
    }
    found.truncate(count as usize);
    Ok(found)
}

fn number(of: &Value, pointer: &str) -> u64 {
    of.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// User and system time of a process.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
    let ticks: Vec<f64> = rest.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    let each = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
    Ok(ticks.iter().sum::<f64>() / each)
}

/// Resident memory in MiB: all of it, and without the program's text and the rings, which are the kernel's pages.
fn resident(pid: u32) -> anyhow::Result<(f64, f64)> {
    let memory = Resident::of(pid)?;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok((mebibytes(memory.beside_maps), mebibytes(memory.whole)))
}

fn size_of(path: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(path)?.flatten() {
        let data = entry.metadata()?;
        total += if data.is_dir() { size_of(&entry.path())? } else { data.len() };
    }
    Ok(total)
}
