//! What a package must pass before it is called made: its C library, its licences, lintian, and an rpm that was installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, command, exists, read, run, say};

/// The oldest C library that the binary may need: that of Enterprise Linux 9. Debian 12 has 2.36.
const GLIBC_FLOOR: (u32, u32) = (2, 34);

/// The binary runs with the oldest C library that is promised; a package for the tests only has to run here.
pub(super) fn c_library(binary: &Path, for_tests: bool) -> Result<()> {
    let floor = glibc_needed(binary)?;
    println!("    needs glibc {}.{}, promised is {}.{}", floor.0, floor.1, GLIBC_FLOOR.0, GLIBC_FLOOR.1);
    if floor > GLIBC_FLOOR && !for_tests {
        bail!("the binary needs glibc {}.{}: it would not start on Enterprise Linux 9", floor.0, floor.1);
    }
    Ok(())
}

/// Nothing is linked whose licence, origin or version `deny.toml` does not allow.
pub(super) fn licences() -> Result<()> {
    say("cargo deny");
    run(process::cargo().args(["deny", "--workspace", "--locked", "check", "licenses", "bans", "sources"]))
}

/// Lintian, with the overrides that the package carries and gives reasons for.
pub(super) fn lintian(deb: &Path) -> Result<()> {
    if !exists("lintian") {
        println!("    lintian is not installed: the package was not checked by it");
        return Ok(());
    }
    say("lintian");
    run(command("lintian").args(["--fail-on", "error,warning", "--allow-root"]).arg(deb))
}

/// The rpm, installed into an empty root: every staged file is there as staged, nothing else is, and rpm itself agrees.
pub(super) fn rpm(rpm: &Path, staged: &Path, root: &Path) -> Result<()> {
    if !exists("rpm") {
        println!("    rpm is not installed: the .rpm was not installed anywhere");
        return Ok(());
    }
    say("rpm --root");
    let database = || {
        let mut rpm = command("rpm");
        rpm.arg("--root").arg(root);
        rpm
    };
    fs::create_dir_all(root).with_context(|| format!("cannot create `{}`", root.display()))?;
    run(database().arg("--initdb"))?;
    // Neither the packages that it depends on nor a shell for its scripts are there.
    run(database().args(["--install", "--nodeps", "--noscripts", "--notriggers"]).arg(rpm))?;
    let listed = read(database().args(["--query", "--list", "writ"]))?;
    let mut installed: Vec<&str> = listed.lines().collect();
    installed.sort_unstable();
    let mut expected = Vec::new();
    files(staged, Path::new("/"), &mut expected)?;
    expected.sort_unstable();
    if installed != expected {
        bail!("the rpm holds {installed:?}, and staged is {expected:?}");
    }
    for file in &expected {
        let at = |root: &Path| root.join(file.trim_start_matches('/'));
        let contents = |root: &Path| -> Result<(Vec<u8>, u32)> {
            let path = at(root);
            let read = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok((read, fs::metadata(&path)?.permissions().mode()))
        };
        if contents(root)? != contents(staged)? {
            bail!("the rpm installs another `{file}` than was staged");
        }
    }
    let configuration = read(database().args(["--query", "--configfiles", "writ"]))?;
    if configuration.trim() != "/etc/writ/writ.toml" {
        bail!("the rpm's configuration files are `{}`", configuration.trim());
    }
    let scripts = read(database().args(["--query", "--scripts", "writ"]))?;
    for wanted in ["postinstall", "preuninstall", "postuninstall", "writ uninstall", "WRIT_KEEP_ENFORCEMENT"] {
        if !scripts.contains(wanted) {
            bail!("the rpm's scripts say nothing of `{wanted}`");
        }
    }
    run(database().args(["--verify", "--nodeps", "writ"]))?;
    println!("    {} files as staged", expected.len());
    Ok(())
}

/// The files below a directory, as they are called once installed.
fn files(directory: &Path, name: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))? {
        let entry = entry.with_context(|| format!("cannot read `{}`", directory.display()))?;
        let name = name.join(entry.file_name());
        if entry.path().is_dir() {
            files(&entry.path(), &name, found)?;
        } else {
            found.push(name.display().to_string());
        }
    }
    Ok(())
}

/// The newest version of the C library that a binary asks for.
fn glibc_needed(binary: &Path) -> Result<(u32, u32)> {
    let needed = read(command("objdump").arg("--dynamic-syms").arg(binary))?;
    newest_glibc(&needed).with_context(|| format!("`{}` names no version of the C library", binary.display()))
}

fn newest_glibc(versions: &str) -> Option<(u32, u32)> {
    let version = |word: &str| {
        let mut numbers = word.strip_prefix("GLIBC_")?.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    versions.split(|character: char| character.is_whitespace() || "()".contains(character)).filter_map(version).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_is_found_by_number() {
        let text = "0000  DF *UND*  0000 (GLIBC_2.9) getpid\n0000  DF *UND* 0000 (GLIBC_2.34) pthread_join\n\
            0000 DF *UND* 0000 GLIBC_2.2.5 free\n";
        assert_eq!(newest_glibc(text), Some((2, 34)));
        assert_eq!(newest_glibc("nothing"), None);
    }
}
