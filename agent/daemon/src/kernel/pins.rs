//! Where enforcement outlives the daemon: pinned maps and links on a bpf file system, by ABI version.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use writ_abi::ABI_VERSION;

use super::btf::BtfError;
use super::syscall;

/// Why the kernel side could not be opened. Enforcement that is already pinned stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// A system call or file failed.
    #[error("{what}: {error}")]
    Io {
        /// What was being attempted.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The kernel's type information is missing or unusable.
    #[error("cannot find out where this kernel keeps its fields: {0}")]
    Btf(#[from] BtfError),
    /// A newer writ pinned these maps.
    #[error(
        "the pins at `{path}` have ABI {found}, this writ has ABI {ABI_VERSION}: a newer writ made them, and they stay in force; \
         install that version again, or run its `writ uninstall`"
    )]
    NewerAbi {
        /// The pin directory.
        path: String,
        /// The ABI found.
        found: u32,
    },
    /// Something is pinned that writ did not make.
    #[error("the pin `{path}` is not what writ pins there ({why}); remove it, or set another `paths.pins`")]
    Foreign {
        /// The pin.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another daemon decides there.
    #[error("another writ holds the pins at `{path}`; stop it first, or give this one another `paths.pins`")]
    Held {
        /// The pin directory.
        path: String,
    },
    /// The pinned hooks are attached elsewhere.
    #[error(
        "the pinned hooks judge cgroup {found}, the configuration names cgroup {wanted}; run `writ uninstall` first"
    )]
    OtherCgroup {
        /// Id of the cgroup the links are attached to.
        found: u64,
        /// Id of the configured cgroup.
        wanted: u64,
    },
    /// The configuration requires the BPF LSM.
    #[error("`[kernel] require` asks for `lsm`, which this kernel does not give: {0}")]
    NoLsm(String),
    /// The kernel is too old to number attempts.
    #[error(
        "this kernel has no fetching atomics in BPF (Linux 5.12), by which attempts are numbered so that none can be lost \
         uncounted; writ needs 5.12 or later"
    )]
    NoAtomics,
    /// The object is not built in.
    #[error("this binary was built without its BPF object; build it with `cargo xtask build`")]
    NoObject,
    /// aya's own error.
    #[error("{what}: {error}")]
    Load {
        /// What was being attempted.
        what: String,
        /// Why it failed, the verifier's last lines included.
        error: String,
    },
}

impl OpenError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    pub(super) fn load(what: impl Into<String>) -> impl FnOnce(aya::EbpfError) -> Self {
        let what = what.into();
        move |error| Self::Load { what, error: chain(&error) }
    }
}

/// An error with its causes; of a verifier log only the last lines, which say why.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    match lines.len().checked_sub(24) {
        Some(skip) if skip > 0 => format!(
            "{}\n… {skip} lines left out …\n{}",
            lines.first().unwrap_or(&""),
            lines.get(skip..).unwrap_or(&[]).join("\n")
        ),
        _ => text,
    }
}

/// The pin directory of one installation.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    /// Held as long as this process may write there: of two daemons, each would undo what the other decides.
    _lock: Flock<fs::File>,
}

impl Pins {
    /// Opens, and makes where needed, the pin directory: mounts a bpf file system at `/sys/fs/bpf` if there is none.
    pub(super) fn open(root: &Path) -> Result<Self, OpenError> {
        let default = Path::new("/sys/fs/bpf");
        let on_bpffs = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if root.starts_with(default) && !on_bpffs(default) {
            mount(
                Some("bpf"),
                default,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=700"),
            )
            .map_err(|error| OpenError::Io {
                what: "mounting a bpf file system at /sys/fs/bpf".into(),
                error: error.into(),
            })?;
        }
        make(root)?;
        if !on_bpffs(root) {
            return Err(OpenError::Foreign {
                path: root.display().to_string(),
                why: "not on a bpf file system".into(),
            });
        }
        let directory = fs::File::open(root).map_err(OpenError::io(format!("opening `{}`", root.display())))?;
        let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(OpenError::Held { path: root.display().to_string() }),
            Err((_, error)) => return Err(OpenError::io(format!("locking `{}`", root.display()))(error.into())),
        };
        let pins = Self { root: root.to_owned(), _lock: lock };
        // Before anything is made in it: a newer writ's directory stays as it is.
        if let Some(found) = pins.versions()?.into_iter().find(|version| *version > ABI_VERSION) {
            return Err(OpenError::NewerAbi { path: root.display().to_string(), found });
        }
        for directory in [pins.current(), pins.maps(), pins.links()] {
            make(&directory)?;
        }
        Ok(pins)
    }

    fn current(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// Directory of this ABI's maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.current().join("maps")
    }

    /// Directory of this ABI's links.
    pub(super) fn links(&self) -> PathBuf {
        self.current().join("links")
    }

    fn versions(&self) -> Result<Vec<u32>, OpenError> {
        let entries = fs::read_dir(&self.root).map_err(OpenError::io(format!("reading `{}`", self.root.display())))?;
        Ok(entries.flatten().filter_map(|entry| version_of(entry.file_name().to_str()?)).collect())
    }

    /// What older versions of writ pinned, and what is still in force because of it.
    pub(super) fn older(&self) -> Result<Vec<PathBuf>, OpenError> {
        let versions = self.versions()?.into_iter().filter(|version| *version < ABI_VERSION);
        Ok(versions.map(|version| self.root.join(format!("v{version}"))).collect())
    }

    /// Removes what older versions pinned. Until this version's own policy is in force they are what enforces.
    pub(super) fn retire_older(&self) -> Result<(), OpenError> {
        for version in self.older()? {
            remove_version(&version).map_err(OpenError::io(format!("removing `{}`", version.display())))?;
        }
        Ok(())
    }

    /// Whether anything is attached.
    pub(super) fn has_links(&self) -> Result<bool, OpenError> {
        let links = self.links();
        let mut entries = fs::read_dir(&links).map_err(OpenError::io(format!("reading `{}`", links.display())))?;
        Ok(entries.next().is_some())
    }

    /// What is attached, by the names of the pins.
    pub(super) fn link_names(&self) -> Result<Vec<String>, OpenError> {
        let links = self.links();
        let entries = fs::read_dir(&links).map_err(OpenError::io(format!("reading `{}`", links.display())))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes every map of this ABI.
    pub(super) fn clear_maps(&self) -> Result<(), OpenError> {
        let maps = self.maps();
        let cannot = || OpenError::io(format!("emptying `{}`", maps.display()));
        for pin in fs::read_dir(&maps).map_err(cannot())?.flatten() {
            fs::remove_file(pin.path()).map_err(cannot())?;
        }
        Ok(())
    }

    /// Checks that a pinned map, if there is one, is what this ABI says.
    pub(super) fn check_map(&self, name: &str, expected: MapType, key: u32, value: u32) -> Result<bool, OpenError> {
        let path = self.maps().join(name);
        if !path.exists() {
            return Ok(false);
        }
        let foreign = |why: String| OpenError::Foreign { path: path.display().to_string(), why };
        let info = MapInfo::from_pin(&path).map_err(|error| foreign(format!("not a map: {error}")))?;
        let kind = info.map_type().map_err(|error| foreign(error.to_string()))?;
        if kind != expected || info.key_size() != key || info.value_size() != value {
            return Err(foreign(format!(
                "{kind:?} with {} byte keys and {} byte values, expected {expected:?} with {key} and {value}",
                info.key_size(),
                info.value_size()
            )));
        }
        Ok(true)
    }
}

/// Makes a directory, unless it is there.
fn make(directory: &Path) -> Result<(), OpenError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(OpenError::io(format!("making the pin directory `{}`", directory.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Removes everything pinned below `root`, links first, so that no program runs on half its maps. Returns how many pins
/// were removed; 0 means nothing was in force. Nothing that a cgroup hook sees is judged when this returns; the kernel takes
/// the second line's programs away a moment later.
///
/// # Errors
/// The first pin that could not be removed.
pub(crate) fn uninstall(root: &Path) -> io::Result<usize> {
    let mut removed = 0;
    let versions = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for entry in versions.flatten() {
        // Whatever else is there is somebody else's.
        if entry.file_name().to_str().is_some_and(|name| version_of(name).is_some()) {
            for pin in fs::read_dir(entry.path().join("links")).into_iter().flatten().flatten() {
                // Another kind of link, or an older kernel: gone with its pin.
                let _ = syscall::open_pin(&pin.path()).and_then(|link| syscall::detach_link(link.as_fd()));
            }
            removed += remove_version(&entry.path())?;
        }
    }
    match fs::remove_dir(root) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EBUSY)) => Ok(removed),
        outcome => outcome.map(|()| removed),
    }
}

/// The ABI whose pins a directory of this name holds.
fn version_of(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

/// Removes the pins of one version, links first.
fn remove_version(version: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for directory in [version.join("links"), version.join("maps")] {
        let Ok(pins) = fs::read_dir(&directory) else { continue };
        for pin in pins.flatten() {
            fs::remove_file(pin.path())?;
            removed += 1;
        }
        fs::remove_dir(&directory)?;
    }
    fs::remove_dir(version)?;
    Ok(removed)
}
