//! bpf(2) as benchmarks and tests of full maps need it, and how much of the kernel's memory the maps below a pin directory take.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const OBJ_GET: i64 = 7;
const MAP_GET_FD_BY_ID: i64 = 14;
const LINK_DETACH: i64 = 34;
const ARRAY_OF_MAPS: u64 = 12;
const RINGBUF: u64 = 27;

/// One command; the result is a descriptor of the caller's own.
///
/// # Errors
/// The kernel's errno.
pub fn bpf(command: i64, attribute: &[u64; 16], size: usize) -> io::Result<OwnedFd> {
    let fd = call(command, attribute, size)?;
    // SAFETY: a non-negative result of these commands is a descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: i64, attribute: &[u64; 16], size: usize) -> io::Result<i32> {
    // SAFETY: the attribute and all it points to outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size) };
    let result = i32::try_from(result).map_err(io::Error::other)?;
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = [0; 16];
    attribute[0] = path.as_ptr() as u64;
    bpf(OBJ_GET, &attribute, 16)
}

/// Takes enforcement away as `writ uninstall` does, whatever state writ is in: links that are only unpinned judge until the kernel
/// gets round to them, and with them the next test.
///
/// # Errors
/// A pin could not be removed.
pub(crate) fn take_away(pins: &Path) -> io::Result<()> {
    for version in fs::read_dir(pins)?.flatten() {
        for link in fs::read_dir(version.path().join("links")).into_iter().flatten().flatten() {
            let Ok(link) = pinned(&link.path()) else { continue };
            let mut attribute = [0; 16];
            attribute[0] = link.as_raw_fd().unsigned_abs().into();
            // A kind of link that cannot be detached goes with its pin.
            let _ = call(LINK_DETACH, &attribute, 4);
        }
    }
    fs::remove_dir_all(pins)
}

/// A map of a running writ, which a test puts into the state that an attacker would like it to be in.
#[derive(Debug)]
pub struct Table(OwnedFd);

impl Table {
    /// Opens the map with this name below a pin directory, of whatever version is in force.
    ///
    /// # Errors
    /// Nothing is pinned there.
    pub fn pinned(pins: &Path, name: &str) -> io::Result<Self> {
        let versions = fs::read_dir(pins)?.flatten().map(|version| version.path().join("maps").join(name));
        let path = versions.into_iter().find(|path| path.exists()).ok_or(io::ErrorKind::NotFound)?;
        pinned(&path).map(Self)
    }

    /// The map that an array of maps has at this index.
    ///
    /// # Errors
    /// There is none.
    pub fn inner(&self, index: u32) -> io::Result<Self> {
        let mut attribute = [0; 16];
        attribute[0] = self.number(index)? as u32 as u64;
        bpf(MAP_GET_FD_BY_ID, &attribute, 12).map(Self)
    }

    /// The number at a key; the first eight bytes of the value, all of it if it is shorter.
    ///
    /// # Errors
    /// It is not there.
    pub fn number<K>(&self, key: K) -> io::Result<u64> {
        // Room for any value: the kernel writes as much as the map's values have.
        let mut value = [0u64; 64];
        self.element(MAP_LOOKUP_ELEM, &key, value.as_mut_ptr())?;
        // SAFETY: the kernel wrote it behind the compiler's back.
        Ok(unsafe { value.as_ptr().read_volatile() })
    }

    /// Writes a value that begins with this number; the rest of it is zeroes.
    ///
    /// # Errors
    /// The kernel's errno: E2BIG if the map is full.
    pub fn set<K>(&self, key: K, number: u64) -> io::Result<()> {
        let mut value = [0u64; 64];
        value[0] = number;
        self.element(MAP_UPDATE_ELEM, &key, value.as_mut_ptr())
    }

    /// Removes a key.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove<K>(&self, key: K) -> io::Result<()> {
        self.element(MAP_DELETE_ELEM, &key, std::ptr::null_mut())
    }

    /// Fills it with values under these keys until nothing fits any more; how many those were.
    pub fn fill<K>(&self, keys: impl Iterator<Item = K>, number: u64) -> usize {
        let mut value = [0u64; 64];
        value[0] = number;
        keys.take_while(|key| self.element(MAP_UPDATE_ELEM, key, value.as_mut_ptr()).is_ok()).count()
    }

    fn element<K>(&self, command: i64, key: &K, value: *mut u64) -> io::Result<()> {
        let mut attribute = [0; 16];
        attribute[0] = self.0.as_raw_fd() as u64;
        attribute[1] = std::ptr::from_ref(key) as u64;
        attribute[2] = value as u64;
        call(command, &attribute, 32).map(drop)
    }
}

/// What maps take of the kernel's memory, in bytes, as the kernel itself counts it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Ring buffers: their size is configured.
    pub rings: u64,
    /// Everything else, by the pin it hangs on; both generations of what is kept per generation.
    pub maps: BTreeMap<String, u64>,
}

impl Memory {
    /// Everything but the rings.
    pub fn beside_rings(&self) -> u64 {
        self.maps.values().sum()
    }

    /// Adds up the maps pinned below a directory, those inside others included.
    ///
    /// # Errors
    /// The directory or a map cannot be read.
    pub fn below(pins: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let mut pending = vec![pins.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                let name = CString::new(path.as_os_str().as_bytes())?;
                let mut attribute = [0; 16];
                attribute[0] = name.as_ptr() as u64;
                let Ok(map) = bpf(OBJ_GET, &attribute, 16) else { continue };
                let Some((kind, most, bytes)) = described(&map)? else { continue }; // A link or program.
                let pin = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if kind == RINGBUF {
                    found.rings += bytes;
                    continue;
                }
                let inner = if kind == ARRAY_OF_MAPS { inside(&map, most)? } else { 0 };
                *found.maps.entry(pin).or_default() += bytes + inner;
            }
        }
        Ok(found)
    }
}

/// The bytes of the maps that an array of maps holds.
fn inside(map: &OwnedFd, most: u64) -> io::Result<u64> {
    let mut bytes = 0;
    for key in 0..most {
        let (mut id, key) = (0u64, key);
        let mut attribute = [0; 16];
        attribute[0] = map.as_raw_fd() as u64;
        attribute[1] = (&raw const key) as u64;
        attribute[2] = (&raw mut id) as u64;
        if call(MAP_LOOKUP_ELEM, &attribute, 32).is_err() {
            continue; // Nothing there.
        }
        // SAFETY: the kernel wrote it behind the compiler's back.
        let id = unsafe { (&raw const id).read_volatile() };
        let mut attribute = [0; 16];
        attribute[0] = id;
        let inner = bpf(MAP_GET_FD_BY_ID, &attribute, 12)?;
        bytes += described(&inner)?.map_or(0, |(_, _, bytes)| bytes);
    }
    Ok(bytes)
}

/// Type, most entries and bytes of a map; `None` if it is none.
fn described(map: &OwnedFd) -> io::Result<Option<(u64, u64, u64)>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok())
    };
    Ok(number("map_type")
        .zip(number("max_entries"))
        .zip(number("memlock"))
        .map(|((kind, most), bytes)| (kind, most, bytes)))
}
