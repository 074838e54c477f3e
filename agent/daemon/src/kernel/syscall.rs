//! The bpf(2) commands that aya does not offer: opening a pin, replacing a link's program, writing arrays in one call.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: i64 = 7;
const BPF_MAP_UPDATE_BATCH: i64 = 26;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_LINK_TYPE_CGROUP: u32 = 3;

/// The largest attribute used here, zeroed: the kernel refuses non-zero bytes it does not know.
#[derive(Default)]
#[repr(C, align(8))]
struct Attribute {
    words: [u64; 8],
}

fn bpf(command: i64, attribute: &Attribute, size: usize) -> io::Result<i64> {
    // SAFETY: the attribute outlives the call, is at least `size` bytes, and every pointer in it is valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned object.
///
/// # Errors
/// The kernel's errno: ENOENT if nothing is pinned there.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attribute = Attribute { words: [path.as_ptr() as u64, 0, 0, 0, 0, 0, 0, 0] };
    let fd = bpf(BPF_OBJ_GET, &attribute, 16)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the kernel knows atomic instructions that return the old value: `None` if it would not say.
pub(super) fn has_fetching_atomics() -> Option<bool> {
    const BPF_PROG_LOAD: i64 = 5;
    const SOCKET_FILTER: u64 = 1;
    const fn instruction(code: u64, registers: u64, offset: i16, operand: u64) -> u64 {
        code | registers << 8 | (offset.cast_unsigned() as u64) << 16 | operand << 32
    }
    let program = [
        instruction(0x7a, 0x0a, -8, 0), // *(u64 *)(r10 - 8) = 0
        instruction(0xb7, 0x01, 0, 1),  // r1 = 1
        instruction(0xdb, 0x1a, -8, 1), // r1 = atomic_fetch_add((u64 *)(r10 - 8), r1)
        instruction(0xb7, 0x00, 0, 0),  // r0 = 0
        instruction(0x95, 0x00, 0, 0),  // exit
    ];
    let kind = SOCKET_FILTER | (program.len() as u64) << 32;
    let licence = c"GPL";
    let attribute = Attribute { words: [kind, program.as_ptr() as u64, licence.as_ptr() as u64, 0, 0, 0, 0, 0] };
    match bpf(BPF_PROG_LOAD, &attribute, 48) {
        Ok(fd) => {
            // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).ok()?) });
            Some(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(false),
        Err(_) => None,
    }
}

/// Makes a link run another program, from one moment to the next (`BPF_LINK_UPDATE`, Linux 5.7).
///
/// # Errors
/// The kernel's errno: EINVAL for links that cannot be updated.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let pair = u64::from(link.as_raw_fd().cast_unsigned()) | u64::from(program.as_raw_fd().cast_unsigned()) << 32;
    bpf(BPF_LINK_UPDATE, &Attribute { words: [pair, 0, 0, 0, 0, 0, 0, 0] }, 16).map(drop)
}

/// Writes consecutive elements of an array, from element 0.
///
/// # Errors
/// The kernel's errno.
pub(super) fn write_array<V: aya::Pod>(map: BorrowedFd<'_>, values: &[V]) -> io::Result<()> {
    let length = u32::try_from(values.len()).map_err(io::Error::other)?;
    write_batch(map, &(0..length).collect::<Vec<u32>>(), values)
}

/// Writes elements of a map, each key and value of the map's own size, in as few calls as can be (`BPF_MAP_UPDATE_BATCH`;
/// for arrays and hash maps Linux 5.6, for longest-prefix tries 5.14).
///
/// # Errors
/// The kernel's errno; earlier elements may have been written.
pub(super) fn write_batch<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    const BATCH: usize = 65_536;
    for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
        let length = keys.len().min(values.len()) as u64;
        let attribute = Attribute {
            words: [
                0,
                0,
                keys.as_ptr() as u64,
                values.as_ptr() as u64,
                length | u64::from(map.as_raw_fd().cast_unsigned()) << 32,
                0,
                0,
                0,
            ],
        };
        bpf(BPF_MAP_UPDATE_BATCH, &attribute, 56)?;
    }
    Ok(())
}

/// `struct bpf_link_info`: type, id, prog_id, padding, then for cgroup links the cgroup's id (`BPF_OBJ_GET_INFO_BY_FD`).
fn link_info(link: BorrowedFd<'_>) -> io::Result<[u64; 3]> {
    const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
    let info = [0u64; 32];
    let length = size_of_val(&info) as u64;
    let fd = u64::from(link.as_raw_fd().cast_unsigned());
    let attribute = Attribute { words: [fd | length << 32, info.as_ptr() as u64, 0, 0, 0, 0, 0, 0] };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attribute, 16)?;
    // SAFETY: the kernel filled in the array; it is read through a pointer because it was written behind Rust's back.
    Ok(unsafe { info.as_ptr().cast::<[u64; 3]>().read_volatile() })
}

/// Id of the cgroup that a pinned cgroup link is attached to.
///
/// # Errors
/// The kernel's errno.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let [_, _, cgroup] = link_info(link)?;
    Ok(cgroup)
}

/// Whether a cgroup link was detached under its pin: it names no cgroup any more.
///
/// # Errors
/// The kernel's errno.
pub(super) fn link_detached(link: BorrowedFd<'_>) -> io::Result<bool> {
    let [kind, _, cgroup] = link_info(link)?;
    Ok(kind as u32 == BPF_LINK_TYPE_CGROUP && cgroup == 0)
}

/// Takes a cgroup link's program off its hook at once, whoever has the link (`BPF_LINK_DETACH`, Linux 5.9): without this it
/// stays until the kernel comes to take the last pin's link apart.
///
/// # Errors
/// The kernel's errno: EOPNOTSUPP for other links.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_DETACH: i64 = 34;
    let fd = u64::from(link.as_raw_fd().cast_unsigned());
    bpf(BPF_LINK_DETACH, &Attribute { words: [fd, 0, 0, 0, 0, 0, 0, 0] }, 4).map(drop)
}

/// Whether a link is still attached: a cgroup link to this cgroup, another anywhere (only cgroup links can be detached).
///
/// # Errors
/// The kernel's errno.
pub(super) fn link_holds(link: BorrowedFd<'_>, wanted: u64) -> io::Result<bool> {
    let [kind, _, cgroup] = link_info(link)?;
    Ok(kind as u32 != BPF_LINK_TYPE_CGROUP || cgroup == wanted)
}

/// Number of the program that a pinned link runs (`BPF_OBJ_GET_INFO_BY_FD`).
///
/// # Errors
/// The kernel's errno.
pub(super) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
    // As in `link_cgroup`: type, id, prog_id.
    let info = [0u32; 64];
    let length = size_of_val(&info) as u64;
    let fd = u64::from(link.as_raw_fd().cast_unsigned());
    let attribute = Attribute { words: [fd | length << 32, info.as_ptr() as u64, 0, 0, 0, 0, 0, 0] };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attribute, 16)?;
    // SAFETY: the kernel filled in the array; it is read through a pointer because it was written behind Rust's back.
    Ok(unsafe { info.as_ptr().add(2).read_volatile() })
}

/// Numbers of the programs attached to a cgroup itself at a hook (`BPF_PROG_QUERY`, Linux 4.15).
///
/// # Errors
/// The kernel's errno: EPERM without privilege, EINVAL for a hook it does not know.
pub(super) fn attached_programs(cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: i64 = 16;
    /// The kernel attaches at most 64 programs to one cgroup and hook.
    const MOST: usize = 64;
    let ids = [0u32; MOST];
    // target_fd, attach_type | query_flags, attach_flags | prog_ids | prog_cnt
    let attribute = Attribute {
        words: [
            u64::from(cgroup.as_raw_fd().cast_unsigned()) | u64::from(hook) << 32,
            0,
            ids.as_ptr() as u64,
            MOST as u64,
            0,
            0,
            0,
            0,
        ],
    };
    bpf(BPF_PROG_QUERY, &attribute, 32)?;
    // SAFETY: the kernel wrote the number of programs over the one offered; read past the compiler's view of it.
    let count = unsafe { (&raw const attribute.words).cast::<u64>().add(3).read_volatile() } as u32 as usize;
    // SAFETY: as above, for the numbers themselves: plain integers in an array of this length.
    let ids: [u32; MOST] = unsafe { (&raw const ids).read_volatile() };
    Ok(ids.into_iter().take(count).collect())
}

/// Reads a whole hash map with 64-bit keys in as few calls as can be (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6). `nothing` is any
/// value of the map's type.
///
/// # Errors
/// The kernel's errno.
pub(super) fn read_hash<V: aya::Pod>(map: BorrowedFd<'_>, nothing: V) -> io::Result<Vec<V>> {
    const BPF_MAP_LOOKUP_BATCH: i64 = 24;
    // Few at first: memory that was given back meanwhile costs more than another call.
    const FEW: usize = 256;
    const MOST: usize = 8_192;
    let mut found = Vec::new();
    let (mut keys, mut values) = (vec![0u64; FEW], vec![nothing; FEW]);
    let (mut from, mut next) = (0u64, 0u64);
    let mut started = false;
    loop {
        let attribute = Attribute {
            words: [
                if started { (&raw mut from) as u64 } else { 0 },
                (&raw mut next) as u64,
                keys.as_mut_ptr() as u64,
                values.as_mut_ptr() as u64,
                values.len() as u64 | u64::from(map.as_raw_fd().cast_unsigned()) << 32,
                0,
                0,
                0,
            ],
        };
        let done = match bpf(BPF_MAP_LOOKUP_BATCH, &attribute, 56) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // What shares a place in the table is read at once or not at all.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && values.len() < MOST => {
                grow(&mut keys, &mut values, nothing);
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel wrote the number of values over the one asked for; read past the compiler's view of it.
        let count = unsafe { (&raw const attribute.words).cast::<u64>().add(4).read_volatile() } as u32 as usize;
        found.extend(values.iter().take(count).copied());
        if done {
            return Ok(found);
        }
        from = next;
        started = true;
        if values.len() < MOST {
            grow(&mut keys, &mut values, nothing);
        }
    }
}

/// Room for twice as many.
fn grow<V: Clone>(keys: &mut Vec<u64>, values: &mut Vec<V>, nothing: V) {
    let room = 2 * values.len();
    keys.resize(room, 0);
    values.resize(room, nothing);
}

fn element(command: i64, map: BorrowedFd<'_>, key: u64, value: u64) -> io::Result<()> {
    let fd = u64::from(map.as_raw_fd().cast_unsigned());
    bpf(command, &Attribute { words: [fd, (&raw const key) as u64, value, 0, 0, 0, 0, 0] }, 32).map(drop)
}

/// Reads the first element of an array into a buffer, which is as long as the kernel makes it: a value, or one for each
/// possible CPU, each in a multiple of eight bytes.
///
/// # Errors
/// The kernel's errno.
pub(super) fn read_first(map: BorrowedFd<'_>, value: &mut [u64]) -> io::Result<()> {
    const BPF_MAP_LOOKUP_ELEM: i64 = 1;
    element(BPF_MAP_LOOKUP_ELEM, map, 0, value.as_mut_ptr() as u64)
}

/// Reads one element of a map with 64-bit keys. `nothing` is any value of the map's type.
///
/// # Errors
/// ENOENT if there is none.
pub(super) fn lookup_key<V: aya::Pod>(map: BorrowedFd<'_>, key: u64, nothing: V) -> io::Result<V> {
    const BPF_MAP_LOOKUP_ELEM: i64 = 1;
    let mut value = nothing;
    element(BPF_MAP_LOOKUP_ELEM, map, key, (&raw mut value) as u64)?;
    // SAFETY: a plain value; read past the compiler's view, because the kernel wrote it.
    Ok(unsafe { (&raw const value).read_volatile() })
}

/// Writes one element of a map with 64-bit keys.
///
/// # Errors
/// The kernel's errno.
pub(super) fn update_key<V: aya::Pod>(map: BorrowedFd<'_>, key: u64, value: &V) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: i64 = 2;
    element(BPF_MAP_UPDATE_ELEM, map, key, std::ptr::from_ref(value) as u64)
}

/// Writes one element of a map with 64-bit keys over the one that is there.
///
/// # Errors
/// ENOENT if there is none.
pub(super) fn replace_key<V: aya::Pod>(map: BorrowedFd<'_>, key: u64, value: &V) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: i64 = 2;
    const BPF_EXIST: u64 = 2;
    let fd = u64::from(map.as_raw_fd().cast_unsigned());
    let words = [fd, (&raw const key) as u64, std::ptr::from_ref(value) as u64, BPF_EXIST, 0, 0, 0, 0];
    bpf(BPF_MAP_UPDATE_ELEM, &Attribute { words }, 32).map(drop)
}

/// Removes one element of a map with 64-bit keys.
///
/// # Errors
/// ENOENT if there is none.
pub(super) fn delete_key(map: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    const BPF_MAP_DELETE_ELEM: i64 = 3;
    element(BPF_MAP_DELETE_ELEM, map, key, 0)
}
