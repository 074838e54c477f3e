//! Who made an attempt: names for executables, parents, cgroups and units, from exec events first and procfs second.

mod device;
mod fingerprint;
mod holders;
mod lineage;
mod own_files;
mod services;
mod sighting;

pub(crate) use device::file_at;
pub(crate) use fingerprint::{Baselines, Changed, Fingerprints};
pub(crate) use holders::{holders, views};
pub(crate) use lineage::{Ancestor, is_whole, lineage, lineage_again, origins};
pub(crate) use own_files::OwnFiles;
pub(crate) use services::{Owner, Service, services};
pub(crate) use sighting::Sighting;
mod peer;
mod table;

pub(crate) use peer::{describe, executable_of, loginuid_of};
pub(crate) use table::ProcessTable;
pub(crate) use table::{cgroup_of, start_ticks_of, unit_of};
