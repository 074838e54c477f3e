//! What else judges by user or by address on Linux, set up beside writ: nftables, OpenSnitch, systemd's `IPAddressDeny`.
//!
//! Each where it is installed, and confined: rules live in a network namespace that ends with the worker, systemd runs as the
//! first process of namespaces of its own, in a cgroup of the benchmark's.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::json;
use writ_tests::cgroup::Cgroup;
use writ_tests::{user, wait};

/// Rules or prefixes that each of them has.
const RULES: u32 = 1_000;
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Whether a program is installed.
pub(crate) fn installed(program: &str, argument: &str) -> bool {
    let tried = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = tried.is_ok_and(|status| status.success());
    if !there {
        eprintln!("{program} is not installed: nothing to compare with");
    }
    there
}

fn uids() -> impl Iterator<Item = u32> {
    (1..=RULES).map(|index| user::BENCH_UIDS + index)
}

/// A thousand users judged on output in this network namespace: rule by rule, or by one set.
pub(crate) fn nftables(rules: &str) -> anyhow::Result<()> {
    let uids: Vec<String> = uids().map(|uid| uid.to_string()).collect();
    let body = match rules {
        "set" => format!("meta skuid {{ {} }} drop", uids.join(", ")),
        _ => uids.iter().map(|uid| format!("meta skuid {uid} drop\n")).collect(),
    };
    let text = format!(
        "table inet bench {{ chain out {{ type filter hook output priority 0; policy accept;\n{body}\n}}\n}}\n"
    );
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refused the rules");
    Ok(())
}

/// A process that is ended with what holds it.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// OpenSnitch in this network namespace, with a rule for each of a thousand users, and without its window: what no rule
/// names is let through, which is its default.
pub(crate) fn opensnitch(directory: &Path) -> anyhow::Result<Running> {
    let (rules, programs) = (directory.join("rules"), directory.join("bin"));
    fs::create_dir(&rules)?;
    fs::create_dir(&programs)?;
    for uid in uids() {
        let operator =
            json!({ "type": "simple", "operand": "user.id", "sensitive": false, "data": uid.to_string(), "list": [] });
        let rule = json!({
            "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z", "name": uid.to_string(), "enabled": true,
            "precedence": false, "action": "deny", "duration": "always", "operator": operator,
        });
        fs::write(rules.join(format!("{uid}.json")), rule.to_string())?;
    }
    // It calls `iptables`, which by another name can queue where nftables cannot.
    for program in ["iptables", "ip6tables"] {
        symlink(format!("/usr/sbin/{program}-legacy"), programs.join(program))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let said = fs::File::create(directory.join("said"))?;
    let daemon = Command::new("opensnitchd")
        .env("PATH", format!("{}:{path}", programs.display()))
        .args(["-process-monitor-method", "proc", "-rules-path"])
        .arg(&rules)
        .arg("-ui-socket")
        .arg(format!("unix://{}", directory.join("nobody.sock").display()))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .map(Running)?;
    let queues = || {
        let rules = Command::new("iptables-legacy").args(["-t", "mangle", "-S", "OUTPUT"]).output().ok()?;
        String::from_utf8_lossy(&rules.stdout).contains("NFQUEUE").then_some(())
    };
    wait::until("OpenSnitch asks for packets", queues);
    Ok(daemon)
}

/// systemd as the first process of namespaces of its own, with one service that may not reach a thousand prefixes.
pub(crate) struct Systemd {
    // Ended before its cgroup goes.
    running: Option<Running>,
    cgroup: Cgroup,
    _directory: tempfile::TempDir,
}

impl Systemd {
    /// Starts it, and waits until the service runs.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let cgroup = Cgroup::create(&format!("writ-bench-systemd-{}", std::process::id()));
        let prefixes: Vec<String> =
            (0..RULES).map(|index| format!("198.18.{}.{}/32", index / 250, index % 250)).collect();
        let service = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nIPAddressDeny={}\nExecStart=/bin/sleep infinity\n",
            prefixes.join(" ")
        );
        fs::write(directory.path().join("denied.service"), service)?;
        fs::write(
            directory.path().join("bench.target"),
            "[Unit]\nDefaultDependencies=no\nRequires=denied.service\nAfter=denied.service\n",
        )?;
        // Nothing of the host is touched: the mounts are the namespaces' own, and the units in force are these two.
        let script = "set -e; mount --make-rprivate /; mount -t proc proc /proc; mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
                      mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system; cp \"$0\"/* /run/systemd/system/; exec \"$1\" \
                      --system --unit=bench.target --log-target=null --show-status=no";
        let mut inside = Command::new("unshare");
        inside
            .args(["--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--net", "--ipc", "--uts"])
            .args(["sh", "-c", script])
            .arg(directory.path())
            .arg(SYSTEMD)
            .env("container", "bench")
            .stdin(Stdio::null());
        let child = in_cgroup(&mut inside, cgroup.path())?;
        let started = Self { running: Some(Running(child)), cgroup, _directory: directory };
        let runs = || {
            let pids = fs::read_to_string(started.service().join("cgroup.procs")).ok()?;
            (!pids.is_empty()).then_some(())
        };
        wait::until("systemd has started the service", runs);
        Ok(started)
    }

    /// The service's cgroup: whoever enters it is judged as the service is.
    pub(crate) fn service(&self) -> PathBuf {
        self.cgroup.path().join("system.slice/denied.service")
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.running = None;
        wait::until("what systemd made is removed", || remove_below(self.cgroup.path()).ok());
    }
}

/// Starts a command as a process of the cgroup, from its first instruction on.
fn in_cgroup(command: &mut Command, cgroup: &Path) -> anyhow::Result<Child> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup of our own")?.to_owned();
    let home = writ_tests::cgroup::mount().join(own.trim_start_matches('/'));
    let enter = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
    enter(cgroup)?;
    let child = command.spawn();
    enter(&home)?;
    Ok(child?)
}

fn remove_below(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_below(&path)?;
            fs::remove_dir(&path)?;
        }
    }
    Ok(())
}
