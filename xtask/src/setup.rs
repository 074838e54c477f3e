//! `cargo xtask setup`: gets what building and testing need, and says what it does before doing it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process::{self, command, exists, output, read, run, say};
use crate::workspace;

const BUILD_PACKAGES: &[&str] =
    &["build-essential", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "curl", "python3"];
const TEST_PACKAGES: &[&str] = &[
    "e2fsprogs",
    "iproute2",
    "mount",
    "nginx-light",
    "openssl",
    "passwd",
    "postgresql",
    "procps",
    "python3-cryptography",
    "python3-jwt",
    "python3-pip",
    "python3-venv",
    "redis-server",
    "redis-tools",
    "systemd",
    "util-linux",
];
const VM_PACKAGES: &[&str] = &["debian-archive-keyring", "debootstrap", "e2fsprogs", "qemu-system-x86"];

const PACKAGE_PACKAGES: &[&str] = &["binutils", "dpkg-dev", "lintian", "rpm"];

const ROLLOUT_PACKAGES: &[&str] =
    &["ansible-core", "ansible-lint", "iproute2", "openssh-client", "passwd", "util-linux"];

/// What makes packages of what was built, and the version that is known to. The first makes the .deb.
const PACKERS: &[(&str, &str)] = &[("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1"), ("cargo-deny", "0.20.2")];
const BPF_LINKER: &str = "0.13.0";
/// The Python package that ships OCSF 1.8.0 as it was published.
const OCSF_SCHEMA: &str = "1.2.0";
/// bpf-linker reads the bitcode that rustc writes, so its LLVM must be rustc's (22 for Rust 1.95).
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What to get ready for.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// What `build` and `demo` need
    #[arg(long)]
    pub(crate) build: bool,
    /// What the whole-system tests need on this host
    #[arg(long)]
    pub(crate) test: bool,
    /// What the virtual machines need
    #[arg(long)]
    pub(crate) vm: bool,
    /// What `package` needs
    #[arg(long)]
    pub(crate) package: bool,
    /// What makes a .deb and no more: for the tests of the package
    #[arg(long)]
    pub(crate) deb: bool,
    /// What `rollout` needs
    #[arg(long)]
    pub(crate) rollout: bool,
    /// Only the stock `cedar` command, which `--test` gets too
    #[arg(long)]
    pub(crate) cedar_cli: bool,
}

/// Gets everything the chosen scopes need.
pub(crate) fn setup(options: &Options) -> Result<()> {
    let all = !(options.build
        || options.test
        || options.vm
        || options.package
        || options.deb
        || options.rollout
        || options.cedar_cli);
    let mut packages: Vec<&str> = Vec::new();
    let scopes = [
        (options.build, BUILD_PACKAGES),
        (options.test, TEST_PACKAGES),
        (options.vm, VM_PACKAGES),
        (options.package, PACKAGE_PACKAGES),
        (options.rollout, ROLLOUT_PACKAGES),
    ];
    for (wanted, list) in scopes {
        if wanted || all {
            packages.extend(list);
        }
    }
    debian_packages(&packages)?;
    if options.build || all {
        toolchain()?;
        bpf_linker()?;
    }
    if options.package || all {
        packers(PACKERS)?;
    } else if options.deb {
        packers(PACKERS.split_at(1).0)?;
    }
    if options.rollout || all {
        promtool()?;
    }
    if options.test || all {
        ocsf_schema()?;
    }
    if options.test || options.cedar_cli || all {
        cedar_cli()?;
    }
    Ok(())
}

/// Prometheus' checker of rules, out of Debian's package, which itself would start a server.
fn promtool() -> Result<()> {
    let tool = workspace::promtool();
    if tool.is_file() || !exists("apt-get") {
        return Ok(());
    }
    say("unpacking promtool");
    let tools = workspace::target().join("tools/prometheus");
    std::fs::create_dir_all(&tools).with_context(|| format!("cannot create `{}`", tools.display()))?;
    run(command("apt-get").args(["download", "-qq", "prometheus"]).current_dir(&tools))?;
    run(command("sh").args(["-c", "dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb"]).current_dir(&tools))
}

/// OCSF's published schema, below `target/tools`: what events are held against.
fn ocsf_schema() -> Result<()> {
    let root = workspace::root().join("target/tools/python");
    if root.join(format!("ocsf_json_schema-{OCSF_SCHEMA}.dist-info")).is_dir() {
        return Ok(());
    }
    say(&format!("getting ocsf-json-schema {OCSF_SCHEMA}"));
    let mut pip = command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target"]);
    run(pip.arg(root).arg(format!("ocsf-json-schema=={OCSF_SCHEMA}")))
}

/// The `cedar` command at the version of the library, below `target/tools`: what `replay --with-cedar-cli` is tested with.
fn cedar_cli() -> Result<()> {
    let wanted = locked_version("cedar-policy")?;
    let program = workspace::cedar();
    let installed = output(Command::new(&program).arg("--version"));
    if installed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().ends_with(&format!(" {wanted}"))) {
        return Ok(());
    }
    say(&format!("building cedar-policy-cli {wanted} into target/tools, unoptimised (two minutes or so)"));
    let mut install = process::cargo();
    // Its own target directory: cargo removes the one that it makes by itself. It answers some hundred questions, each in
    // a process of its own: what optimising would save there, it costs many times over here.
    install.env_remove("CARGO_TARGET_DIR").env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
    install.args(["install", "cedar-policy-cli", "--version", &wanted, "--locked", "--force", "--quiet"]);
    run(install.args(["--profile", "dev", "--root"]).arg(workspace::target().join("tools")))
}

/// The version of a dependency that `Cargo.lock` names: what is compared with it must be of the same release.
fn locked_version(name: &str) -> Result<String> {
    let path = workspace::root().join("Cargo.lock");
    let lock = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{name}\""));
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = \""));
    let version = version.and_then(|version| version.strip_suffix('"'));
    version.map(str::to_owned).with_context(|| format!("`{}` names no `{name}`", path.display()))
}

/// Installs what dpkg does not have. The package lists are fetched only if something is missing.
fn debian_packages(wanted: &[&str]) -> Result<()> {
    if !exists("dpkg-query") || !exists("apt-get") {
        // Not ours to install: the names are Debian's, and other systems' packages are named otherwise.
        println!(
            "    not a Debian system: nothing is installed here. Needed are, by their Debian names:\n      {}",
            wanted.join(" ")
        );
        return Ok(());
    }
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {} Debian packages: {}", missing.len(), missing.join(" ")));
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {}", missing.join(" "));
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing and only root can install them; as root: {by_hand}");
    }
    run(command("apt-get").args(["update", "-qq"]))?;
    let mut install = command("apt-get");
    // A conffile question or a restart prompt would wait for ever where nobody answers.
    install.envs([("DEBIAN_FRONTEND", "noninteractive"), ("NEEDRESTART_MODE", "l")]);
    install.args(["install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"]);
    install.args(["-o", "DPkg::Lock::Timeout=300"]);
    run(install.args(&missing)).with_context(|| {
        format!(
            "a package cannot be installed. Needed: {by_hand}. LLVM 22 comes from Debian 12's security archive, and \
             from Debian 14's own"
        )
    })
}

/// The packages of `wanted` that are not installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = command("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(wanted);
    // It fails when one name is unknown, and answers for the others all the same.
    let answer = output(&mut query)?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let has = |name: &str| answer.lines().any(|line| line.split_once(' ') == Some((name, "installed")));
    Ok(wanted.iter().copied().filter(|name| !has(name)).collect())
}

/// The pinned compiler must be there; its library sources are added if they are not.
fn toolchain() -> Result<()> {
    let pinned = workspace::pinned_toolchain()?;
    let version = read(command("rustc").arg("--version"))
        .with_context(|| format!("Rust {pinned} is needed; with rustup: `rustup toolchain install {pinned}`"))?;
    if version.split(' ').nth(1) != Some(pinned.as_str()) {
        bail!(
            "`rust-toolchain.toml` pins Rust {pinned}, and the compiler in use is `{}`; with rustup: `rustup toolchain \
             install {pinned}`, and unset RUSTUP_TOOLCHAIN",
            version.trim()
        );
    }
    let sysroot = PathBuf::from(read(command("rustc").args(["--print", "sysroot"]))?.trim());
    if sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Ok(());
    }
    say("adding the standard library's sources: the BPF object builds its own `core`");
    if !exists("rustup") {
        bail!("`{}` has no library sources; install your distribution's `rust-src` package", sysroot.display());
    }
    let active = read(command("rustup").args(["show", "active-toolchain"]))?;
    let active = active.split_whitespace().next().unwrap_or(&pinned);
    run(command("rustup").args(["component", "add", "rust-src", "--toolchain", active]))
        .context("the `rust-src` component cannot be had; without it the BPF object cannot be built")
}

/// What makes the packages.
fn packers(wanted: &[(&str, &str)]) -> Result<()> {
    for (name, version) in wanted {
        if exists(name) {
            continue;
        }
        say(&format!("building {name} {version} (minutes)"));
        let mut install = process::cargo();
        // Its own target directory: cargo removes the one that it makes by itself.
        install.env_remove("CARGO_TARGET_DIR");
        run(install.args(["install", name, "--version", version, "--locked", "--quiet"]))?;
    }
    Ok(())
}

/// bpf-linker, at the version and with the LLVM that fit the pinned compiler.
fn bpf_linker() -> Result<()> {
    let installed = output(Command::new("bpf-linker").arg("--version"));
    let installed = installed.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if installed.is_ok_and(|version| version == format!("bpf-linker {BPF_LINKER}")) {
        return Ok(());
    }
    say(&format!("building bpf-linker {BPF_LINKER} against LLVM 22 (about a minute)"));
    let mut install = process::cargo();
    // Its own target directory: cargo removes the one that it makes by itself.
    install.env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", LLVM_PREFIX);
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--quiet"]);
    run(install.args(["--no-default-features", "--features", "llvm-22"]))?;
    if !exists("bpf-linker") {
        bail!("bpf-linker was installed where the search path does not lead; add cargo's `bin` directory to PATH");
    }
    Ok(())
}
