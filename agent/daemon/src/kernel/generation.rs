//! Swapping generations: a new one is written whole into the idle side of every outer map, then one word puts it in force.

use std::os::fd::AsFd;

use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use writ_abi::{AccountFlags, Active, CGROUP_PATH_LEN, PathHash, PathWalk, Slot};
use writ_core::table::{Generation, Identities};

use super::bytes::{ExecutableKey, Plain};
use super::host::cgroup_paths;
use super::object::Kernel;
use super::pins::{OpenError, chain};
use super::syscall::write_array;

/// `BPF_F_INNER_MAP`, as the templates in the object have it.
const INNER: u32 = 0x1000;
/// `BPF_F_NO_PREALLOC`
const SPARSE: u32 = 1;
/// How many cgroups a generation can tell apart by memo; beyond it each attempt is classified anew.
const CGROUPS: u32 = 65_536;
/// Room for stances and cells that live signals add before the next generation.
const SPARE_STANCES: usize = 4_096;
/// Room for cells, likewise, beside as many again as there are.
const SPARE_CELLS: usize = 65_536;
/// Room for projections, likewise, in words.
const SPARE_PROJECTIONS: usize = 4_096;

/// Why a generation could not be put in force. The one before it stays.
#[derive(Debug, thiserror::Error)]
#[error("writing kernel table `{table}`: {error}")]
pub(crate) struct InstallError {
    /// The table.
    pub table: &'static str,
    /// Why.
    pub error: String,
}

fn failed(table: &'static str) -> impl Fn(MapError) -> InstallError {
    move |error| InstallError { table, error: chain(&error) }
}

fn failed_io(table: &'static str) -> impl Fn(std::io::Error) -> InstallError {
    move |error| InstallError { table, error: error.to_string() }
}

type Words = ArrayOfMaps<MapData, Array<MapData, u64>>;

/// Every outer map.
pub(super) struct Outer {
    user_filter: Words,
    users: ArrayOfMaps<MapData, HashMap<MapData, u32, u64>>,
    cgroups: ArrayOfMaps<MapData, HashMap<MapData, u64, u32>>,
    cgroup_paths: ArrayOfMaps<MapData, HashMap<MapData, Plain<PathHash>, u32>>,
    units: ArrayOfMaps<MapData, HashMap<MapData, Plain<PathHash>, u32>>,
    executables: ArrayOfMaps<MapData, HashMap<MapData, Plain<ExecutableKey>, u64>>,
    clauses: Words,
    addresses_v4: ArrayOfMaps<MapData, LpmTrie<MapData, [u8; 4], u32>>,
    addresses_v6: ArrayOfMaps<MapData, LpmTrie<MapData, [u8; 16], u32>>,
    ports: Words,
    projections: Words,
    cells: Words,
    stances: Words,
    flags: Words,
    slots: Words,
    barrier: Words,
}

impl Outer {
    pub(super) fn open(take: &mut impl FnMut(&'static str) -> Result<Map, OpenError>) -> Result<Self, OpenError> {
        let map = |error: MapError| OpenError::Load { what: "opening outer maps".into(), error: chain(&error) };
        Ok(Self {
            user_filter: take("USER_FILTER")?.try_into().map_err(map)?,
            users: take("USERS")?.try_into().map_err(map)?,
            cgroups: take("CGROUPS")?.try_into().map_err(map)?,
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
            barrier: take("BARRIER")?.try_into().map_err(map)?,
        })
    }
}

/// An inner array with these values, and `spare` more elements.
fn words(table: &'static str, values: &[u64], spare: usize) -> Result<Array<MapData, u64>, InstallError> {
    let length = u32::try_from((values.len() + spare).max(1))
        .map_err(|error| InstallError { table, error: error.to_string() })?;
    // Made by hand, because aya's arrays do not lend their descriptor.
    let kind = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let definition = aya_obj::Map::new_from_params(kind, 4, 8, length, INNER);
    let data = MapData::create(definition, "words", None).map_err(failed(table))?;
    write_array(data.fd().as_fd(), values).map_err(failed_io(table))?;
    Array::try_from(Map::Array(data)).map_err(failed(table))
}

/// Four 16-bit numbers to a word.
fn packed(values: &[u16]) -> Vec<u64> {
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
    pub(crate) fn barrier(&mut self) -> Result<(), InstallError> {
        // The update of an outer map waits for a grace period (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c).
        let nothing = words("BARRIER", &[0], 0)?;
        self.outer.barrier.set(0, &nothing, 0).map_err(failed("BARRIER"))
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
        self.barrier()?;
        let side = active.side();
        self.write_identities(side, identities)?;
        self.write_classes(side, generation)?;
        let stances: Vec<u64> = generation.stances.iter().flat_map(|stance| stance.to_words()).collect();
        let outer = &mut self.outer;
        outer
            .cells
            .set(side, &words("CELLS", &generation.cells, generation.cells.len() + SPARE_CELLS)?, 0)
            .map_err(failed("CELLS"))?;
        outer.stances.set(side, &words("STANCES", &stances, SPARE_STANCES * 8)?, 0).map_err(failed("STANCES"))?;
        outer.flags.set(side, &words("FLAGS", &generation.flags, 0)?, 0).map_err(failed("FLAGS"))?;
        outer.slots.set(side, &words("SLOTS", &generation.slots, 0)?, 0).map_err(failed("SLOTS"))?;
        let declared =
            (0u16..).zip(&generation.flags).filter(|(_, flags)| AccountFlags(**flags).has(AccountFlags::PRESENT));
        self.divide(&declared.map(|(account, _)| account).collect::<Vec<_>>());
        // The selectors of this side are in place: from here on `cgroup_mkdir` classifies new cgroups for it too.
        self.classify_cgroups(side, identities)?;
        // Whether the log can be written does not change with policy.
        let word = active.0 & !Active::LOG_FAILS | before.0 & Active::LOG_FAILS;
        self.active.set(0, word, 0).map_err(failed("ACTIVE"))?;
        Ok(active)
    }

    fn write_identities(&mut self, side: u32, identities: &Identities) -> Result<(), InstallError> {
        let outer = &mut self.outer;
        let mut filter = vec![0u64; 1024];
        let mut users = HashMap::create(capacity(identities.users.len()), SPARSE).map_err(failed("USERS"))?;
        for (uid, (selector, list)) in &identities.users {
            if let Some(word) = filter.get_mut((uid & 0xffff) as usize >> 6) {
                *word |= 1 << (uid & 63);
            }
            users.insert(uid, u64::from(*list) | u64::from(*selector) << 32, 0).map_err(failed("USERS"))?;
        }
        let hashed = |table, names: &std::collections::BTreeMap<String, u32>| {
            let mut map: HashMap<MapData, Plain<PathHash>, u32> =
                HashMap::create(capacity(names.len()), SPARSE).map_err(failed(table))?;
            for (name, list) in names {
                map.insert(Plain(PathHash::of(name.as_bytes())), list, 0).map_err(failed(table))?;
            }
            Ok(map)
        };
        let mut executables =
            HashMap::create(capacity(identities.executables.len()), SPARSE).map_err(failed("EXECUTABLES"))?;
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
        outer.cgroups.set(side, &cgroups, 0).map_err(failed("CGROUPS"))
    }

    fn write_classes(&mut self, side: u32, generation: &Generation) -> Result<(), InstallError> {
        let outer = &mut self.outer;
        let mut v4 = LpmTrie::create(capacity(generation.v4.len()), SPARSE).map_err(failed("ADDRESSES_V4"))?;
        for (net, class) in &generation.v4 {
            let key = Key::new(u32::from(net.prefix_len()), net.addr().octets());
            v4.insert(&key, class, 0).map_err(failed("ADDRESSES_V4"))?;
        }
        let mut v6 = LpmTrie::create(capacity(generation.v6.len()), SPARSE).map_err(failed("ADDRESSES_V6"))?;
        for (net, class) in &generation.v6 {
            let key = Key::new(u32::from(net.prefix_len()), net.addr().octets());
            v6.insert(&key, class, 0).map_err(failed("ADDRESSES_V6"))?;
        }
        outer.addresses_v4.set(side, &v4, 0).map_err(failed("ADDRESSES_V4"))?;
        outer.addresses_v6.set(side, &v6, 0).map_err(failed("ADDRESSES_V6"))?;
        outer.ports.set(side, &words("PORTS", &packed(&generation.ports), 0)?, 0).map_err(failed("PORTS"))?;
        let projections =
            words("PROJECTIONS", &packed(&generation.projections), generation.projections.len() + SPARE_PROJECTIONS)?;
        outer.projections.set(side, &projections, 0).map_err(failed("PROJECTIONS"))
    }

    /// Classifies the cgroups that exist. Those made meanwhile are classified by the program, by the same rule.
    fn classify_cgroups(&mut self, side: u32, identities: &Identities) -> Result<(), InstallError> {
        if identities.cgroups.is_empty() && identities.units.is_empty() {
            return Ok(());
        }
        let units: std::collections::BTreeMap<_, _> =
            identities.units.iter().map(|(name, list)| (PathHash::of(name.as_bytes()), *list)).collect();
        let mut map = self.outer.cgroups.get(&side, 0).map_err(failed("CGROUPS"))?;
        let mut known = std::collections::BTreeMap::<String, u32>::new();
        for (id, path) in cgroup_paths(&self.mount) {
            let walk = PathWalk::over(path.as_bytes());
            let unit = (walk.below_slices == 1).then(|| units.get(&walk.unit).copied()).flatten();
            let own = identities.cgroups.get(&path).copied().or(unit).filter(|_| path.len() <= CGROUP_PATH_LEN);
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
            let list = own.unwrap_or_else(|| known.get(parent).copied().unwrap_or(0));
            known.insert(path, list);
            map.insert(id, list, 0).map_err(failed("CGROUPS"))?;
        }
        Ok(())
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

    /// Moves an account to a stance: one aligned word, the way a signal takes effect.
    ///
    /// # Errors
    /// The table cannot be written; the account stays in the stance it was in.
    pub(crate) fn set_slot(&mut self, account: u32, slot: Slot) -> Result<(), InstallError> {
        let side = self.active().map_err(failed("ACTIVE"))?.side();
        let mut slots = self.outer.slots.get(&side, 0).map_err(failed("SLOTS"))?;
        slots.set(account, slot.0, 0).map_err(failed("SLOTS"))
    }

    /// Changes what holds for an account in every stance.
    ///
    /// # Errors
    /// The table cannot be written; the flags stay as they were.
    pub(crate) fn set_flags(&mut self, account: u32, flags: AccountFlags) -> Result<(), InstallError> {
        let side = self.active().map_err(failed("ACTIVE"))?.side();
        let mut table = self.outer.flags.get(&side, 0).map_err(failed("FLAGS"))?;
        table.set(account, flags.0, 0).map_err(failed("FLAGS"))
    }

    /// Writes what was appended to the generation in force since it had this extent. Nothing names it yet: cells come
    /// before the stances that name them, and slots after.
    ///
    /// # Errors
    /// There is no room left (install a new generation), or a table cannot be written.
    pub(crate) fn extend(&mut self, generation: &Generation, before: &Extent) -> Result<(), InstallError> {
        let side = self.active().map_err(failed("ACTIVE"))?.side();
        let append = |table: &'static str, outer: &Words, from: usize, values: &[u64]| {
            let mut inner = outer.get(&side, 0).map_err(failed(table))?;
            for (at, value) in (from..).zip(values) {
                let at = u32::try_from(at).map_err(|error| InstallError { table, error: error.to_string() })?;
                inner.set(at, value, 0).map_err(failed(table))?;
            }
            Ok(())
        };
        // A word of projections can be half full: the first one is written again, with the same first half.
        let word = before.projections / 4;
        let projections = packed(generation.projections.get(word * 4..).unwrap_or(&[]));
        append("PROJECTIONS", &self.outer.projections, word, &projections)?;
        append("CELLS", &self.outer.cells, before.cells, generation.cells.get(before.cells..).unwrap_or(&[]))?;
        let stances = generation.stances.get(before.stances..).unwrap_or(&[]);
        let words: Vec<u64> = stances.iter().flat_map(|stance| stance.to_words()).collect();
        append("STANCES", &self.outer.stances, before.stances * writ_abi::STANCE_WORDS as usize, &words)
    }
}

/// How far a generation's tables reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    cells: usize,
    projections: usize,
    stances: usize,
}

impl Extent {
    /// The extent of a generation now.
    pub(crate) fn of(generation: &Generation) -> Self {
        Self {
            cells: generation.cells.len(),
            projections: generation.projections.len(),
            stances: generation.stances.len(),
        }
    }
}
