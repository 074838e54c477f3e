//! Who made an attempt: names for executables, parents, cgroups and units, from exec events first and procfs second.

mod table;

pub use table::{Named, ProcessTable};
