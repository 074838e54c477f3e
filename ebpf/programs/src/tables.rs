//! The tables of one generation as they lie in kernel maps.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, lpm_trie::Key};
use writ_abi::{AccountFlags, Active, Address, Cell, STANCE_WORDS, Slot, Stance, Tables};

use crate::map::{
    ACTIVE, ADDRESSES_V4, ADDRESSES_V6, CELLS, FLAGS, PORTS, PROJECTIONS, SEEN, SLOTS, STANCES, SeenKey,
};

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
    fn stance(&self, index: u32) -> Option<Stance> {
        let side = self.side();
        let first = index.wrapping_mul(STANCE_WORDS);
        let at = |offset: u32| word(&STANCES, side, first.wrapping_add(offset));
        Stance::from_words([at(0)?, at(1)?, at(2)?, at(3)?, at(4)?, at(5)?, at(6)?, at(7)?])
    }

    #[inline(always)]
    fn address_class(&self, address: &Address) -> Option<u32> {
        match address.v4() {
            Some(octets) => ADDRESSES_V4.get(self.side())?.get(&Key::new(32, octets)).copied(),
            None => ADDRESSES_V6.get(self.side())?.get(&Key::new(128, address.0)).copied(),
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
        SEEN.get_ptr(SeenKey { account, address: address.0 }).is_some()
    }
}
