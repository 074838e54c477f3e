//! `writ.toml`: the agent's own settings and their defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use super::HostFacts;
use super::fault::{Fault, suggest};
use super::model::{Agent, AtStart, Fsync, Kernel, LogSettings, Mode, Paths, Sessions};
use super::network::nat64;
use super::section::{Scalar, Section};
use super::value::{path, person, size};
use crate::signal::RiskRule;

/// The keys of `writ.toml`.
pub(super) const AGENT_KEYS: [&str; 17] = [
    "mode",
    "label",
    "approvers",
    "operators",
    "escalation-ttl",
    "grant-max-ttl",
    "on-escalation",
    "risk",
    "time-zone",
    "nat64",
    "paths",
    "kernel",
    "log",
    "sessions",
    "sink",
    "ssf",
    "https",
];

/// What `[kernel] require` can ask for.
pub const COVERAGE: [&str; 6] = [
    "cgroup",       // connect, sendmsg and sock_create programs at the configured cgroup
    "lsm",          // BPF LSM, the second line
    "tracing",      // exec, fork, exit, cgroup_mkdir: lineage and new cgroups without a window
    "egress",       // the backstop for sessions that were cut
    "sock-destroy", // ending a live session
    "set-retval",   // the configured errno; without it a refusal is EPERM
];

/// How `mode` is written, here and in accounts.
pub(super) const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];

/// How `risk` is written.
const RISKS: [(&str, RiskRule); 2] = [("max", RiskRule::Maximum), ("sum", RiskRule::CappedSum)];

/// The longest `label`, in bytes.
const LONGEST_LABEL: usize = 128;

/// The smallest ring: a burst of some two hundred decisions.
const MIN_RING: u64 = 64 << 10;

/// The largest ring: the next power of two does not fit the kernel's 32 bits.
const MAX_RING: u64 = 1 << 31;

/// The smallest segment: one longest line fits.
const MIN_SEGMENT: u64 = 64 << 10;

/// Where the bpf file system is mounted.
const BPF_MOUNT: &str = "/sys/fs/bpf";

/// `sun_path` holds 108 bytes, the last of them zero.
const MAX_SOCKET_PATH: usize = 107;

impl Default for Agent {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            label: None,
            approvers: vec!["root".to_owned()],
            operators: vec!["root".to_owned()],
            escalation_ttl: Duration::from_secs(3_600),
            grant_max_ttl: Duration::from_secs(8 * 3_600),
            on_escalation: Vec::new(),
            risk: RiskRule::default(),
            time_zone: "UTC".to_owned(),
            nat64: Vec::new(),
            paths: Paths::default(),
            kernel: Kernel::default(),
            log: LogSettings::default(),
            sessions: Sessions::default(),
            sinks: BTreeMap::new(),
            ssf: BTreeMap::new(),
            https: None,
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/writ".to_owned(),
            log: "/var/log/writ".to_owned(),
            socket: "/run/writ/writ.sock".to_owned(),
            drop: None,
            pins: "/sys/fs/bpf/writ".to_owned(),
            cgroup: None,
        }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self { require: Vec::new(), ring_size: 16 << 20 }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            fsync: Fsync::Checkpoint,
            segment_size: 64 << 20,
            segment_age: Duration::from_secs(24 * 3600),
            retention: None,
            key: None,
        }
    }
}

/// Reads `writ.toml`.
pub(super) fn read_agent(mut section: Section<'_, '_>, facts: &HostFacts) -> Agent {
    let default = Agent::default();
    Agent {
        mode: section.choice("mode", &MODES).unwrap_or(default.mode),
        label: section.parsed("label", label),
        approvers: people(&mut section, "approvers").unwrap_or(default.approvers),
        operators: people(&mut section, "operators").unwrap_or(default.operators),
        escalation_ttl: section.duration("escalation-ttl").unwrap_or(default.escalation_ttl),
        grant_max_ttl: section.duration("grant-max-ttl").unwrap_or(default.grant_max_ttl),
        on_escalation: read_command(&mut section),
        risk: section.choice("risk", &RISKS).unwrap_or(default.risk),
        time_zone: section.parsed("time-zone", |name| time_zone(name, facts)).unwrap_or(default.time_zone),
        nat64: read_nat64(&mut section),
        paths: section
            .section("paths", &["state", "log", "socket", "drop", "pins", "cgroup"])
            .map_or(default.paths, read_paths),
        kernel: section.section("kernel", &["require", "ring-size"]).map_or(default.kernel, read_kernel),
        log: section
            .section("log", &["fsync", "segment-size", "segment-age", "retention", "key"])
            .map_or(default.log, read_log),
        sessions: section.section("sessions", &["at-start"]).map_or(default.sessions, read_sessions),
        sinks: super::sink::read_sinks(&mut section),
        ssf: super::ssf::read_transmitters(&mut section),
        https: super::https::read_https(&mut section),
    }
}

/// The command of `on-escalation`: what is run is named, and not looked for.
fn read_command(section: &mut Section<'_, '_>) -> Vec<String> {
    let written = section.list("on-escalation", |text| Ok(text.to_owned())).unwrap_or_default();
    if let Some((program, span)) = written.first()
        && super::value::file(program).is_err()
    {
        let fault = Fault::new("bad-command", format!("`on-escalation` begins with `{program}`"));
        section.refuse(span.clone(), fault.help("write the program's absolute path first, then its arguments"));
    }
    written.into_iter().map(|(word, _)| word).collect()
}

/// A list of users and groups.
pub(super) fn people(section: &mut Section<'_, '_>, key: &str) -> Option<Vec<String>> {
    Some(section.list(key, person)?.into_iter().map(|(person, _)| person).collect())
}

fn label(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.len() > LONGEST_LABEL || text.chars().any(char::is_control) {
        return Err(Fault::new("bad-label", "it is no line of 1 to 128 bytes".to_owned())
            .help("write what tells this configuration from others, e.g. \"2026-11-26 payments\""));
    }
    Ok(text.to_owned())
}

fn time_zone(name: &str, facts: &HostFacts) -> Result<String, Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    // The name becomes a path below the host's zone files.
    if name.is_empty() || name.starts_with('/') || !name.chars().all(plain) {
        return Err(Fault::new("bad-time-zone", format!("`{name}` is not the name of a time zone"))
            .help("write an IANA name, e.g. \"UTC\" or \"Europe/Berlin\""));
    }
    match &facts.time_zones {
        Some(known) if name != "UTC" && !known.contains(name) => {
            Err(Fault::new("bad-time-zone", format!("this host knows no time zone `{name}`"))
                .help(suggest(name, known.iter().map(String::as_str))))
        }
        _ => Ok(name.to_owned()),
    }
}

fn read_nat64(section: &mut Section<'_, '_>) -> Vec<ipnet::Ipv6Net> {
    let prefixes = section.list("nat64", nat64).unwrap_or_default();
    if let Some(((_, _), span)) = prefixes.get(writ_abi::NAT64_PREFIXES) {
        let message = format!("`nat64`: more than {} prefixes", writ_abi::NAT64_PREFIXES);
        section.refuse(span.clone(), Fault::new("too-many-nat64", message).help("the kernel compares no more"));
    }
    let mut networks = Vec::with_capacity(prefixes.len());
    for ((network, truncated), span) in prefixes {
        if truncated {
            let message = format!("`nat64`: bits beyond the prefix are set: read as `{network}`");
            section.warn(span, Fault::new("host-bits", message).help(format!("write \"{network}\"")));
        }
        networks.push(network);
    }
    networks
}

fn read_paths(mut section: Section<'_, '_>) -> Paths {
    let default = Paths::default();
    let paths = Paths {
        state: section.parsed("state", own_directory).unwrap_or(default.state),
        log: section.parsed("log", own_directory).unwrap_or(default.log),
        socket: section.parsed("socket", socket).unwrap_or(default.socket),
        drop: section.parsed("drop", own_directory),
        pins: section.parsed("pins", pins).unwrap_or(default.pins),
        cgroup: section.parsed("cgroup", path),
    };
    // Files of one would be taken for files of the other.
    let pairs = [
        ("log", Some(&paths.log), "state", &paths.state),
        ("drop", paths.drop.as_ref(), "state", &paths.state),
        ("drop", paths.drop.as_ref(), "log", &paths.log),
    ];
    for (key, path, other_key, other) in pairs {
        let written = section.value(key).or_else(|| section.value(other_key));
        if let (true, Some(written)) = (path == Some(other), written) {
            let fault = Fault::new("bad-path", format!("`{key}` and `{other_key}` are one directory, `{other}`"));
            section.refuse(written.span(), fault.help("give each a directory of its own"));
        }
    }
    paths
}

/// A directory that writ fills.
fn own_directory(text: &str) -> Result<String, Fault> {
    let path = path(text)?;
    if path == "/" {
        let fault = Fault::new("bad-path", "`/` is the root directory, which is not writ's alone");
        return Err(fault.help("name a directory of its own"));
    }
    Ok(path)
}

/// A directory below a bpf file system, which is writ's alone.
fn pins(text: &str) -> Result<String, Fault> {
    let path = path(text)?;
    let mount = std::path::Path::new(BPF_MOUNT);
    if mount.starts_with(&path) {
        let fault = Fault::new(
            "bad-path",
            format!("`{path}` holds what others pin too: writ's pins need a directory of their own"),
        );
        return Err(fault.help(format!("name a directory below the mount, e.g. \"{BPF_MOUNT}/writ\"")));
    }
    Ok(path)
}

fn socket(text: &str) -> Result<String, Fault> {
    let socket = super::value::file(text)?;
    if socket.len() > MAX_SOCKET_PATH {
        let message = format!("`{socket}` has {} bytes; a socket's path has at most {MAX_SOCKET_PATH}", socket.len());
        return Err(Fault::new("bad-path", message));
    }
    Ok(socket)
}

fn read_kernel(mut section: Section<'_, '_>) -> Kernel {
    let default = Kernel::default();
    let coverage =
        |text: &str| match COVERAGE.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(Fault::new("unknown-coverage", format!("`{text}` is not a kind of coverage"))
                .help(suggest(text, COVERAGE))),
        };
    Kernel {
        require: section
            .list("require", coverage)
            .map_or(default.require, |list| list.into_iter().map(|(coverage, _)| coverage).collect()),
        ring_size: section.scalar("ring-size", "a size", ring_size).unwrap_or(default.ring_size),
    }
}

fn ring_size(value: &Scalar<'_>) -> Option<Result<u32, Fault>> {
    Some(bytes(value).and_then(|bytes| match u32::try_from(bytes) {
        Ok(ring) if bytes.is_power_of_two() && (MIN_RING..=MAX_RING).contains(&bytes) => Ok(ring),
        _ => {
            let near = bytes.clamp(MIN_RING, MAX_RING).checked_next_power_of_two().unwrap_or(MAX_RING).min(MAX_RING);
            Err(Fault::new("bad-ring-size", format!("{bytes} bytes is not a power of two from 64KiB to 2GiB"))
                .help(format!("write e.g. \"{}\"", in_units(near))))
        }
    }))
}

fn read_log(mut section: Section<'_, '_>) -> LogSettings {
    let default = LogSettings::default();
    let policies = [("always", Fsync::Always), ("checkpoint", Fsync::Checkpoint), ("never", Fsync::Never)];
    LogSettings {
        fsync: section.choice("fsync", &policies).unwrap_or(default.fsync),
        segment_size: section.scalar("segment-size", "a size", segment_size).unwrap_or(default.segment_size),
        segment_age: section.duration("segment-age").unwrap_or(default.segment_age),
        retention: section.duration("retention"),
        key: section.parsed("key", super::value::file),
    }
}

fn read_sessions(mut section: Section<'_, '_>) -> Sessions {
    let choices = [("observe", AtStart::Observe), ("cut", AtStart::Cut)];
    Sessions { at_start: section.choice("at-start", &choices).unwrap_or_default() }
}

fn segment_size(value: &Scalar<'_>) -> Option<Result<u64, Fault>> {
    Some(bytes(value).and_then(|bytes| {
        match bytes {
            MIN_SEGMENT.. => Ok(bytes),
            _ => Err(Fault::new("bad-size", format!("{bytes} bytes is too small for a segment"))
                .help("write \"64KiB\" or more: one line can be that long")),
        }
    }))
}

fn bytes(value: &Scalar<'_>) -> Result<u64, Fault> {
    match value {
        Scalar::Text(text) => size(text),
        Scalar::Number(number) => {
            u64::try_from(*number).map_err(|_| Fault::new("bad-size", format!("`{number}` is not a size")))
        }
    }
}

fn in_units(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{}KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{}MiB", bytes >> 20),
        _ => format!("{}GiB", bytes >> 30),
    }
}
