//! New cgroups are classified as they are made, before any task can enter, so that a restarted unit has no open moment.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_probe_read_kernel_str},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use writ_abi::{CGROUP_PATH_LEN, Counter, PathHash, PathWalk};

use crate::{
    config::config,
    emit::count,
    map::{CGROUP_PATHS, CGROUPS, CGROUPS_LOST, NAMED_CGROUPS, PATH, UNITS},
    task,
};

/// Where a path is read and walked: the walk lies in map memory, of which the verifier keeps no history.
#[repr(C)]
pub(crate) struct Scratch {
    path: [u8; CGROUP_PATH_LEN + 1],
    walk: PathWalk,
}

/// How many ancestors are looked at for the nearest that has a class.
const DEPTH: u32 = 32;

/// A cgroup was made: `(cgroup, path)`.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub(crate) fn cgroup_mkdir(context: RawTracePointContext) -> i32 {
    let _ = made(context.arg::<*const u8>(0) as u64, context.arg::<*const u8>(1) as u64);
    0
}

/// A cgroup was removed: `(cgroup, path)`.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub(crate) fn cgroup_rmdir(context: RawTracePointContext) -> i32 {
    let _ = removed(context.arg::<*const u8>(0) as u64);
    0
}

/// Id of a cgroup of the unified hierarchy; `None` for one of the old hierarchies.
#[inline(always)]
fn unified_id(cgroup: u64) -> Option<u64> {
    let root = task::follow(cgroup, config!(offsets.cgroup_root))?;
    if task::read::<u32>(root, config!(offsets.hierarchy_id))? != 0 {
        return None;
    }
    id(cgroup)
}

#[inline(always)]
fn id(cgroup: u64) -> Option<u64> {
    task::read::<u64>(task::follow(cgroup, config!(offsets.cgroup_kn))?, config!(offsets.kn_id))
}

#[inline(always)]
fn made(cgroup: u64, path: u64) -> Option<()> {
    let id = unified_id(cgroup)?;
    let scratch = PATH.get_ptr_mut(0)?;
    // SAFETY: the pointer is what the map lookup returned; tracepoint programs do not nest on a CPU.
    let walk = unsafe {
        let buffer = (&raw mut (*scratch).path).cast::<u8>();
        let length = bpf_probe_read_kernel_str(buffer.cast(), (CGROUP_PATH_LEN + 1) as u32, path as *const _);
        let walk = &raw mut (*scratch).walk;
        core::ptr::write_volatile(walk, PathWalk::START);
        if length <= 0 || length as usize > CGROUP_PATH_LEN {
            count(Counter::CgroupUnclassified);
        } else {
            let mut index = 0usize;
            while index < CGROUP_PATH_LEN {
                let byte = core::ptr::read_volatile(buffer.add(index));
                if byte == 0 {
                    break;
                }
                step(walk, u32::from(byte));
                index += 1;
            }
        }
        walk
    };
    // Both generations: the one being prepared must not miss a cgroup that is made while it is.
    classify(0, cgroup, id, walk);
    classify(1, cgroup, id, walk);
    None
}

/// One more byte of a path. Global, so that the verifier checks it once and not for every byte a path can have.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn step(walk: *mut PathWalk, byte: u32) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    if let Some(walk) = unsafe { walk.as_mut() } {
        *walk = walk.step(byte as u8);
    }
    0
}

/// Classifies a new cgroup in one of the generations. Global, so that the verifier checks it once for both.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn classify(side: u32, cgroup: u64, id: u64, walk: *const PathWalk) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    if let Some(walk) = unsafe { walk.as_ref() } {
        let _ = classified(side, cgroup, id, walk);
    }
    0
}

#[inline(always)]
fn classified(side: u32, cgroup: u64, id: u64, walk: &PathWalk) -> Option<()> {
    let cgroups = CGROUPS.get(side)?;
    let list = match own(side, walk) {
        Some(list) => {
            if NAMED_CGROUPS.get(side)?.insert(id, list, 0).is_err() {
                count(Counter::CgroupLost);
                let lost = CGROUPS_LOST.get_ptr_mut(side)?;
                // SAFETY: the pointer is what the map lookup returned; a whole, aligned word.
                unsafe { core::ptr::write_volatile(lost, 1) };
            }
            list
        }
        None => match nearest(side, cgroup) {
            UNREADABLE => return None,
            list => list as u32,
        },
    };
    if cgroups.insert(id, list, 0).is_err() {
        count(Counter::CgroupMapFull);
    }
    None
}

/// The list of a selector that names this very cgroup.
#[inline(always)]
fn own(side: u32, walk: &PathWalk) -> Option<u32> {
    let path: PathHash = walk.path;
    // SAFETY: entries of a generation's map are never changed or removed.
    if let Some(list) = unsafe { CGROUP_PATHS.get(side)?.get(path) } {
        return Some(*list);
    }
    if walk.below_slices != 1 {
        return None;
    }
    // SAFETY: as above.
    unsafe { UNITS.get(side)?.get(walk.unit) }.copied()
}

/// The list of the cgroup at this address, or of the nearest ancestor that has one. What it finds is not remembered: a
/// socket can outlive its cgroup, whose entry would then stay for good.
///
/// Global, so that the verifier checks it once. 0 is no list, [`UNREADABLE`] a cgroup that could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn list_of_cgroup(side: u32, cgroup: u64, own: u64) -> u64 {
    let Some(id) = id(cgroup) else { return UNREADABLE };
    if id == own {
        return 0; // The caller's own, which was asked for already.
    }
    let Some(cgroups) = CGROUPS.get(side) else { return UNREADABLE };
    // SAFETY: values are only ever written whole.
    match unsafe { cgroups.get(id) } {
        Some(list) => u64::from(*list),
        None => nearest(side, cgroup),
    }
}

/// What is said of a cgroup that could not be placed: one that could not be read, that lies too deep, or that may be one
/// which could not be remembered.
pub(crate) const UNREADABLE: u64 = u64::MAX;

/// The list of the cgroup that the caller is in, whose id this is, or of its nearest ancestor that has one; 0 is no list.
///
/// Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn list_of_current(side: u32, cgroup: u64) -> u64 {
    let Some(named) = NAMED_CGROUPS.get(side) else { return UNREADABLE };
    // SAFETY: values are only ever written whole.
    if let Some(list) = unsafe { named.get(cgroup) } {
        return u64::from(*list);
    }
    let mut found = 0;
    let mut level = 0;
    while level < DEPTH {
        // SAFETY: the helper has no preconditions.
        let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if ancestor == 0 {
            break;
        }
        // SAFETY: as above.
        if let Some(list) = unsafe { named.get(ancestor) } {
            found = *list;
        }
        level += 1;
    }
    placed(side, found, level < DEPTH)
}

/// What was found on the way to the root; `whole` if that was gone to its end.
#[inline(always)]
fn placed(side: u32, found: u32, whole: bool) -> u64 {
    let lost = match CGROUPS_LOST.get_ptr(side) {
        // SAFETY: the pointer is what the map lookup returned; read whole.
        Some(lost) => unsafe { core::ptr::read_volatile(lost) != 0 },
        None => true,
    };
    if found == 0 && (lost || !whole) { UNREADABLE } else { u64::from(found) }
}

/// Whether the cgroup at this address is the one that writ is confined to, or lies below it.
#[inline(always)]
pub(crate) fn is_confined(cgroup: u64) -> Option<bool> {
    let mut current = cgroup;
    let mut depth = 0;
    while depth < DEPTH {
        if id(current)? == config!(root_cgroup) {
            return Some(true);
        }
        let css = task::read::<u64>(current, config!(offsets.cgroup_self) + config!(offsets.css_parent))?;
        if css == 0 {
            return Some(false);
        }
        current = css - u64::from(config!(offsets.cgroup_self));
        depth += 1;
    }
    None
}

/// The list of this cgroup or of the nearest ancestor that has one.
#[inline(always)]
fn nearest(side: u32, cgroup: u64) -> u64 {
    let Some(named) = NAMED_CGROUPS.get(side) else { return UNREADABLE };
    let mut current = cgroup;
    let mut depth = 0;
    while depth < DEPTH {
        let Some(id) = id(current) else { return UNREADABLE };
        // SAFETY: values are only ever written whole.
        if let Some(list) = unsafe { named.get(id) } {
            return u64::from(*list);
        }
        let Some(css) = task::read::<u64>(current, config!(offsets.cgroup_self) + config!(offsets.css_parent)) else {
            return UNREADABLE;
        };
        if css == 0 {
            return placed(side, 0, true);
        }
        current = css - u64::from(config!(offsets.cgroup_self));
        depth += 1;
    }
    UNREADABLE
}

#[inline(always)]
fn removed(cgroup: u64) -> Option<()> {
    let id = unified_id(cgroup)?;
    let _ = CGROUPS.get(0)?.remove(id);
    let _ = CGROUPS.get(1)?.remove(id);
    let _ = NAMED_CGROUPS.get(0)?.remove(id);
    let _ = NAMED_CGROUPS.get(1)?.remove(id);
    None
}
