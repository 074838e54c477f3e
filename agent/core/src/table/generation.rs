//! The tables of one generation as plain data, and the decision function's view of them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use writ_abi::{AccountFlags, Active, Address, Cell, Clause, ClauseList, Slot, Stance, StanceWord, Tables};

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
/// loader resolves on the host (see [`Identities`]).
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
    /// Stances by index.
    pub stances: Vec<Stance>,
    /// Account flags by account index.
    pub flags: Vec<u64>,
    /// Slots by account index.
    pub slots: Vec<u64>,
    /// Names of accounts by index; an index is never given to another account while maps are pinned.
    pub accounts: Vec<String>,
    /// Class of each executable path that a policy or account names; 0 is `unlisted`.
    pub executables: BTreeMap<String, u32>,
    /// Explanations by index.
    pub explanations: Vec<Explanation>,
    /// Destinations seen, for decisions in memory.
    pub seen: BTreeSet<(u32, [u8; 16])>,
}

/// Which host identities lead to which accounts, resolved by the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identities {
    /// By uid: selector number (from 1) and list.
    pub users: BTreeMap<u32, (u32, ClauseList32)>,
    /// By system unit name.
    pub units: BTreeMap<String, ClauseList32>,
    /// By cgroup path below the cgroup2 mount.
    pub cgroups: BTreeMap<String, ClauseList32>,
    /// By device (kernel encoding) and inode.
    pub executables: BTreeMap<(u32, u64), (u32, ClauseList32)>,
    /// The clause table; index 0 is unused.
    pub clauses: Vec<u64>,
}

/// A [`ClauseList`] in a map.
pub type ClauseList32 = u32;

/// Keeps the clause types in one place for readers of [`Identities`].
pub const NO_ACCOUNT: ClauseList = ClauseList::NONE;

impl Tables for Generation {
    fn active(&self) -> Active {
        Active(self.active)
    }

    fn flags(&self, account: u32) -> Option<AccountFlags> {
        self.flags.get(account as usize).copied().map(AccountFlags)
    }

    fn slot(&self, account: u32) -> Option<Slot> {
        self.slots.get(account as usize).copied().map(Slot)
    }

    fn stance(&self, index: u32, word: StanceWord) -> Option<u64> {
        self.stances.get(index as usize)?.to_words().get(word as usize).copied()
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

/// Packs a clause for [`Identities::clauses`].
pub fn clause(account: u16, user: u32, executable: u32) -> u64 {
    Clause::new(account, user, executable).0
}
