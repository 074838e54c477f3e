//! `cargo xtask package`: a .deb and a .rpm of the same staged files, checked, with their checksums.

mod checks;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::process::{self, command, output, read, run, say};
use crate::setup;
use crate::workspace;

/// Where a file of the repository goes in the package.
const FILES: &[(&str, &str)] = &[
    ("systemd/writ.service", "usr/lib/systemd/system/writ.service"),
    ("systemd/writ-self-test.service", "usr/lib/systemd/system/writ-self-test.service"),
    ("systemd/sysusers.d/writ.conf", "usr/lib/sysusers.d/writ.conf"),
    ("systemd/tmpfiles.d/writ.conf", "usr/lib/tmpfiles.d/writ.conf"),
    ("fleet/package/writ.toml", "etc/writ/writ.toml"),
    ("fleet/package/lintian-overrides", "usr/share/lintian/overrides/writ"),
    ("fleet/prometheus/writ.rules.yml", "usr/share/doc/writ/examples/prometheus/writ.rules.yml"),
    ("docs/record.schema.json", "usr/share/doc/writ/record.schema.json"),
];
const EXAMPLES: &str = "fleet/package/examples";
/// A shell, and where it looks for the completions of a command.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/writ"),
    ("fish", "usr/share/fish/vendor_completions.d/writ.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_writ"),
];

/// What to package.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// The debug build, and the .deb alone: for tests
    #[arg(long)]
    pub(crate) debug: bool,
}

/// Builds, stages, packs twice, checks.
pub(crate) fn package(options: &Options) -> Result<()> {
    setup::setup(&setup::Options { build: true, package: !options.debug, ..Default::default() })?;
    build::build(&build::Options { release: !options.debug })?;
    let made = pack(options)?;
    let directory = directory();
    checks::lintian(made.first().context("no .deb was made")?)?;
    if let Some(rpm) = made.get(1) {
        checks::rpm(rpm, &directory.join("root"), &directory.join("rpm"))?;
        remove(&directory.join("rpm"))?;
        checks::licences()?;
    }
    let mut sums = command("sha256sum");
    sums.current_dir(&directory).args(made.iter().filter_map(|file| file.file_name()));
    let sums = read(&mut sums)?;
    print!("{sums}");
    fs::write(directory.join("SHA256SUMS"), sums).context("cannot write SHA256SUMS")
}

/// Packs what has been built. The .deb is the first of the files given back.
fn pack(options: &Options) -> Result<Vec<PathBuf>> {
    let binary = workspace::writ(!options.debug);
    checks::c_library(&binary, options.debug)?;
    say("staging");
    let directory = directory();
    remove(&directory)?;
    stage(&binary, &directory.join("root"))?;
    let first = all(&directory.join("first"), options)?;
    let second = all(&directory.join("second"), options)?;
    let mut made = Vec::new();
    for (one, other) in first.iter().zip(&second) {
        let same = fs::read(one).ok() == fs::read(other).ok();
        if !same {
            bail!("packed twice, `{}` differs: something in it depends on when it was packed", one.display());
        }
        let kept = directory.join(one.file_name().unwrap_or_default());
        fs::rename(one, &kept).with_context(|| format!("cannot name `{}`", kept.display()))?;
        println!("    made {}", kept.display());
        made.push(kept);
    }
    remove(&directory.join("first"))?;
    remove(&directory.join("second"))?;
    Ok(made)
}

/// The .deb of what has been built.
pub(crate) fn deb(release: bool) -> Result<PathBuf> {
    pack(&Options { debug: !release })?.into_iter().next().context("no .deb was made")
}

fn directory() -> PathBuf {
    workspace::target().join("package")
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Both packages.
fn all(into: &Path, options: &Options) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(into).with_context(|| format!("cannot create `{}`", into.display()))?;
    let mut deb = cargo()?;
    deb.args(["deb", "--package", "writ", "--no-build", "--no-strip", "--quiet", "--output"]).arg(into);
    run(&mut deb)?;
    let mut made = vec![only(into, "deb")?];
    if !options.debug {
        let mut rpm = cargo()?;
        rpm.args(["generate-rpm", "--package", "agent/daemon", "--output"]).arg(into);
        run(&mut rpm)?;
        made.push(only(into, "rpm")?);
    }
    Ok(made)
}

/// Cargo with the time of the last commit instead of now.
fn cargo() -> Result<Command> {
    let mut cargo = process::cargo();
    if std::env::var_os("SOURCE_DATE_EPOCH").is_none() {
        let time = read(command("git").args(["log", "-1", "--format=%ct"]))?;
        cargo.env("SOURCE_DATE_EPOCH", time.trim());
    }
    Ok(cargo)
}

/// The one file with this extension.
fn only(directory: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|file| file.extension().is_some_and(|found| found == OsStr::new(extension)))
        .with_context(|| format!("no .{extension} was made"))
}

/// Puts every file where the packages take it from.
fn stage(binary: &Path, root: &Path) -> Result<()> {
    let installed = root.join("usr/bin/writ");
    make_parent(&installed)?;
    run(command("strip").args(["--strip-unneeded", "-R", ".comment", "-o"]).args([&installed, binary]))?;
    fs::set_permissions(&installed, fs::Permissions::from_mode(0o755)).context("cannot make it executable")?;
    for (from, to) in FILES {
        copy(&workspace::root().join(from), &root.join(to))?;
    }
    copy_tree(&workspace::root().join(EXAMPLES), &root.join("usr/share/doc/writ/examples"))?;
    // What the package shows as an example must be accepted by the binary it comes with.
    for configuration in [workspace::root().join(EXAMPLES), root.join("etc/writ")] {
        run(command(&installed).arg("--config-dir").arg(configuration).arg("check"))?;
    }
    man_pages(&installed, &root.join("usr/share/man/man1"))?;
    completions(&installed, root)
}

/// The man pages, as the binary describes itself.
fn man_pages(writ: &Path, directory: &Path) -> Result<()> {
    if !knows(writ, "man")? {
        println!("    this `writ` has no `man` command: the packages have no man pages");
        return Ok(());
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    run(command(writ).arg("man").arg(directory))
}

/// The shells' completions.
fn completions(writ: &Path, root: &Path) -> Result<()> {
    if !knows(writ, "completions")? {
        println!("    this `writ` has no `completions` command: the packages have no shell completions");
        return Ok(());
    }
    for (shell, to) in COMPLETIONS {
        let to = root.join(to);
        make_parent(&to)?;
        fs::write(&to, read(command(writ).args(["completions", shell]))?)
            .with_context(|| format!("cannot write `{}`", to.display()))?;
    }
    Ok(())
}

/// Whether the binary has a command, hidden or not.
fn knows(writ: &Path, name: &str) -> Result<bool> {
    Ok(output(command(writ).args([name, "--help"]))?.status.success())
}

fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(file);
    fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot open `{}`", to.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read `{}`", from.display()))?;
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            copy(&entry.path(), &to)?;
        }
    }
    Ok(())
}
