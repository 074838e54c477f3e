//! The tables of one generation as they lie in kernel maps.

use core::hint::black_box;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use writ_abi::{AccountFlags, Active, Address, Cell, Slot, StanceRow, StanceWord, Tables, class_v4, class_v6};

use crate::map::{
    ACTIVE, ADDRESSES_V4, ADDRESSES_V6, CELLS, FLAGS, PORTS, PROJECTIONS, SEEN, SLOTS, STANCES, SeenKey, Stance,
};

/// One generation, chosen once per program run.
#[derive(Clone, Copy)]
pub(crate) struct KernelTables {
    active: Active,
    /// Class of the one address that is judged. It is found before the decision begins: once for all accounts, and with the
    /// stack that the decision needs later.
    class: u32,
}

impl KernelTables {
    /// The generation in force; `None` before the first one is.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        let active = Active(*ACTIVE.get(0)?);
        if active.generation() == 0 { None } else { Some(Self { active, class: NO_CLASS }) }
    }

    /// A generation that was read before, to judge an address of this class, or none.
    #[inline(always)]
    pub(crate) fn of(active: Active, class: u32) -> Self {
        Self { active, class }
    }

    /// The class of an address.
    #[inline(always)]
    pub(crate) fn class_of(&self, address: &Address) -> u32 {
        let [high, low] = address.halves();
        class_of(self.side(), high, low)
    }

    /// Which inner maps belong to it.
    #[inline(always)]
    pub(crate) fn side(&self) -> u32 {
        self.active.side()
    }
}

/// One word of a table.
#[inline(always)]
pub(crate) fn word(table: &ArrayOfMaps<Array<u64, 1, 0x1000>, 2>, side: u32, index: u32) -> Option<u64> {
    // Volatile: a slot is stored by user space while programs run; it is read once, whole.
    // SAFETY: the pointer is what the map lookup returned, valid while the program runs; aligned u64s are read whole.
    table.get_value_ptr_mut(side, &index).map(|word| unsafe { core::ptr::read_volatile(word) })
}

/// One of four 16-bit numbers packed into a word.
#[inline(always)]
fn packed(table: &ArrayOfMaps<Array<u64, 1, 0x1000>, 2>, side: u32, index: u32) -> Option<u32> {
    let word = word(table, side, index >> 2)?;
    Some((word >> ((index & 3) * 16)) as u32 & 0xffff)
}

/// A stance where it lies in its map.
#[derive(Clone, Copy)]
pub(crate) struct Row(*const Stance);

impl StanceRow for Row {
    #[inline(always)]
    fn word(self, of: StanceWord) -> u64 {
        // SAFETY: the pointer is what the map lookup returned, valid while the program runs; the word is one of the value's.
        // Volatile for the reason given at `word`.
        unsafe { core::ptr::read_volatile(self.0.cast::<u64>().add(of as usize)) }
    }
}

impl Tables for KernelTables {
    type Row = Row;

    #[inline(always)]
    fn active(&self) -> Active {
        self.active
    }

    #[inline(always)]
    fn flags(&self, account: u32) -> Option<AccountFlags> {
        word(&FLAGS, self.side(), account).map(AccountFlags)
    }

    #[inline(always)]
    fn slot(&self, account: u32) -> Option<Slot> {
        word(&SLOTS, self.side(), account).map(Slot)
    }

    #[inline(always)]
    fn stance(&self, index: u32) -> Option<Row> {
        STANCES.get_value_ptr_mut(self.side(), &index).map(|row| Row(row.cast_const()))
    }

    #[inline(always)]
    fn address_class(&self, _address: &Address) -> Option<u32> {
        if self.class == NO_CLASS { None } else { Some(self.class) }
    }

    #[inline(always)]
    fn port_class(&self, port: u16) -> Option<u32> {
        packed(&PORTS, self.side(), u32::from(port))
    }

    #[inline(always)]
    fn projection(&self, index: u32) -> Option<u32> {
        packed(&PROJECTIONS, self.side(), index)
    }

    #[inline(always)]
    fn cell(&self, index: u32) -> Option<Cell> {
        word(&CELLS, self.side(), index).map(Cell)
    }

    #[inline(always)]
    fn seen(&self, account: u32, address: &Address) -> bool {
        SEEN.get_ptr(SeenKey { account, address: address.quads() }).is_some()
    }
}

/// What a search says that came to no class.
pub(crate) const NO_CLASS: u32 = u32::MAX;

/// The class of an address, given as its two halves.
///
/// A global function, so that the verifier checks the search once, its stack is given back, and the choice between the trees
/// rests on nothing that is known of a caller's registers (see `judge_attempt`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn class_of(side: u32, high: u64, low: u64) -> u32 {
    // The compiler must not compare the halves one by one: the verifier would follow the search from each.
    let class = if black_box(Address::from_halves([high, low]).beside_v4()) == 0 {
        // SAFETY: the pointer is what the map lookup returned; a node is never written again once its side is in force.
        let node = |at| ADDRESSES_V4.get_value_ptr_mut(side, &at).map(|node| unsafe { &*node });
        class_v4(node, low as u32)
    } else {
        // SAFETY: as above.
        let node = |at| ADDRESSES_V6.get_value_ptr_mut(side, &at).map(|node| unsafe { &*node });
        class_v6(node, [high, low])
    };
    class.unwrap_or(NO_CLASS)
}
