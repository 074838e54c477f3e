//! What this kernel gives, by asking it: yes, no, or could not tell.

use std::fs;

use aya::programs::ProgramType;
use aya::sys::{is_helper_supported, is_program_supported};
use aya_obj::generated::bpf_func_id;

use super::syscall::has_fetching_atomics;

/// One feature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Feature {
    /// Its name; those of coverage are what `[kernel] require` can name.
    pub name: &'static str,
    /// Whether it is there; `None`: could not tell.
    pub present: Option<bool>,
    /// What it is for, and why it is not there.
    pub detail: String,
}

/// Asks the running kernel.
pub(crate) fn features() -> Vec<Feature> {
    let program = |kind| is_program_supported(kind).ok();
    let helper = |kind, id| is_helper_supported(kind, id).ok();
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").ok();
    let btf = fs::metadata("/sys/kernel/btf/vmlinux").is_ok();
    vec![
        Feature {
            name: "cgroup",
            present: program(ProgramType::CgroupSockAddr),
            detail: "connects and sends are decided in cgroup programs".into(),
        },
        Feature {
            name: "tracing",
            present: program(ProgramType::RawTracePoint),
            detail: "new cgroups and executables are classified as they appear".into(),
        },
        Feature {
            name: "set-retval",
            present: helper(ProgramType::CgroupSockAddr, bpf_func_id::BPF_FUNC_set_retval),
            detail: "refusals return the configured errno (Linux 5.18); without it EPERM".into(),
        },
        Feature {
            name: "atomics",
            present: has_fetching_atomics(),
            detail: "attempts are numbered by fetching atomics (Linux 5.12); without them writ cannot start".into(),
        },
        Feature {
            name: "btf",
            present: Some(btf),
            detail: "the kernel tells where its fields are; without it writ cannot start".into(),
        },
        Feature {
            name: "lsm",
            present: lsm.as_deref().map(|list| list.trim().split(',').any(|name| name == "bpf")),
            detail: match lsm {
                Some(list) => format!("families that are not IP are judged by the BPF LSM; active: {}", list.trim()),
                None => "the list of active security modules cannot be read; the daemon tries".into(),
            },
        },
    ]
}

/// Asks the kernel whether cgroup programs may choose the errno. "Could not tell" counts as no: EPERM refuses as well.
pub(super) fn chooses_errno() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, bpf_func_id::BPF_FUNC_set_retval).unwrap_or(false)
}

/// Asks the kernel whether programs of every kind that identifies a caller may read the calling task by plain loads.
pub(super) fn types_the_task() -> bool {
    [ProgramType::CgroupSockAddr, ProgramType::CgroupSock, ProgramType::RawTracePoint]
        .into_iter()
        .all(|kind| is_helper_supported(kind, bpf_func_id::BPF_FUNC_get_current_task_btf).unwrap_or(false))
}
