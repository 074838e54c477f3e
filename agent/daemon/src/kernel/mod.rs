//! The kernel side as the daemon sees it: the only place that names aya, makes raw system calls or is unsafe.
//!
//! [`Kernel::open`] loads and attaches, or adopts what an earlier daemon left; [`Kernel::install`] swaps generations;
//! [`Kernel::drain`] reads what was decided; everything stays in force when the process ends.

mod attach;
mod barrier;
mod btf;
mod bytes;
mod diag;
mod features;
mod foreign;
#[cfg(test)]
mod fuzz;
mod generation;
mod hangup;
mod host;
mod links;
mod live;
mod lsm;
mod memory;
mod object;
mod peek;
mod pidfd;
mod pins;
mod ring;
mod session;
mod shared;
mod syscall;

pub(crate) use barrier::Passing;
pub(crate) use diag::{Diag, FAMILIES, Socket};
pub(crate) use features::features;
pub(crate) use foreign::{ForeignProgram, foreign_programs};
pub(crate) use generation::InstallError;
pub(crate) use hangup::Hangups;
pub(crate) use host::{CgroupMount, ClockSet, boot_ns, cgroup_paths, user_namespace_owners};
pub(crate) use links::judges_attempts;
pub(crate) use live::Extent;
pub(crate) use memory::{give_back as give_back_memory, stand_back};
pub(crate) use object::{Kernel, Options};
pub(crate) use peek::peek_each_byte_once;
pub(crate) use pidfd::process as process_descriptor;
pub(crate) use pins::{OpenError, uninstall};
pub(crate) use ring::watch;
#[cfg(test)]
pub(crate) use session::NO_SESSION;
pub(crate) use shared::AccountLost;
