//! The kernel side as the daemon sees it: the only place that names aya, makes raw system calls or is unsafe.
//!
//! [`Kernel::open`] loads and attaches, or adopts what an earlier daemon left; [`Kernel::install`] swaps generations;
//! [`Kernel::drain`] reads what was decided; everything stays in force when the process ends.

mod btf;
mod bytes;
mod features;
mod generation;
mod host;
mod object;
mod pins;
mod ring;
mod syscall;

pub use features::{Feature, features};
pub use generation::{Extent, InstallError};
pub use host::{CgroupMount, boot_ns, cgroup_id, cgroup_paths};
pub use object::{Kernel, Options};
pub use pins::{OpenError, uninstall};
pub use ring::{Drained, watch};
