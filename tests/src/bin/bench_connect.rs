//! What a connect costs: a UDP connect loop bare, under a program that does nothing, under writ unmanaged and managed.
//!
//! Rounds are interleaved and the medians compared within one run: a shared machine's absolute times prove nothing.
//! Every connect goes to another of the permitted addresses, so that no lookup is warm. `writ-bench-connect [ROUNDS]`.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use writ_tests::cgroup::Cgroup;
use writ_tests::{Config, Host, user, wait};

/// Connects of one round and variant.
const CONNECTS: u32 = 10_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [worker, cgroup, uid, addresses] = arguments.as_slice()
        && worker == "worker"
    {
        return work(Path::new(cgroup), uid.parse()?, addresses.parse()?);
    }
    let rounds: usize = arguments.first().map_or(Ok(11), |text| text.parse())?;
    println!("| CIDRs | bare | no-op | unmanaged | managed | unmanaged − no-op | managed − bare |");
    println!("|---|---|---|---|---|---|---|");
    for addresses in [10, 1_000, 10_000] {
        let [bare, noop, unmanaged, managed] = measure(rounds, addresses)?;
        println!(
            "| {addresses} | {bare:.0} ns | {noop:.0} ns (×{:.2}) | {unmanaged:.0} ns (×{:.2}) | {managed:.0} ns (×{:.2}) | {:+.0} ns | {:+.0} ns |",
            noop / bare,
            unmanaged / bare,
            managed / bare,
            unmanaged - noop,
            managed - bare
        );
    }
    Ok(())
}

/// The `index`-th permitted address.
fn address(index: u32) -> Ipv4Addr {
    // An odd multiplier spreads the prefixes over the whole of 127.0.0.0/8.
    Ipv4Addr::from(0x7f00_0000 | (index.wrapping_mul(0x009e_3779) & 0x00ff_ffff) | 1)
}

fn measure(rounds: usize, addresses: u32) -> anyhow::Result<[f64; 4]> {
    let list = (0..addresses).map(|index| format!("\"{}\"", address(index))).collect::<Vec<_>>().join(", ");
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
            let sample = run(cgroup, uid, addresses)?;
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

fn run(cgroup: &Path, uid: u32, addresses: u32) -> anyhow::Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["worker", &cgroup.display().to_string(), &uid.to_string(), &addresses.to_string()])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    text.trim().parse().map_err(|_| anyhow::anyhow!("worker: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Enters the cgroup, becomes the user, connects, and prints nanoseconds per connect.
fn work(cgroup: &Path, uid: u32, addresses: u32) -> anyhow::Result<()> {
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
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let targets: Vec<SocketAddr> = (0..CONNECTS)
        .map(|index| SocketAddr::from((address(index.wrapping_mul(2_654_435_761) % addresses), 9)))
        .collect();
    let began = Instant::now();
    for target in &targets {
        socket.connect(target)?;
    }
    let each = Duration::as_nanos(&began.elapsed()) as f64 / f64::from(CONNECTS);
    println!("{each}");
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

fn bpf(command: i64, attribute: &[u64; 16], size: usize) -> io::Result<OwnedFd> {
    // SAFETY: the attribute and all it points to outlive the call; the result is a new descriptor or an error.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size) };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: a non-negative result is a descriptor nobody else owns.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}
