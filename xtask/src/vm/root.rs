//! The guest's file system: Debian 12 with systemd and the programs the tests run, made once and kept until the recipe
//! changes.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use super::mirror::Mirror;
use crate::process::{command, run, say};

const SUITE: &str = "bookworm";
const PACKAGES: &[&str] = &[
    // The system itself.
    "systemd",
    "systemd-sysv",
    "dbus",
    "kmod",
    "procps",
    "passwd",
    "util-linux",
    // What plays the service accounts and their peers.
    "curl",
    "iproute2",
    "python3",
    "redis-server",
    // What a host that is managed by Ansible has.
    "openssh-server",
    "python3-apt",
];
/// Units that would wait, compete or write while the tests run.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "redis-server.service",
    "serial-getty@ttyS0.service",
    "ssh.service",
    "ssh.socket",
    "systemd-pstore.service",
    "systemd-rfkill.socket",
];
const GUEST: &str = include_str!("guest.sh");
const SERVICE: &str = include_str!("guest.service");
/// Sparse: only what is used takes space.
const IMAGE_BYTES: u64 = 3 << 30;

/// Names everything that goes into the root, so that a changed recipe makes a new one.
fn recipe() -> String {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, MASKED, GUEST, SERVICE, IMAGE_BYTES).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The image of a kernel's machine, made if there is none of this recipe and kernel package.
pub(crate) fn image(cache: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let image = cache.join(format!("image-{}-{}.ext4", kernel.release, recipe()));
    if image.is_file() {
        return Ok(image);
    }
    let root = root(cache)?;
    stale(cache, &format!("image-{}-", kernel.release))?;
    say(&format!("making the disk image for Linux {}", kernel.release));
    let work = cache.join(format!("work-{}", kernel.release));
    remove(&work)?;
    // Hard links: nothing below changes a file of the root, it only adds the modules.
    run(command("cp").arg("-al").args([&root, &work]))?;
    let modules = work.join("usr/lib/modules");
    fs::create_dir_all(&modules).with_context(|| format!("cannot create `{}`", modules.display()))?;
    run(command("cp").arg("-a").arg(&kernel.modules).arg(&modules))?;
    run(command("chroot").arg(&work).args(["depmod", &kernel.release]))?;
    // Under another name until it is whole: an interrupted run must not leave half an image behind.
    let unfinished = cache.join("image.unfinished");
    remove(&unfinished)?;
    let file = fs::File::create(&unfinished).with_context(|| format!("cannot create `{}`", unfinished.display()))?;
    file.set_len(IMAGE_BYTES).context("cannot size the disk image")?;
    run(command("mke2fs")
        .args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d"])
        .args([&work, &unfinished]))?;
    fs::rename(&unfinished, &image).with_context(|| format!("cannot name the image `{}`", image.display()))?;
    remove(&work)?;
    Ok(image)
}

/// The root directory of this recipe, made if there is none.
pub(crate) fn root(cache: &Path) -> Result<PathBuf> {
    let root = cache.join(format!("root-{}", recipe()));
    if root.is_dir() {
        return Ok(root);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("making the guest's file system needs root (debootstrap)");
    }
    stale(cache, "root-")?;
    say("making the guest's Debian root (one to two minutes, once)");
    let unfinished = cache.join("root.unfinished");
    remove(&unfinished)?;
    let downloads = cache.join("debs");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create `{}`", downloads.display()))?;
    let mirror = Mirror::configured()?;
    let mut debootstrap = command("debootstrap");
    debootstrap.arg("--variant=minbase").arg(format!("--cache-dir={}", downloads.display()));
    debootstrap.arg(format!("--include={}", PACKAGES.join(","))).arg(SUITE).arg(&unfinished).arg(&mirror.archive);
    run(debootstrap.stdout(std::process::Stdio::null()))?;
    unmounted(&unfinished)?;
    configure(&unfinished).context("cannot configure the guest's root")?;
    fs::rename(&unfinished, &root).with_context(|| format!("cannot name the root `{}`", root.display()))?;
    Ok(root)
}

/// Takes away what debootstrap mounted below the root and, on some hosts, leaves there.
fn unmounted(root: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read what is mounted")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(root));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        run(command("umount").arg(point))?;
    }
    Ok(())
}

/// Removes what an earlier recipe made.
fn stale(cache: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read `{}`", cache.display()))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn configure(root: &Path) -> Result<()> {
    for downloaded in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        remove(&root.join(downloaded))?;
    }
    fs::write(root.join("etc/hostname"), "writ-vm\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost writ-vm\n::1 localhost\n")?;
    fs::write(root.join("etc/fstab"), "")?;
    // Empty means a fresh id at each boot. `uninitialized` would also mean a first boot, which enables every unit.
    fs::write(root.join("etc/machine-id"), "")?;
    let program = root.join("usr/local/sbin/writ-vm");
    fs::write(&program, GUEST)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("writ-vm.service"), SERVICE)?;
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    symlink("../writ-vm.service", units.join("multi-user.target.wants/writ-vm.service"))?;
    let default = units.join("default.target");
    remove(&default)?;
    symlink("/lib/systemd/system/multi-user.target", default)?;
    for unit in MASKED {
        let unit = units.join(unit);
        remove(&unit)?;
        symlink("/dev/null", unit)?;
    }
    Ok(())
}

/// Removes a file, link or directory; that it is not there is as good.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove `{}`", path.display()))
}
