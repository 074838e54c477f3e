//! The tables of one generation as they lie in kernel maps.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, lpm_trie::Key};
use writ_abi::{AccountFlags, Active, Address, Cell, STANCE_WORDS, Slot, StanceWord, Tables};

use crate::map::{ACTIVE, ADDRESSES_V4, ADDRESSES_V6, CELLS, FLAGS, PORTS, PROJECTIONS, SEEN, SLOTS, STANCES, SeenKey};

/// One generation, chosen once per program run.
#[derive(Clone, Copy)]
pub(crate) struct KernelTables {
    active: Active,
}

impl KernelTables {
    /// The generation in force; `None` before the first one is.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        let active = Active(*ACTIVE.get(0)?);
        if active.generation() == 0 { None } else { Some(Self { active }) }
    }

    /// A generation that was read before.
    #[inline(always)]
    pub(crate) fn of(active: Active) -> Self {
        Self { active }
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

impl Tables for KernelTables {
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
    fn stance(&self, index: u32, of: StanceWord) -> Option<u64> {
        word(&STANCES, self.side(), index.wrapping_mul(STANCE_WORDS).wrapping_add(of as u32))
    }

    #[inline(always)]
    fn address_class(&self, address: &Address) -> Option<u32> {
        let [a, b, c, d] = address.quads();
        if address.is_v4() {
            ADDRESSES_V4.get(self.side())?.get(&Key::new(32, d)).copied()
        } else {
            ADDRESSES_V6.get(self.side())?.get(&Key::new(128, [a, b, c, d])).copied()
        }
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
