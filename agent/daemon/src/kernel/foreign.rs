//! Who else is on the hooks that writ uses: every cgroup program attached there that writ did not pin.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::loaded_programs;
use aya_obj::generated::bpf_prog_type;
use serde::{Deserialize, Serialize};

use super::host::{CgroupMount, cgroup_paths};
use super::syscall;

/// The hooks, with the kernel's number for attaching there.
const HOOKS: [(&str, u32); 7] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("sock_create", 2),
    ("sock_release", 34),
    ("egress", 1),
];

/// A program of somebody else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct ForeignProgram {
    /// The hook, by the name writ's own program there has; `lsm` for a BPF LSM program, wherever that is attached.
    pub hook: String,
    /// The cgroup, below the root of the hierarchy; empty for `lsm`.
    pub cgroup: String,
    /// The kernel's number of the program.
    pub id: u32,
    /// Its name, as far as it has one.
    pub name: String,
}

/// Every foreign program on the judged cgroup, those above it and those below. `None`: could not tell (not root, or no
/// such kernel call).
pub(crate) fn foreign_programs(mount: &CgroupMount, pins: &Path) -> Option<Vec<ForeignProgram>> {
    let own = own_programs(pins);
    let loaded: Vec<_> = loaded_programs().collect::<Result<_, _>>().ok()?;
    let name = |id: u32| {
        let found = loaded.iter().find(|program| program.id() == id);
        found.and_then(|program| program.name_as_str()).unwrap_or_default().to_owned()
    };
    let mut found = BTreeSet::new();
    let judged = mount.relative(&mount.attached);
    let related = |path: &str| Path::new(path).starts_with(&judged) || Path::new(&judged).starts_with(path);
    for (_, path) in cgroup_paths(mount).into_iter().filter(|(_, path)| related(path)) {
        // A cgroup that went away meanwhile has no programs.
        let Ok(cgroup) = fs::File::open(mount.root.join(path.trim_start_matches('/'))) else { continue };
        for (hook, number) in HOOKS {
            let ids = match syscall::attached_programs(cgroup.as_fd(), number) {
                Ok(ids) => ids,
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return None,
                // A kernel without this hook has nothing there.
                Err(_) => continue,
            };
            for id in ids.into_iter().filter(|id| !own.contains(id)) {
                found.insert(ForeignProgram { hook: hook.into(), cgroup: path.clone(), id, name: name(id) });
            }
        }
    }
    for program in &loaded {
        if program.program_type() == bpf_prog_type::BPF_PROG_TYPE_LSM && !own.contains(&program.id()) {
            let (id, name) = (program.id(), program.name_as_str().unwrap_or_default().to_owned());
            found.insert(ForeignProgram { hook: "lsm".into(), cgroup: String::new(), id, name });
        }
    }
    Some(found.into_iter().collect())
}

/// Numbers of the programs behind the links pinned here.
fn own_programs(pins: &Path) -> BTreeSet<u32> {
    let versions = fs::read_dir(pins).into_iter().flatten().flatten();
    let links = versions.flat_map(|version| fs::read_dir(version.path().join("links")).into_iter().flatten().flatten());
    let program = |link: fs::DirEntry| {
        let link = syscall::open_pin(&link.path()).ok()?;
        syscall::link_program(link.as_fd()).ok()
    };
    links.filter_map(program).collect()
}
