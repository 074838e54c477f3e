//! What changes within a generation: slots, flags, and what is appended or told apart while it is in force.

use aya::maps::{Array, MapData};
use writ_abi::{AccountFlags, Active, Slot};
use writ_core::policy::Growth;
use writ_core::table::Generation;

use super::bytes::{ExecutableKey, Plain};
use super::generation::{InForce, InstallError, SPARE_PROJECTIONS, SPARE_STANCES, failed, packed, spare_cells};
use super::object::Kernel;

impl Kernel {
    fn in_force(&mut self, table: &'static str) -> Result<&mut InForce, InstallError> {
        let none = || InstallError { table, error: "no generation of this daemon is in force".to_owned() };
        self.in_force.as_mut().ok_or_else(none)
    }

    /// Moves an account to a stance: one aligned word, the way a signal takes effect.
    ///
    /// # Errors
    /// The table cannot be written; the account stays in the stance it was in.
    pub(crate) fn set_slot(&mut self, account: u32, slot: Slot) -> Result<(), InstallError> {
        self.in_force("SLOTS")?.slots.set(account, slot.0, 0).map_err(failed("SLOTS"))
    }

    /// The slots in force, by account.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) fn slots(&self) -> Result<Vec<Slot>, InstallError> {
        let side = self.active().map_err(failed("ACTIVE"))?.side();
        let slots = self.outer.slots.get(&side, 0).map_err(failed("SLOTS"))?;
        (0..slots.len()).map(|account| slots.get(&account, 0).map(Slot).map_err(failed("SLOTS"))).collect()
    }

    /// Changes what holds for an account in every stance.
    ///
    /// # Errors
    /// The table cannot be written; the flags stay as they were.
    pub(crate) fn set_flags(&mut self, account: u32, flags: AccountFlags) -> Result<(), InstallError> {
        self.in_force("FLAGS")?.flags.set(account, flags.0, 0).map_err(failed("FLAGS"))
    }

    /// Writes what was appended to the generation in force and is not in the kernel yet. Nothing names it: cells come before
    /// the stances that name them, and slots after.
    ///
    /// # Errors
    /// There is no room left (install a new generation), or a table cannot be written.
    pub(crate) fn extend(&mut self, generation: &Generation) -> Result<(), InstallError> {
        let side = Active(generation.active).side();
        let Extent { cells, projections, stances } = self.written;
        if projections < generation.projections.len() {
            // A word of projections can be half full: the first one is written again, with the same first half.
            let word = projections / 4;
            let new = packed(generation.projections.get(word * 4..).unwrap_or(&[]));
            let mut table = self.outer.projections.get(&side, 0).map_err(failed("PROJECTIONS"))?;
            append("PROJECTIONS", &mut table, word, new)?;
        }
        let new = generation.cells.get(cells..).unwrap_or(&[]);
        if !new.is_empty() {
            let mut table = self.outer.cells.get(&side, 0).map_err(failed("CELLS"))?;
            append("CELLS", &mut table, cells, new.iter().copied())?;
        }
        let new = generation.stances.get(stances..).unwrap_or(&[]);
        append("STANCES", &mut self.in_force("STANCES")?.stances, stances, new.iter().map(|stance| stance.to_words()))?;
        // Only now: what could not be written is written before anything that comes after it.
        self.written = Extent::of(generation);
        Ok(())
    }

    /// Tells apart what has grown in the generation in force. What is in force answers as before: projections go on before
    /// anything leads to the classes they are for.
    ///
    /// # Errors
    /// There is no room left (install a new generation), or a table cannot be written. Every stance still answers as before.
    pub(crate) fn grow(
        &mut self,
        generation: &Generation,
        growth: &Growth,
        executables: &[((u32, u64), u32)],
    ) -> Result<(), InstallError> {
        let side = self.active().map_err(failed("ACTIVE"))?.side();
        let mut projections = self.outer.projections.get(&side, 0).map_err(failed("PROJECTIONS"))?;
        for run in generation.grown(growth) {
            put_words("PROJECTIONS", &mut projections, &generation.projections, run)?;
        }
        let mut ports = self.outer.ports.get(&side, 0).map_err(failed("PORTS"))?;
        let mut written = None;
        for port in &growth.ports {
            let word = usize::from(*port) / 4;
            if written != Some(word) {
                put_words("PORTS", &mut ports, &generation.ports, word * 4..word * 4 + 1)?;
                written = Some(word);
            }
        }
        if !growth.v4.is_empty() {
            self.write_addresses_v4(side, generation)?;
        }
        if !growth.v6.is_empty() {
            self.write_addresses_v6(side, generation)?;
        }
        let mut known = self.outer.executables.get(&side, 0).map_err(failed("EXECUTABLES"))?;
        for ((device, inode), class) in executables {
            let key = ExecutableKey { inode: *inode, device: *device, reserved: 0 };
            known.insert(Plain(key), u64::from(*class) << 32, 0).map_err(failed("EXECUTABLES"))?;
        }
        // The same generation, which may have to look at executables now; its other flags are as they were.
        let active = self.active().map_err(failed("ACTIVE"))?.0;
        let looks = generation.active & Active::CLASSES_EXECUTABLES;
        self.active.set(0, active | looks, 0).map_err(failed("ACTIVE"))
    }
}

/// Writes the elements of a table from this one on.
fn append<V: aya::Pod>(
    table: &'static str,
    inner: &mut Array<MapData, V>,
    from: usize,
    values: impl IntoIterator<Item = V>,
) -> Result<(), InstallError> {
    for (at, value) in (from..).zip(values) {
        let at = u32::try_from(at).map_err(|error| InstallError { table, error: error.to_string() })?;
        inner.set(at, value, 0).map_err(failed(table))?;
    }
    Ok(())
}

/// Writes the words that hold these of the 16-bit numbers.
fn put_words(
    table: &'static str,
    map: &mut Array<MapData, u64>,
    numbers: &[u16],
    run: std::ops::Range<usize>,
) -> Result<(), InstallError> {
    let (first, last) = (run.start / 4, run.end.div_ceil(4));
    let values = packed(numbers.get(first * 4..(last * 4).min(numbers.len())).unwrap_or(&[]));
    for (at, value) in (first..last).zip(values) {
        let at = u32::try_from(at).map_err(|error| InstallError { table, error: error.to_string() })?;
        map.set(at, value, 0).map_err(failed(table))?;
    }
    Ok(())
}

/// How far a generation's tables reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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

    /// Half the way from this extent, a generation's as it was installed, to where there is no room left.
    pub(crate) fn half_way(&self) -> Self {
        Self {
            cells: self.cells + spare_cells(self.cells) / 2,
            // Room is in words of four.
            projections: self.projections + (self.projections + SPARE_PROJECTIONS) * 4 / 2,
            stances: self.stances + SPARE_STANCES / 2,
        }
    }

    /// Whether nothing reaches beyond the other.
    pub(crate) fn within(&self, other: &Self) -> bool {
        self.cells <= other.cells && self.projections <= other.projections && self.stances <= other.stances
    }
}
