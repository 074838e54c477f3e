//! What a connect costs: a UDP connect loop bare, under a program that does nothing, under writ unmanaged and managed.
//!
//! Rounds are interleaved and the medians compared within one run: a shared machine's absolute times prove nothing.
//! However many prefixes are permitted, a round goes to ten thousand addresses in them, each once, so that no lookup is warm and
//! only the policy's size differs between rows. `writ-bench-connect [ROUNDS]`.
//!
//! The second table is one connect at a time under the policy of a thousand accounts: percentiles, each the median over the
//! rounds with its confidence interval. The third adds a datagram, because the others judge packets, not connects.

mod peers;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use writ_tests::bpf::bpf;
use writ_tests::cgroup::Cgroup;
use writ_tests::{Config, Estate, Host, user, wait};

/// Connects of one round and variant.
const CONNECTS: u32 = 10_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [worker, cgroup, uid, prefixes] = arguments.as_slice()
        && worker == "worker"
    {
        return work(Path::new(cgroup), uid.parse()?, prefixes.parse()?);
    }
    if let [mode, cgroup, uid, rules] = arguments.as_slice()
        && mode == "single"
    {
        return single(Path::new(cgroup), uid.parse()?, rules);
    }
    if let [mode, cgroup, uid, _] = arguments.as_slice()
        && mode == "here"
    {
        return measure_here(Path::new(cgroup), uid.parse()?);
    }
    let rounds: usize = arguments.first().map_or(Ok(11), |text| text.parse())?;
    println!("| prefixes | bare | no-op | unmanaged | managed | unmanaged − no-op | managed − bare |");
    println!("|---|---|---|---|---|---|---|");
    for prefixes in [10, 1_000, 10_000, 50_000] {
        let [bare, noop, unmanaged, managed] = measure(rounds, prefixes)?;
        println!(
            "| {prefixes} | {bare:.0} ns | {noop:.0} ns (×{:.2}) | {unmanaged:.0} ns (×{:.2}) | {managed:.0} ns (×{:.2}) | {:+.0} ns | {:+.0} ns |",
            noop / bare,
            unmanaged / bare,
            managed / bare,
            unmanaged - noop,
            managed - bare
        );
    }
    distribution(rounds)
}

/// One connect at a time, and one with a datagram, beside what others do for it.
fn distribution(rounds: usize) -> anyhow::Result<()> {
    let host = Host::start(&Estate::FULL.config());
    let bare = Cgroup::create(&format!("writ-bench-bare-{}", std::process::id()));
    let managed = host.service_user().uid.as_raw();
    let other = user::ensure("writ-bench-other").uid.as_raw();
    let judged = host.cgroup().path();
    let mut variants: Vec<(&str, &Path, u32, &str)> = vec![
        ("bare", bare.path(), other, ""),
        ("writ, unmanaged", judged, other, ""),
        ("writ, managed", judged, managed, ""),
    ];
    let systemd = peers::installed("systemctl", "--version").then(peers::Systemd::start).transpose()?;
    let service = systemd.as_ref().map(peers::Systemd::service);
    if let Some(service) = &service {
        variants.push(("systemd, `IPAddressDeny` of 1,000 prefixes", service, other, ""));
    }
    if peers::installed("nft", "--version") {
        variants.push(("nftables, 1,000 `meta skuid` rules", bare.path(), other, "rules"));
        variants.push(("nftables, one set of 1,000 uids", bare.path(), other, "set"));
    }
    if peers::installed("opensnitchd", "-version") && peers::installed("iptables-legacy", "--version") {
        variants.push(("OpenSnitch, 1,000 rules by user", bare.path(), other, "opensnitch"));
    }
    let mut samples: Vec<[Vec<f64>; 5]> = vec![Default::default(); variants.len()];
    for round in 0..=rounds {
        for ((_, cgroup, uid, rules), samples) in variants.iter().zip(&mut samples) {
            let found = run("single", cgroup, *uid, rules)?;
            ensure!(found.len() == 5, "the worker printed {found:?}");
            if round > 0 {
                samples.iter_mut().zip(found).for_each(|(samples, found)| samples.push(found));
            }
            wait::until("the records of a round to be written", || drained(&host).then_some(()));
        }
    }
    println!("\n| one connect, 1,000 accounts × 10 policies | p50 | p99 | p99.9 | connect and send, p50 | p99 |");
    println!("|---|---|---|---|---|---|");
    for ((name, ..), samples) in variants.iter().zip(samples) {
        let cells: Vec<String> = samples.into_iter().map(interval).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// The median with its confidence interval of at least 95 %: order statistics, whatever the distribution.
fn interval(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let count = samples.len();
    // P(Binomial(n, 1/2) < k) < 2.5 %, by the normal approximation with its correction.
    let half = 0.98 * (count as f64).sqrt() + 0.5;
    let middle = (count as f64 - 1.0) / 2.0;
    let at = |index: f64| {
        let index = index.round().clamp(0.0, count.saturating_sub(1) as f64) as usize;
        samples.get(index).copied().unwrap_or(f64::NAN)
    };
    format!("{:.0} [{:.0}–{:.0}] ns", at(middle), at(middle - half), at(middle + half))
}

/// How far apart prefixes begin when so many lie in 127.0.0.0/8: a power of two. Each is half as long, so that no two of them
/// are neighbours, which would be one range.
fn stride(prefixes: u32) -> u32 {
    1 << (1_u32 << 24).div_euclid(prefixes).ilog2()
}

/// The `index`-th permitted prefix.
fn prefix(index: u32, prefixes: u32) -> String {
    let stride = stride(prefixes);
    format!("{}/{}", Ipv4Addr::from(0x7f00_0000 + index * stride), 33 - stride.ilog2())
}

/// Where the `index`-th connect goes: somewhere in a prefix, both as good as random; an odd multiplier visits each once.
fn address(index: u32, prefixes: u32) -> Ipv4Addr {
    let stride = stride(prefixes);
    let spread = index.wrapping_mul(2_654_435_761);
    let place = (spread.rotate_left(16) % (stride / 2)) | 1;
    Ipv4Addr::from(0x7f00_0000 + (spread % prefixes) * stride + place)
}

fn measure(rounds: usize, prefixes: u32) -> anyhow::Result<[f64; 4]> {
    let list = (0..prefixes).map(|index| format!("\"{}\"", prefix(index, prefixes))).collect::<Vec<_>>().join(", ");
    let config = Config::new()
        .file("destinations.d/many.toml", &format!("[destination.many]\naddresses = [{list}]\n"))
        .permit("many", "many");
    let host = Host::start(&config);
    let bare = Cgroup::create(&format!("writ-bench-bare-{}", std::process::id()));
    let noop = Cgroup::create(&format!("writ-bench-noop-{}", std::process::id()));
    let _attached = attach_noop(noop.path())?;
    let managed = host.service_user().uid.as_raw();
    let other = user::ensure("writ-bench-other").uid.as_raw();
    let judged = host.cgroup().path();
    let variants: [(&Path, u32); 4] = [(bare.path(), other), (noop.path(), other), (judged, other), (judged, managed)];
    let mut samples: [Vec<f64>; 4] = Default::default();
    for round in 0..=rounds {
        for (variant, samples) in variants.iter().zip(&mut samples) {
            let (cgroup, uid) = *variant;
            let sample = run("worker", cgroup, uid, &prefixes.to_string())?.first().copied().context("no number")?;
            // The first round only warms up.
            if round > 0 {
                samples.push(sample);
            }
            if uid == managed {
                // The next round must find an empty ring: a full one would be cheaper than an event.
                wait::until("the records of a round to be written", || drained(&host).then_some(()));
            }
        }
    }
    Ok(samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
    }))
}

fn drained(host: &Host) -> bool {
    let output = host.writ_output(&["status", "--json"]);
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return false };
    let number = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    number("/checkpoint/size") >= number("/records/recorded")
}

/// Runs a worker; the numbers it prints.
fn run(mode: &str, cgroup: &Path, uid: u32, argument: &str) -> anyhow::Result<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?)
        .args([mode, &cgroup.display().to_string(), &uid.to_string(), argument])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    numbers
        .ok()
        .filter(|numbers| output.status.success() && !numbers.is_empty())
        .with_context(|| format!("worker: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Enters the cgroup, in a network namespace of its own with these rules, becomes the user, and prints percentiles of one
/// connect (p50, p99, p99.9) and of one connect with a datagram (p50, p99), in nanoseconds.
fn single(cgroup: &Path, uid: u32, rules: &str) -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let done = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    ensure!(done.success(), "lo could not be brought up");
    let directory = tempfile::tempdir()?;
    match rules {
        "" => {}
        "opensnitch" => {
            // Who measures becomes a user that may not end it.
            let _running = peers::opensnitch(directory.path())?;
            let measured = Command::new(std::env::current_exe()?)
                .args(["here", &cgroup.display().to_string(), &uid.to_string(), ""])
                .status()?;
            ensure!(measured.success(), "the worker failed");
            return Ok(());
        }
        rules => peers::nftables(rules)?,
    }
    measure_here(cgroup, uid)
}

/// The same in the network namespace as it is.
fn measure_here(cgroup: &Path, uid: u32) -> anyhow::Result<()> {
    // Somebody listens, so that a datagram leads to no error.
    let _listener = UdpSocket::bind("0.0.0.0:9")?;
    become_worker(cgroup, uid)?;
    let targets: Vec<SocketAddr> = (0..CONNECTS)
        .map(|index| {
            let each = Estate::FULL.prefixes / Estate::FULL.destinations;
            let nth = index.wrapping_mul(2_654_435_761) % each;
            SocketAddr::from((Estate::address(nth * Estate::FULL.destinations), 9))
        })
        .collect();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut connects = Vec::with_capacity(targets.len());
    for target in &targets {
        let began = Instant::now();
        socket.connect(target)?;
        connects.push(began.elapsed().as_nanos() as f64);
    }
    let mut sends = Vec::with_capacity(targets.len());
    for target in targets.iter().take(CONNECTS as usize / 4) {
        let began = Instant::now();
        socket.connect(target)?;
        socket.send(b"x")?;
        sends.push(began.elapsed().as_nanos() as f64);
    }
    let percentile = |samples: &mut Vec<f64>, share: f64| {
        samples.sort_by(f64::total_cmp);
        samples.get((samples.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    };
    let connect = [0.5, 0.99, 0.999].map(|share| percentile(&mut connects, share));
    let send = [0.5, 0.99].map(|share| percentile(&mut sends, share));
    println!("{} {} {} {} {}", connect[0], connect[1], connect[2], send[0], send[1]);
    Ok(())
}

/// Enters the cgroup, becomes the user, connects, and prints nanoseconds per connect.
fn work(cgroup: &Path, uid: u32, prefixes: u32) -> anyhow::Result<()> {
    become_worker(cgroup, uid)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let targets: Vec<SocketAddr> = (0..CONNECTS).map(|index| SocketAddr::from((address(index, prefixes), 9))).collect();
    let began = Instant::now();
    for target in &targets {
        socket.connect(target)?;
    }
    let each = Duration::as_nanos(&began.elapsed()) as f64 / f64::from(CONNECTS);
    println!("{each}");
    Ok(())
}

fn become_worker(cgroup: &Path, uid: u32) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))?
        .write_all(std::process::id().to_string().as_bytes())?;
    undisturbed()?;
    let gid = Gid::from_raw(uid);
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    let uid = Uid::from_raw(uid);
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Keeps this process on one processor, ahead of everything else: what is measured is the call, not the neighbours.
fn undisturbed() -> anyhow::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(0)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameter is a whole `sched_param` that outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// Attaches a program that lets everything pass; it is detached when the descriptors are dropped.
fn attach_noop(cgroup: &Path) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    const PROG_LOAD: i64 = 5;
    const LINK_CREATE: i64 = 28;
    const CGROUP_SOCK_ADDR: u64 = 18;
    const INET4_CONNECT: u64 = 10;
    // r0 = 1; exit
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    let licence = c"GPL";
    let load: [u64; 16] = [
        CGROUP_SOCK_ADDR | 2 << 32,
        instructions.as_ptr() as u64,
        licence.as_ptr() as u64,
        0,
        0,
        0,
        0,
        0,
        INET4_CONNECT << 32,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let program = bpf(PROG_LOAD, &load, 72)?;
    let directory = fs::File::open(cgroup)?;
    let descriptors = program.as_raw_fd() as u64 | (directory.as_raw_fd() as u64) << 32;
    let create: [u64; 16] = [descriptors, INET4_CONNECT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let link = bpf(LINK_CREATE, &create, 16)?;
    Ok((program, link))
}
