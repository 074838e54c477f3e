//! Swapping generations: a new one is written whole into the idle side of every outer map, then one word puts it in force.

use std::os::fd::AsFd;
use std::sync::Arc;

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError};
use tokio::sync::Notify;
use writ_abi::{
    AccountFlags, Active, CGROUP_PATH_LEN, NodeV4, NodeV6, PathHash, PathWalk, STANCE_WORDS, USER_FILTER_WORDS,
};
use writ_core::table::{Generation, Identities, Subordinates, nodes_v4, nodes_v6};

use super::barrier::Passing;
use super::bytes::{ExecutableKey, Plain};
use super::host::cgroup_paths;
use super::live::Extent;
use super::object::Kernel;
use super::pins::{OpenError, chain};
use super::syscall::write_array;

/// `BPF_F_INNER_MAP`, as the templates in the object have it.
const INNER: u32 = 0x1000;
/// `BPF_F_NO_PREALLOC`
const SPARSE: u32 = 1;
/// How many cgroups a generation can tell apart by memo; beyond it each attempt is classified anew.
const CGROUPS: u32 = 65_536;
/// How many cgroups the matches of a generation can name: one for each path, and those of each unit's name.
const NAMED_CGROUPS: u32 = 16_384;
/// Room for stances and cells that live signals add before the next generation.
pub(super) const SPARE_STANCES: usize = 32_768;
/// Room for cells, likewise.
pub(super) const fn spare_cells(cells: usize) -> usize {
    // Each account has a row or two at first, and one more for each kind of signal that may come.
    3 * cells + 65_536
}
/// Room for projections, likewise, in words.
pub(super) const SPARE_PROJECTIONS: usize = 4_096;
/// Room for executables, likewise.
const SPARE_EXECUTABLES: usize = 256;

/// Why a generation could not be put in force. The one before it stays.
#[derive(Debug, thiserror::Error)]
#[error("writing kernel table `{table}`: {error}")]
pub(crate) struct InstallError {
    /// The table.
    pub table: &'static str,
    /// Why.
    pub error: String,
}

pub(super) fn failed(table: &'static str) -> impl Fn(MapError) -> InstallError {
    move |error| InstallError { table, error: chain(&error) }
}

fn failed_io(table: &'static str) -> impl Fn(std::io::Error) -> InstallError {
    move |error| InstallError { table, error: error.to_string() }
}

pub(super) type Words = ArrayOfMaps<MapData, Array<MapData, u64>>;
/// A stance as table words.
pub(super) type StanceWords = [u64; STANCE_WORDS as usize];

/// What a signal changes of the generation that this daemon put in force. Kept open: to open a table takes longer than to write
/// to it.
pub(super) struct InForce {
    pub(super) stances: Array<MapData, StanceWords>,
    pub(super) flags: Array<MapData, u64>,
    pub(super) slots: Array<MapData, u64>,
}

/// Every outer map.
pub(super) struct Outer {
    user_filter: Words,
    users: ArrayOfMaps<MapData, HashMap<MapData, u32, u64>>,
    cgroups: ArrayOfMaps<MapData, HashMap<MapData, u64, u32>>,
    named_cgroups: ArrayOfMaps<MapData, HashMap<MapData, u64, u32>>,
    cgroups_lost: Array<MapData, u64>,
    cgroup_paths: ArrayOfMaps<MapData, HashMap<MapData, Plain<PathHash>, u32>>,
    units: ArrayOfMaps<MapData, HashMap<MapData, Plain<PathHash>, u32>>,
    pub(super) executables: ArrayOfMaps<MapData, HashMap<MapData, Plain<ExecutableKey>, u64>>,
    clauses: Words,
    addresses_v4: ArrayOfMaps<MapData, Array<MapData, NodeV4>>,
    addresses_v6: ArrayOfMaps<MapData, Array<MapData, NodeV6>>,
    pub(super) ports: Words,
    pub(super) projections: Words,
    pub(super) cells: Words,
    pub(super) stances: ArrayOfMaps<MapData, Array<MapData, StanceWords>>,
    pub(super) flags: Words,
    pub(super) slots: Words,
}

impl Outer {
    pub(super) fn open(take: &mut impl FnMut(&'static str) -> Result<Map, OpenError>) -> Result<Self, OpenError> {
        let map = |error: MapError| OpenError::Load { what: "opening outer maps".into(), error: chain(&error) };
        Ok(Self {
            user_filter: take("USER_FILTER")?.try_into().map_err(map)?,
            users: take("USERS")?.try_into().map_err(map)?,
            cgroups: take("CGROUPS")?.try_into().map_err(map)?,
            named_cgroups: take("NAMED_CGROUPS")?.try_into().map_err(map)?,
            cgroups_lost: take("CGROUPS_LOST")?.try_into().map_err(map)?,
            cgroup_paths: take("CGROUP_PATHS")?.try_into().map_err(map)?,
            units: take("UNITS")?.try_into().map_err(map)?,
            executables: take("EXECUTABLES")?.try_into().map_err(map)?,
            clauses: take("CLAUSES")?.try_into().map_err(map)?,
            addresses_v4: take("ADDRESSES_V4")?.try_into().map_err(map)?,
            addresses_v6: take("ADDRESSES_V6")?.try_into().map_err(map)?,
            ports: take("PORTS")?.try_into().map_err(map)?,
            projections: take("PROJECTIONS")?.try_into().map_err(map)?,
            cells: take("CELLS")?.try_into().map_err(map)?,
            stances: take("STANCES")?.try_into().map_err(map)?,
            flags: take("FLAGS")?.try_into().map_err(map)?,
            slots: take("SLOTS")?.try_into().map_err(map)?,
        })
    }
}

/// An inner array with these values, and `spare` more elements.
pub(super) fn words<V: aya::Pod>(
    table: &'static str,
    values: &[V],
    spare: usize,
) -> Result<Array<MapData, V>, InstallError> {
    let length = u32::try_from((values.len() + spare).max(1))
        .map_err(|error| InstallError { table, error: error.to_string() })?;
    // Made by hand, because aya's arrays do not lend their descriptor.
    let kind = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let width = u32::try_from(size_of::<V>()).map_err(|error| InstallError { table, error: error.to_string() })?;
    let definition = aya_obj::Map::new_from_params(kind, 4, width, length, INNER);
    let data = MapData::create(definition, "words", None).map_err(failed(table))?;
    write_array(data.fd().as_fd(), values).map_err(failed_io(table))?;
    Array::try_from(Map::Array(data)).map_err(failed(table))
}

/// Four 16-bit numbers to a word.
pub(super) fn packed(values: &[u16]) -> Vec<u64> {
    values
        .chunks(4)
        .map(|chunk| chunk.iter().enumerate().fold(0, |word, (index, value)| word | u64::from(*value) << (index * 16)))
        .collect()
}

fn capacity(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

impl Kernel {
    /// Waits until every program that was running has returned: whatever was written before is what all see after.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn barrier(&self) -> Result<(), Arc<InstallError>> {
        self.begin_barrier().wait()
    }

    /// The same, to be waited for later.
    pub(crate) fn begin_barrier(&self) -> Passing {
        self.barrier.begin()
    }

    /// Told whenever such a wait is over.
    pub(crate) fn barrier_over(&self) -> Arc<Notify> {
        self.barrier.over()
    }

    /// Puts a generation in force: all of it from one moment to the next, or none of it.
    ///
    /// # Errors
    /// The table that could not be written; the generation before stays in force.
    pub(crate) fn install(&mut self, generation: &Generation, identities: &Identities) -> Result<Active, InstallError> {
        let before = self.active().map_err(failed("ACTIVE"))?;
        let active = Active(generation.active);
        if active.generation() != before.generation().wrapping_add(1) {
            return Err(InstallError {
                table: "ACTIVE",
                error: format!("generation {} cannot follow {}", active.generation(), before.generation()),
            });
        }
        // Programs that still judge by the generation before last must be gone before its side is written over.
        self.barrier().map_err(|error| InstallError { table: error.table, error: error.error.clone() })?;
        let side = active.side();
        self.write_identities(side, identities)?;
        self.write_classes(side, generation)?;
        let stances: Vec<StanceWords> = generation.stances.iter().map(|stance| stance.to_words()).collect();
        let outer = &mut self.outer;
        outer
            .cells
            .set(side, &words("CELLS", &generation.cells, spare_cells(generation.cells.len()))?, 0)
            .map_err(failed("CELLS"))?;
        let in_force = InForce {
            stances: words("STANCES", &stances, SPARE_STANCES)?,
            flags: words("FLAGS", &generation.flags, 0)?,
            slots: words("SLOTS", &generation.slots, 0)?,
        };
        outer.stances.set(side, &in_force.stances, 0).map_err(failed("STANCES"))?;
        outer.flags.set(side, &in_force.flags, 0).map_err(failed("FLAGS"))?;
        outer.slots.set(side, &in_force.slots, 0).map_err(failed("SLOTS"))?;
        let declared =
            (0u16..).zip(&generation.flags).filter(|(_, flags)| AccountFlags(**flags).has(AccountFlags::PRESENT));
        let declared: Vec<u16> = declared.map(|(account, _)| account).collect();
        self.divide(&declared).map_err(failed("SESSIONS_SHARE"))?;
        // The selectors of this side are in place: from here on `cgroup_mkdir` classifies new cgroups for it too.
        self.classify_cgroups(side, identities)?;
        // Whether the log can be written does not change with policy.
        let word = active.0 & !Active::LOG_FAILS | before.0 & Active::LOG_FAILS;
        self.active.set(0, word, 0).map_err(failed("ACTIVE"))?;
        self.written = Extent::of(generation);
        self.in_force = Some(in_force);
        Ok(active)
    }

    fn write_identities(&mut self, side: u32, identities: &Identities) -> Result<(), InstallError> {
        let outer = &mut self.outer;
        let mut filter = vec![0u64; USER_FILTER_WORDS as usize];
        let mut users = HashMap::create(capacity(identities.users.len()), SPARSE).map_err(failed("USERS"))?;
        for (uid, (selector, list)) in &identities.users {
            // Greater ones are looked for in any case: they may be somebody's subordinates.
            if let Some(word) = filter.get_mut(*uid as usize >> 6) {
                *word |= 1 << (uid & 63);
            }
            users.insert(uid, u64::from(*list) | u64::from(*selector) << 32, 0).map_err(failed("USERS"))?;
        }
        filter.extend(Subordinates::words(&identities.subordinates));
        let hashed = |table, names: &std::collections::BTreeMap<String, u32>| {
            let mut map: HashMap<MapData, Plain<PathHash>, u32> =
                HashMap::create(capacity(names.len()), SPARSE).map_err(failed(table))?;
            for (name, list) in names {
                map.insert(Plain(PathHash::of(name.as_bytes())), list, 0).map_err(failed(table))?;
            }
            Ok(map)
        };
        let mut executables = HashMap::create(capacity(identities.executables.len() + SPARE_EXECUTABLES), SPARSE)
            .map_err(failed("EXECUTABLES"))?;
        for ((device, inode), (class, list)) in &identities.executables {
            let key = ExecutableKey { inode: *inode, device: *device, reserved: 0 };
            executables
                .insert(Plain(key), u64::from(*list) | u64::from(*class) << 32, 0)
                .map_err(failed("EXECUTABLES"))?;
        }
        outer.clauses.set(side, &words("CLAUSES", &identities.clauses, 0)?, 0).map_err(failed("CLAUSES"))?;
        outer.users.set(side, &users, 0).map_err(failed("USERS"))?;
        outer.user_filter.set(side, &words("USER_FILTER", &filter, 0)?, 0).map_err(failed("USER_FILTER"))?;
        outer.executables.set(side, &executables, 0).map_err(failed("EXECUTABLES"))?;
        outer
            .cgroup_paths
            .set(side, &hashed("CGROUP_PATHS", &identities.cgroups)?, 0)
            .map_err(failed("CGROUP_PATHS"))?;
        outer.units.set(side, &hashed("UNITS", &identities.units)?, 0).map_err(failed("UNITS"))?;
        let cgroups = HashMap::create(CGROUPS, SPARSE).map_err(failed("CGROUPS"))?;
        let named = HashMap::create(NAMED_CGROUPS, SPARSE).map_err(failed("NAMED_CGROUPS"))?;
        outer.named_cgroups.set(side, &named, 0).map_err(failed("NAMED_CGROUPS"))?;
        outer.cgroups_lost.set(side, 0, 0).map_err(failed("CGROUPS_LOST"))?;
        outer.cgroups.set(side, &cgroups, 0).map_err(failed("CGROUPS"))
    }

    fn write_classes(&mut self, side: u32, generation: &Generation) -> Result<(), InstallError> {
        self.write_addresses_v4(side, generation)?;
        self.write_addresses_v6(side, generation)?;
        let outer = &mut self.outer;
        outer.ports.set(side, &words("PORTS", &packed(&generation.ports), 0)?, 0).map_err(failed("PORTS"))?;
        let projections =
            words("PROJECTIONS", &packed(&generation.projections), generation.projections.len() + SPARE_PROJECTIONS)?;
        outer.projections.set(side, &projections, 0).map_err(failed("PROJECTIONS"))
    }

    /// Replaces the tree of IPv4 addresses, from one moment to the next.
    pub(super) fn write_addresses_v4(&mut self, side: u32, generation: &Generation) -> Result<(), InstallError> {
        let nodes = words("ADDRESSES_V4", &nodes_v4(&generation.v4), 0)?;
        self.outer.addresses_v4.set(side, &nodes, 0).map_err(failed("ADDRESSES_V4"))
    }

    /// The same for IPv6.
    pub(super) fn write_addresses_v6(&mut self, side: u32, generation: &Generation) -> Result<(), InstallError> {
        let nodes = words("ADDRESSES_V6", &nodes_v6(&generation.v6), 0)?;
        self.outer.addresses_v6.set(side, &nodes, 0).map_err(failed("ADDRESSES_V6"))
    }

    /// Classifies the cgroups that exist. Those made meanwhile are classified by the program, by the same rule.
    fn classify_cgroups(&mut self, side: u32, identities: &Identities) -> Result<(), InstallError> {
        if identities.cgroups.is_empty() && identities.units.is_empty() {
            return Ok(());
        }
        // Twice: one that was made before its parent was named here is nobody's to the program, and is seen by the second look.
        self.look_at_cgroups(side, identities)?;
        self.look_at_cgroups(side, identities)
    }

    fn look_at_cgroups(&mut self, side: u32, identities: &Identities) -> Result<(), InstallError> {
        let units: std::collections::BTreeMap<_, _> =
            identities.units.iter().map(|(name, list)| (PathHash::of(name.as_bytes()), *list)).collect();
        let mut map = self.outer.cgroups.get(&side, 0).map_err(failed("CGROUPS"))?;
        let mut named = self.outer.named_cgroups.get(&side, 0).map_err(failed("NAMED_CGROUPS"))?;
        let mut known = std::collections::BTreeMap::<String, u32>::new();
        for (id, path) in cgroup_paths(&self.mount) {
            let walk = PathWalk::over(path.as_bytes());
            let unit = (walk.below_slices == 1).then(|| units.get(&walk.unit).copied()).flatten();
            let own = identities.cgroups.get(&path).copied().or(unit).filter(|_| path.len() <= CGROUP_PATH_LEN);
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
            let list = own.unwrap_or_else(|| known.get(parent).copied().unwrap_or(0));
            known.insert(path, list);
            if own.is_some() {
                named.insert(id, list, 0).map_err(failed("NAMED_CGROUPS"))?;
            }
            // A memo of what the program can work out: anybody who may make cgroups can fill it.
            let _ = map.insert(id, list, 0);
        }
        Ok(())
    }

    /// Whether a cgroup that a match names could not be remembered since the generation in force was installed.
    pub(crate) fn cgroups_lost(&self) -> bool {
        let lost = self.active().and_then(|active| self.outer.cgroups_lost.get(&active.side(), 0));
        lost.is_ok_and(|lost| lost != 0)
    }

    /// Says whether the log can be written: while it cannot, accounts for which no record means no access are refused.
    ///
    /// # Errors
    /// The table cannot be read or written.
    pub(crate) fn set_log_fails(&mut self, fails: bool) -> Result<(), InstallError> {
        let active = self.active().map_err(failed("ACTIVE"))?.0 & !Active::LOG_FAILS;
        let flag = if fails { Active::LOG_FAILS } else { 0 };
        self.active.set(0, active | flag, 0).map_err(failed("ACTIVE"))
    }
}
