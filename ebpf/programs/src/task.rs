//! What is read from the kernel's own structures, at the offsets of the running kernel.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task, bpf_get_current_task_btf},
};
use writ_abi::TaskOffsets;

use crate::{config::config, map::ExecutableKey};

/// Credentials: the uids of the initial user namespace.
#[derive(Clone, Copy)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) euid: u32,
    pub(crate) user_ns: u64,
}

/// How many user namespaces are followed to the initial one; the kernel nests at most 32, of which each needs its own.
const NAMESPACE_DEPTH: u32 = 8;

/// Reads a value at `base + offset`; `None` if the kernel refuses the address.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and copies; it fails rather than faults.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T).ok() }
}

/// Reads a pointer that must not be null.
#[inline(always)]
pub(crate) fn follow(base: u64, offset: u32) -> Option<u64> {
    match read::<u64>(base, offset)? {
        0 => None,
        pointer => Some(pointer),
    }
}

/// The calling task. [`member`] reads from it, and from what it leads to.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helpers have no preconditions.
    unsafe {
        if config!(typed) == 1 { bpf_get_current_task_btf().expose_provenance() as u64 } else { bpf_get_current_task() }
    }
}

/// Reads a member of the calling task, or of what a member of it points to: by a plain load where the verifier knows the
/// type. Such a pointer must not lie in memory that a global function was shown: the verifier forgets its type there.
///
/// A load from a bad address reads as zero, which a uid must not. None is bad here: the task, its leader and their credentials
/// are in the kernel's own memory, and cannot be given back while a program runs (RCU); null pointers are told apart before.
#[inline(always)]
pub(crate) fn member<T: Copy>(base: u64, offset: u32) -> Option<T> {
    if config!(typed) == 1 {
        // SAFETY: the verifier refuses the program unless the type has such a member; a bad pointer reads as zero.
        Some(unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const T) })
    } else {
        read(base, offset)
    }
}

/// Reads a pointer that must not be null, as [`member`] does.
#[inline(always)]
pub(crate) fn pointer(base: u64, offset: u32) -> Option<u64> {
    match member::<u64>(base, offset)? {
        0 => None,
        pointer => Some(pointer),
    }
}

/// Reads one `struct cred`.
#[inline(always)]
pub(crate) fn credentials(cred: u64) -> Option<Credentials> {
    // uid, gid, suid, sgid, euid follow each other since Linux 2.6.
    const EUID: u32 = 16;
    let uid = member::<u32>(cred, config!(offsets.uid))?;
    let euid = member::<u32>(cred, config!(offsets.uid) + EUID)?;
    Some(Credentials { uid, euid, user_ns: member::<u64>(cred, config!(offsets.user_ns))? })
}

/// Calls `visit` with the owner of each user namespace from `namespace` up to, not including, the initial one; false if
/// the way there could not be read.
#[inline(always)]
pub(crate) fn namespace_owners(mut namespace: u64, mut visit: impl FnMut(u32)) -> bool {
    let initial = config!(init_user_ns);
    let mut depth = 0;
    while depth < NAMESPACE_DEPTH {
        if namespace == initial {
            return true;
        }
        let Some(parent) = read::<u64>(namespace, config!(offsets.ns_parent)) else { return false };
        if parent == 0 {
            return true; // Only the initial namespace has no parent.
        }
        let Some(owner) = read::<u32>(namespace, config!(offsets.ns_owner)) else { return false };
        visit(owner);
        namespace = parent;
        depth += 1;
    }
    false
}

/// What the calling task runs.
pub(crate) enum Runs {
    Executable(ExecutableKey),
    /// It is a kernel thread, which nobody can pretend to be.
    Nothing,
    /// It could not be read.
    Unread,
}

/// What the calling task runs.
#[inline(always)]
pub(crate) fn runs() -> Runs {
    let mut key = ExecutableKey { inode: 0, device: 0, reserved: 0 };
    match read_executable(&raw mut key) {
        READ => Runs::Executable(key),
        NO_MEMORY => Runs::Nothing,
        _ => Runs::Unread,
    }
}

const READ: u32 = 0;
const NO_MEMORY: u32 = 1;
const UNREAD: u32 = 2;

/// Does what [`runs`] says. Global, so that the verifier checks it once: since Linux 6.3 it looks the name of a type up among
/// all of the kernel's wherever a typed pointer is followed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_executable(key: *mut ExecutableKey) -> u32 {
    let Some(mm) = member::<u64>(current(), config!(offsets.mm)) else { return UNREAD };
    if mm == 0 {
        return NO_MEMORY;
    }
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    let (Some(key), Some(read)) = (unsafe { key.as_mut() }, executable(mm)) else { return UNREAD };
    *key = read;
    READ
}

/// The executable of an address space; `None` if it could not be read.
#[inline(always)]
fn executable(mm: u64) -> Option<ExecutableKey> {
    let file = pointer(mm, config!(offsets.exe_file))?;
    let inode = pointer(file, config!(offsets.f_inode))?;
    let superblock = pointer(inode, config!(offsets.i_sb))?;
    Some(ExecutableKey {
        inode: member::<u64>(inode, config!(offsets.i_ino))?,
        device: member::<u32>(superblock, config!(offsets.s_dev))?,
        reserved: 0,
    })
}

/// Process id of a task's parent.
#[inline(always)]
pub(crate) fn parent(task: u64) -> Option<u32> {
    member::<u32>(pointer(task, config!(offsets.real_parent))?, config!(offsets.tgid))
}

/// When the process of a task started, in boot-time nanoseconds. A thread's own start is later than its process's.
#[inline(always)]
pub(crate) fn start_time(task: u64) -> Option<u64> {
    let leader = pointer(task, config!(offsets.group_leader))?;
    member::<u64>(leader, config!(offsets.start_boottime))
}

/// The uid a task logged in as; `u32::MAX` if it did not.
#[inline(always)]
pub(crate) fn loginuid(task: u64) -> u32 {
    member::<u32>(task, config!(offsets.loginuid)).unwrap_or(u32::MAX)
}

/// Whether the offsets were resolved for this kernel.
#[inline(always)]
pub(crate) fn resolved() -> bool {
    config!(offsets.resolved) == 1
}

/// Ties the offsets' layout to this file: what is read here is what the loader resolves.
const _: () = assert!(size_of::<TaskOffsets>() == 112);
