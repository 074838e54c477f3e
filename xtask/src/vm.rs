//! `cargo xtask vm`: the whole-system suite in virtual machines, on each kernel of the matrix, with writ at the root
//! cgroup; and the package, on a host with systemd.

mod boot;
mod install;
mod kernel;
mod mirror;
mod report;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Beside;
use crate::build::{self, cargo_with_object};
use crate::package;
use crate::process::{command, read, run, say};
use crate::setup;
use crate::tally::{Tally, once_more};
use crate::workspace;

pub(crate) use root::remove;

/// Which kernels, which tests.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// A kernel of the matrix, such as 6.1; may be given more than once
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<String>,
    /// Every kernel of the matrix; the default is those that CI asks for
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Only tests whose name contains this; may be given more than once. An empty one runs all, those that are left out of
    /// an emulated machine too
    #[arg(long = "test", value_name = "FILTER")]
    filter: Vec<String>,
    /// The package on a host with systemd, instead of the suite
    #[arg(long, conflicts_with = "filter")]
    package: bool,
    /// With `--package`: without what takes minutes where the machine is emulated
    #[arg(long, requires = "package")]
    brief: bool,
    /// With `--package`: the optimised build
    #[arg(long, requires = "package")]
    release: bool,
    /// Seconds after which a machine is given up
    #[arg(long, default_value_t = 2400)]
    timeout: u64,
    /// Processors of a machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// A test that fails and then passes alone has failed
    #[arg(long)]
    strict: bool,
    /// Everything is built and set up; this file lists what is to run, and with the package if it names one
    #[arg(long, hide = true, value_name = "FILE", conflicts_with = "package")]
    built: Option<PathBuf>,
    /// Only get what tests and machines need, and make the disks
    #[arg(long, hide = true, conflicts_with_all = ["package", "built"])]
    prepare: bool,
}

/// The subjects that an emulated machine runs: every hook, form and identity at the root cgroup. The others ask nothing more
/// of the kernel, and are too heavy for emulation: load, floods, servers, and a daemon that has to start beside two probers.
///
/// Reloads are among the package's claims there.
const SUBJECTS: [&str; 8] =
    ["clock::", "connect::", "families::", "forms::", "harness::", "identity::", "kernels::", "unmanaged::"];
/// How a kernel dies whose emulator runs an instruction that was replaced meanwhile: each attachment of a BPF LSM program puts a
/// breakpoint over the hook's first bytes for a moment (`text_poke_bp` in arch/x86/kernel/alternative.c), and QEMU without
/// KVM can still have it translated when it is gone. Processors do not.
/// Linux 6.10 and later put `Oops: ` before it.
const STALE_BREAKPOINT: &str = "int3: 0000 [#";
/// How much way machines give to everything else: they run for longest, so not to what can wait as well.
const LITTLE: u8 = 5;
/// The subject that changes the whole machine: left out everywhere else.
const OF_THE_MACHINE: &str = "clock::";
/// The subjects of kernels that only `--all` asks for.
const CORE: [&str; 4] = ["connect::", "families::", "forms::", "kernels::"];
/// The subject of kernels that writ refuses to run on.
const REFUSED: [&str; 1] = ["kernels::"];

/// Runs what was asked for and fails if any claim failed.
pub(crate) fn vm(options: &Options) -> Result<()> {
    if options.prepare {
        let needed = setup::Options { test: true, vm: true, deb: true, rollout: true, ..Default::default() };
        setup::setup(&needed)?;
        let cache = cache()?;
        return versions(options).into_iter().try_for_each(|version| {
            root::image(&cache, &kernel::fetch(&cache, version)?)?;
            Ok(())
        });
    }
    let built = match &options.built {
        Some(list) => read_built(list)?,
        None => {
            setup::setup(&setup::Options { build: true, vm: true, deb: options.package, ..Default::default() })?;
            build::build(&build::Options { release: options.release })?;
            let package = if options.package { Some(package::deb(options.release)?) } else { None };
            Built { executables: test_executables()?, package }
        }
    };
    let tally = everything(options, &built)?;
    println!("\n{}", tally.summary());
    if tally.failed > 0 {
        bail!("a virtual machine's suite failed; its console and journal are below `target/vm/results/`");
    }
    Ok(())
}

/// Gets what tests and machines need, and makes the disks, beside what follows.
pub(crate) fn prepare() -> Result<Beside> {
    Beside::begin("what the tests need", LITTLE, ["vm", "--prepare"])
}

/// Runs the suite and then the package's claims beside what follows, of what is built now: what is built later does not
/// change it.
pub(crate) fn beside(executables: Vec<Executable>, deb: PathBuf, strict: bool) -> Result<Beside> {
    let list = cache()?.join("built.json");
    let text = serde_json::to_vec(&Built { executables, package: Some(deb) }).context("cannot list what was built")?;
    fs::write(&list, text).with_context(|| format!("cannot write `{}`", list.display()))?;
    let arguments = ["vm".as_ref(), "--built".as_ref(), list.as_os_str()];
    Beside::begin("the virtual machines", LITTLE, arguments.into_iter().chain(strict.then_some("--strict".as_ref())))
}

/// What was built, as [`beside`] wrote it down.
fn read_built(list: &Path) -> Result<Built> {
    let text = fs::read(list).with_context(|| format!("cannot read `{}`", list.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is no list of what was built", list.display()))
}

/// What a machine is booted for.
enum Claims<'a> {
    /// The whole-system tests of these subjects.
    Subjects(Vec<&'a str>),
    /// These of them, by name, once more.
    Tests(Vec<&'a str>),
    /// Those of the package: on a host with systemd, through a reboot.
    Package { deb: &'a Path, thorough: bool },
}

/// Runs it on every chosen kernel: all are run, whatever one of them does.
fn everything(options: &Options, built: &Built) -> Result<Tally> {
    let cache = cache()?;
    let mut tally = Tally::default();
    for version in versions(options) {
        let subjects = Some(Claims::Subjects(subjects(options, version))).filter(|_| !options.package);
        // All claims only by hand: what takes minutes on an emulated machine is for the native suite.
        let thorough = options.package && !options.brief;
        let package = built.package.as_deref().map(|deb| Claims::Package { deb, thorough });
        for claims in subjects.into_iter().chain(package) {
            let on_this = one(&cache, version, options, &claims, built).unwrap_or_else(|error| {
                println!("Linux {version}: {error:#}");
                Tally::ONE_FAILURE
            });
            let what = if matches!(claims, Claims::Package { .. }) { ", the package" } else { "" };
            println!("    Linux {version}{what}: {}", on_this.summary());
            tally += on_this;
        }
    }
    Ok(tally)
}

/// Which kernels are asked for.
fn versions(options: &Options) -> Vec<&str> {
    if options.kernel.is_empty() {
        kernel::MATRIX.iter().filter(|entry| options.all || entry.always).map(|entry| entry.version).collect()
    } else {
        options.kernel.iter().map(String::as_str).collect()
    }
}

/// Which subjects this kernel is asked for.
fn subjects<'a>(options: &'a Options, version: &str) -> Vec<&'a str> {
    if !options.filter.is_empty() {
        return options.filter.iter().map(String::as_str).collect();
    }
    let always = kernel::MATRIX.iter().any(|entry| entry.version == version && entry.always);
    match version {
        "5.10" => REFUSED.to_vec(),
        _ if always => SUBJECTS.to_vec(),
        _ => CORE.to_vec(),
    }
}

fn one(cache: &Path, version: &str, options: &Options, claims: &Claims<'_>, built: &Built) -> Result<Tally> {
    let kernel = kernel::fetch(cache, version)?;
    let first = boot_for(cache, &kernel, version, options, claims, built)?;
    let (mut tally, failed) = first.counted();
    if matches!(claims, Claims::Subjects(_)) && !options.strict {
        tally = once_more(tally, &failed, |names| {
            let tests = Claims::Tests(names.iter().map(String::as_str).collect());
            Ok(boot_for(cache, &kernel, version, options, &tests, built)?.counted().0)
        })?;
    }
    report::note(workspace::root(), version, &kernel.release, &first.printed, &tally)?;
    Ok(tally)
}

/// Boots a kernel for claims.
fn boot_for(
    cache: &Path,
    kernel: &kernel::Kernel,
    version: &str,
    options: &Options,
    claims: &Claims<'_>,
    built: &Built,
) -> Result<boot::Outcome> {
    let image = root::image(cache, kernel)?;
    let of_package = matches!(claims, Claims::Package { .. });
    // What is run again leaves the first run's results where they are.
    let suite = match claims {
        Claims::Subjects(_) => "",
        Claims::Tests(_) => "again-",
        Claims::Package { .. } => "package-",
    };
    let results = cache.join("results").join(format!("{suite}{version}"));
    let input = cache.join(format!("input-{suite}{version}"));
    match claims {
        Claims::Subjects(subjects) => collect(&input, subjects, "", &built.executables)?,
        Claims::Tests(tests) => collect(&input, tests, "--exact", &built.executables)?,
        Claims::Package { deb, thorough } => install::collect(&input, deb, &built.executables, *thorough)?,
    }
    say(&format!("booting Linux {}", kernel.release));
    let job = boot::Job {
        kernel,
        image: &image,
        input: &input,
        results: &results,
        timeout: Duration::from_secs(options.timeout),
        cpus: options.cpus,
        // One of the machines that get the package goes without: writ must work there, and say what is missing.
        bpf_lsm: !of_package || version != kernel::WITHOUT_BPF_LSM,
        reboots: of_package,
    };
    let outcome = match boot::boot(&job) {
        Err(error) if error.to_string().contains(STALE_BREAKPOINT) => {
            say("the emulator ran a breakpoint that the kernel had taken out again: once more");
            boot::boot(&job)?
        }
        outcome => outcome?,
    };
    remove(&input)?;
    Ok(outcome)
}

/// Puts what the guest runs into one directory: `writ`, the test binaries and their prober, and the script.
fn collect(input: &Path, subjects: &[&str], how: &str, built: &[Executable]) -> Result<()> {
    remove(input)?;
    fs::create_dir_all(input).with_context(|| format!("cannot create `{}`", input.display()))?;
    let mut script = String::from(
        "# What the whole-system tests need to know, then the tests. All are run, whatever one of them does.\n\
         export WRIT_BIN=$PWD/writ WRIT_PROBE=$PWD/writ-probe WRIT_TEST_CGROUP=root RUST_BACKTRACE=1\n\
         uname -r; cat /sys/kernel/security/lsm; echo; result=0\n",
    );
    stripped(&workspace::writ(false), &input.join("writ"))?;
    // The guest asks for it only where the whole suite is wanted.
    if workspace::cedar().is_file() {
        stripped(&workspace::cedar(), &input.join("cedar"))?;
        script.push_str("export CEDAR=$PWD/cedar\n");
    }
    let mut tests = 0;
    for executable in built {
        stripped(&executable.path, &input.join(&executable.name))?;
        if executable.test {
            tests += 1;
            let (own, others): (Vec<&str>, Vec<&str>) =
                subjects.iter().copied().partition(|filter| filter.starts_with(OF_THE_MACHINE));
            let filters: String = others.iter().map(|filter| format!(" '{}'", filter.replace('\'', ""))).collect();
            if !others.is_empty() {
                script.push_str(&format!("./{} --test-threads=1 {how}{filters} || result=$?\n", executable.name));
            }
            if !own.is_empty() {
                let own = own.join(" ");
                script
                    .push_str(&format!("./{} --test-threads=1 --ignored {how} {own} || result=$?\n", executable.name));
            }
        }
    }
    if tests == 0 {
        bail!("the tests crate built no test binary");
    }
    script.push_str("exit $result\n");
    fs::write(input.join("run.sh"), script).context("cannot write the guest's script")
}

/// Debug information is most of a debug binary, and the guest's disk is slow.
fn stripped(from: &Path, to: &Path) -> Result<()> {
    run(command("strip").arg("--strip-debug").arg("-o").args([to, from]))
}

/// Puts the prober somewhere.
pub(crate) fn prober(to: &Path) -> Result<()> {
    prober_of(&test_executables()?, to)
}

fn prober_of(executables: &[Executable], to: &Path) -> Result<()> {
    let probe = executables.iter().find(|executable| executable.name == "writ-probe");
    stripped(&probe.context("the tests crate built no prober")?.path, to)
}

/// The root directory of a Debian guest, for hosts that are not booted.
pub(crate) fn guest_root() -> Result<PathBuf> {
    root::root(&cache()?)
}

fn cache() -> Result<PathBuf> {
    let cache = workspace::target().join("vm");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create `{}`", cache.display()))?;
    Ok(cache)
}

/// What the machines get, as it was built.
#[derive(Serialize, Deserialize)]
struct Built {
    executables: Vec<Executable>,
    /// The .deb, if its claims are to be tried.
    package: Option<PathBuf>,
}

/// An executable of the tests crate.
#[derive(Serialize, Deserialize)]
pub(crate) struct Executable {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    test: bool,
}

/// Builds the tests crate, and says what it made: its integration tests and its binaries.
pub(crate) fn test_executables() -> Result<Vec<Executable>> {
    let mut cargo = cargo_with_object();
    cargo.args(["test", "--test", "cases", "--no-run", "--quiet", "--message-format=json"]);
    let mut executables = Vec::new();
    for line in read(&mut cargo)?.lines() {
        let message: Value = serde_json::from_str(line).context("cannot read cargo's messages")?;
        let Some(path) = message.get("executable").and_then(Value::as_str) else { continue };
        let target = message.get("target");
        let kind = target.and_then(|target| target.pointer("/kind/0")).and_then(Value::as_str).unwrap_or_default();
        let name = target.and_then(|target| target.get("name")).and_then(Value::as_str).unwrap_or_default();
        let harness = message.pointer("/profile/test").and_then(Value::as_bool).unwrap_or_default();
        // The unit tests of the harness have run on the host; a binary's own test build is not the binary.
        if (kind == "test" && harness) || (kind == "bin" && !harness) {
            executables.push(Executable { name: name.to_owned(), path: path.into(), test: harness });
        }
    }
    Ok(executables)
}
