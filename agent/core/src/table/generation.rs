//! The tables of one generation as plain data, and the decision function's view of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use writ_abi::{AccountFlags, Active, Address, Cell, STANCE_WORDS, Slot, Stance, Tables};

use super::layout::Layout;
use super::reach::Common;

/// Why a cell says what it says; cells name it by index. Index 0 is "nothing permits".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// Ids of the determining enforced policies, sorted; empty where nothing permits.
    pub policies: Vec<String>,
    /// Ids that determine the would-be verdict, where an observe-mode policy changes it.
    pub would: Option<Vec<String>>,
    /// Ids of policies whose condition errored.
    pub errors: Vec<String>,
}

/// Everything the kernel holds for one generation, but for the identities of users, cgroups and executables, which the
/// loader resolves on the host (see [`super::Identities`]).
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// Number and flags.
    pub active: u64,
    /// Address classes by prefix; both default routes are always present.
    pub v4: BTreeMap<Ipv4Net, u32>,
    /// Address classes by prefix.
    pub v6: BTreeMap<Ipv6Net, u32>,
    /// Class of each of the 65,536 ports.
    pub ports: Vec<u16>,
    /// Projections, one after the other.
    pub projections: Vec<u16>,
    /// Cells, one row after the other.
    pub cells: Vec<u64>,
    /// Stances by index; 0 refuses everything.
    pub stances: Vec<Stance>,
    /// Digest of each stance's row, by stance index: `stance_digest` of records.
    pub digests: Vec<String>,
    /// Account flags by account index.
    pub flags: Vec<u64>,
    /// Slots by account index.
    pub slots: Vec<u64>,
    /// Names of accounts by index; an index is never given to another account while maps are pinned.
    pub accounts: Vec<String>,
    /// Class of each executable path that a policy or account names; 0 is `unlisted`.
    pub executables: BTreeMap<String, u32>,
    /// Explanations by index; 0 is "nothing permits".
    pub explanations: Vec<Explanation>,
    /// Destinations seen, for decisions in memory.
    pub seen: BTreeSet<(u32, [u8; 16])>,
    pub(super) layout: Layout,
    /// What it tells apart by itself, once somebody asked.
    pub(super) own: OnceLock<Arc<Common>>,
}

impl Generation {
    /// The index of an account.
    pub fn account(&self, name: &str) -> Option<u32> {
        self.accounts.iter().position(|account| account == name).map(|index| index as u32)
    }

    /// The name of an account.
    pub fn account_name(&self, index: u32) -> Option<&str> {
        self.accounts.get(index as usize).map(String::as_str)
    }

    /// Puts an account into a stance.
    pub fn set_slot(&mut self, account: u32, slot: Slot) {
        if let Some(entry) = self.slots.get_mut(account as usize) {
            *entry = slot.0;
        }
    }

    /// What this generation tells apart: [`Common::of`] itself and itself, worked out once for as long as it does not grow.
    pub fn common(&self) -> Arc<Common> {
        Arc::clone(self.own.get_or_init(|| Arc::new(Common::of(self, self))))
    }

    /// The explanation that a cell names.
    pub fn explanation(&self, index: u32) -> Option<&Explanation> {
        self.explanations.get(index as usize)
    }
}

impl Tables for Generation {
    type Row = [u64; STANCE_WORDS as usize];

    fn active(&self) -> Active {
        Active(self.active)
    }

    fn flags(&self, account: u32) -> Option<AccountFlags> {
        self.flags.get(account as usize).copied().map(AccountFlags)
    }

    fn slot(&self, account: u32) -> Option<Slot> {
        self.slots.get(account as usize).copied().map(Slot)
    }

    fn stance(&self, index: u32) -> Option<Self::Row> {
        self.stances.get(index as usize).map(|stance| stance.to_words())
    }

    fn address_class(&self, address: &Address) -> Option<u32> {
        match address.v4() {
            Some(octets) => {
                let host = std::net::Ipv4Addr::from(octets);
                (0..=32u8).rev().find_map(|len| self.v4.get(&Ipv4Net::new(host, len).ok()?.trunc()).copied())
            }
            None => {
                let host = std::net::Ipv6Addr::from(address.octets());
                (0..=128u8).rev().find_map(|len| self.v6.get(&Ipv6Net::new(host, len).ok()?.trunc()).copied())
            }
        }
    }

    fn port_class(&self, port: u16) -> Option<u32> {
        self.ports.get(usize::from(port)).copied().map(u32::from)
    }

    fn projection(&self, index: u32) -> Option<u32> {
        self.projections.get(index as usize).copied().map(u32::from)
    }

    fn cell(&self, index: u32) -> Option<Cell> {
        self.cells.get(index as usize).copied().map(Cell)
    }

    fn seen(&self, account: u32, address: &Address) -> bool {
        self.seen.contains(&(account, address.octets()))
    }
}
