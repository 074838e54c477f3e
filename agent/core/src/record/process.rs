//! The process that made an attempt, as far as it could be learnt.

use serde::{Deserialize, Serialize};

/// A process. What the kernel's event carries is always there; what must be read from `/proc` is null if the process was
/// gone before it could be read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Process {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
    /// Start of the process, in nanoseconds since boot: with `pid` it names the process for good.
    pub start_time: u64,
    /// Path of the executable.
    pub executable: Option<String>,
    /// Device of the executable, `major:minor`.
    pub device: String,
    /// Inode of the executable.
    pub inode: u64,
    /// Its ancestors, the nearest first.
    pub parents: Vec<Parent>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Real uid.
    pub uid: u32,
    /// Effective uid.
    pub euid: u32,
    /// Audit login uid; null when unset, as it is for services.
    pub loginuid: Option<u32>,
    /// The task's name.
    pub comm: String,
}

/// An ancestor of a process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Parent {
    /// Its process id.
    pub pid: u32,
    /// Path of its executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
}

/// A cgroup.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cgroup {
    /// Its id: never reused while the host runs.
    pub id: u64,
    /// Its path below the cgroup2 mount; null if it was gone.
    pub path: Option<String>,
}

/// A device number in the kernel's encoding, as records write it.
pub fn device_name(device: u32) -> String {
    format!("{}:{}", device >> 20, device & 0x000f_ffff)
}
