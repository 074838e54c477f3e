//! The kernels to test on: Debian's own cloud builds, downloaded but never installed on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::mirror::PrivateApt;
use super::root::remove;
use crate::process::{command, read, run, say};

/// One kernel of the matrix.
pub(crate) struct Entry {
    /// Major and minor number.
    pub(crate) version: &'static str,
    /// The Debian suites that carry it.
    suites: &'static [&'static str],
    /// Whether every run asks for it, or only `--all`.
    pub(crate) always: bool,
}

/// Every kernel that is tried: those of the supported Debian release, the oldest that Debian still offers, the newest.
pub(crate) const MATRIX: [Entry; 4] = [
    Entry { version: "5.10", suites: &["bullseye-security"], always: false },
    Entry { version: "6.1", suites: &["bookworm", "bookworm-security"], always: true },
    Entry { version: "6.12", suites: &["bookworm-security"], always: true },
    Entry { version: "7.3", suites: &["trixie-backports"], always: false },
];

/// The kernel that the package is tried on without the BPF LSM, as Debian 11 and many hosts are configured.
pub(crate) const WITHOUT_BPF_LSM: &str = "6.1";

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// As in `uname -r`.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

/// Gets a kernel of the matrix, unless it is there already.
pub(crate) fn fetch(cache: &Path, version: &str) -> Result<Kernel> {
    let Some(Entry { suites, .. }) = MATRIX.iter().find(|entry| entry.version == version) else {
        let known: Vec<&str> = MATRIX.iter().map(|entry| entry.version).collect();
        bail!("there is no kernel `{version}` in the matrix; there are {}", known.join(", "));
    };
    let directory = cache.join("kernels").join(version);
    if !directory.is_dir() {
        say(&format!("fetching Linux {version}"));
        let unfinished = cache.join("kernels").join(format!("{version}.unfinished"));
        remove(&unfinished)?;
        fs::create_dir_all(&unfinished).with_context(|| format!("cannot create `{}`", unfinished.display()))?;
        let apt = PrivateApt::open(cache.join("apt").join(version), suites)?;
        let package = newest(&read(apt.call("apt-cache").args(["pkgnames", &format!("linux-image-{version}.")]))?)
            .with_context(|| format!("no suite of {} carries a Linux {version} cloud image", suites.join(", ")))?;
        // From 7.2 on the image package is empty, and names the ones that hold the kernel and its modules.
        let rest = package.trim_start_matches("linux-image-");
        let apart = read(apt.call("apt-cache").args(["pkgnames", &format!("linux-binary-{rest}")]))?;
        let packages = if apart.lines().any(|name| name.trim() == format!("linux-binary-{rest}")) {
            vec![format!("linux-binary-{rest}"), format!("linux-modules-{rest}")]
        } else {
            vec![package]
        };
        for package in packages {
            run(apt.call("apt-get").args(["download", "-qq", &package]).current_dir(&unfinished))?;
            let archive = entry(&unfinished, |name| name.ends_with(".deb"))?;
            run(command("dpkg-deb").arg("-x").args([&archive, &unfinished]))?;
            remove(&archive)?;
        }
        fs::rename(&unfinished, &directory).with_context(|| format!("cannot name `{}`", directory.display()))?;
    }
    let modules = ["usr/lib/modules", "lib/modules"].into_iter().map(|at| directory.join(at)).find(|at| at.is_dir());
    let modules = entry(&modules.context("the kernel package holds no modules")?, |_| true)?;
    let image = match entry(&directory.join("boot"), |name| name.starts_with("vmlinuz-")) {
        Ok(image) => image,
        Err(_) => entry(&modules, |name| name == "vmlinuz")?,
    };
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { release, image, modules })
}

/// The newest cloud image among package names. Not all builds are signed, and nothing here checks the signature.
fn newest(names: &str) -> Option<String> {
    let cloud = |name: &&str| name.ends_with("-cloud-amd64") || name.ends_with("-cloud-amd64-unsigned");
    names.lines().map(str::trim).filter(cloud).max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a name, in order: `6.1.0-56` sorts after `6.1.0-9`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The one entry of a directory whose name fits.
fn entry(directory: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read `{}`", directory.display()))?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match names.find(|name| fits(name)) {
        Some(name) => Ok(directory.join(name)),
        None => bail!("`{}` does not hold what was expected", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_cloud_image_is_chosen_by_number() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64-unsigned\n\
            linux-image-6.1.0-56-cloud-amd64-dbg\nlinux-image-6.1.0-57-amd64\nlinux-image-6.1.0-50-cloud-amd64\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64-unsigned"));
        assert_eq!(newest("linux-image-6.1.0-57-amd64\n"), None);
    }
}
