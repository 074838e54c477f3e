//! Memory that programs and daemon share: each account's budget, and how far a ring has been written and read.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use serde::{Deserialize, Serialize};
use writ_abi::{BUDGETS, Budget, DecisionEvent, ProcessEvent};

/// A mapping of words that others change too.
#[derive(Debug)]
struct Words {
    start: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

// SAFETY: the memory is shared with the kernel anyway, and is only touched through atomics.
unsafe impl Send for Words {}

impl Words {
    fn map(fd: impl AsFd, bytes: usize, offset: usize, protection: ProtFlags) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping of a descriptor, at an address the kernel chooses.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { start: start.cast(), bytes })
    }

    /// The word at an index; `None` behind the end.
    fn at(&self, index: usize) -> Option<&AtomicU64> {
        let inside = index.checked_add(1)?.checked_mul(size_of::<AtomicU64>())? <= self.bytes.get();
        // SAFETY: inside the mapping, which lives as long as `self`; aligned, since mappings begin at a page.
        inside.then(|| unsafe { self.start.add(index).as_ref() })
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: made by `map`, and nobody holds a reference into it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// How large a page is here.
fn page() -> io::Result<usize> {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    size.and_then(|size| usize::try_from(size).ok()).ok_or_else(|| io::Error::other("no page size"))
}

/// What an account has lost, in attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AccountLost {
    /// The ring was full.
    pub ring_full: u64,
    /// The account had its share and the ring was more than half full.
    pub budget: u64,
}

/// Every account's budget.
#[derive(Debug)]
pub(super) struct Budgets {
    rows: Words,
}

/// The words of one row, in the order of [`Budget`].
const ROW: usize = size_of::<Budget>() / size_of::<u64>();
const TAKEN: usize = 1;
const SHARE: usize = 2;
const LOST_RING_FULL: usize = 3;
const LOST_BUDGET: usize = 4;
const STARTS_TAKEN: usize = 6;
const STARTS_SHARE: usize = 7;
const _: () = assert!(std::mem::offset_of!(Budget, starts_share) == STARTS_SHARE * 8 && ROW == 8);

impl Budgets {
    /// Maps the table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub(super) fn map(fd: impl AsFd) -> io::Result<Self> {
        let bytes = (BUDGETS as usize * size_of::<Budget>()).next_multiple_of(page()?);
        Ok(Self { rows: Words::map(fd, bytes, 0, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)? })
    }

    fn word(&self, account: u16, word: usize) -> Option<&AtomicU64> {
        self.rows.at(Budget::row(account) as usize * ROW + word)
    }

    fn set(&self, account: u16, word: usize, value: u64) {
        if let Some(word) = self.word(account, word) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn get(&self, account: u16, word: usize) -> u64 {
        self.word(account, word).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Says which events have been taken, and left the ring.
    pub(super) fn took(&self, decisions: &[DecisionEvent], starts: &[ProcessEvent]) {
        // In ring order: the last of an account stands.
        for event in decisions {
            self.set(event.account, TAKEN, event.issued);
        }
        for event in starts {
            self.set(event.account, STARTS_TAKEN, event.issued);
        }
    }

    /// Divides half of each ring among these accounts and those who are none.
    pub(super) fn divide(&self, accounts: &[u16], decisions: u64, starts: u64) {
        let cpus = aya::util::nr_cpus().map_or(1, |cpus| cpus as u64);
        let sharers = accounts.len() as u64 + 1;
        let share = Budget::share(decisions, size_of::<DecisionEvent>() as u64, sharers, cpus);
        let starts = Budget::share(starts, size_of::<ProcessEvent>() as u64, sharers, cpus);
        for row in 0..BUDGETS {
            let Ok(account) = u16::try_from(row) else { continue };
            let shares = accounts.contains(&account) || row == BUDGETS - 1;
            self.set(account, SHARE, if shares { share } else { 0 });
            self.set(account, STARTS_SHARE, if shares { starts } else { 0 });
        }
    }

    /// What an account has lost since the maps were made.
    pub(super) fn lost(&self, account: u16) -> AccountLost {
        AccountLost { ring_full: self.get(account, LOST_RING_FULL), budget: self.get(account, LOST_BUDGET) }
    }

    /// How many decisions an account may always have in the ring.
    pub(super) fn share(&self, account: u16) -> u64 {
        self.get(account, SHARE)
    }
}

/// How far a ring has been written and read, in bytes since it was made.
#[derive(Debug)]
pub(super) struct Positions {
    read: Words,
    written: Words,
}

impl Positions {
    /// Maps a ring's positions.
    ///
    /// # Errors
    /// The kernel's errno.
    pub(super) fn map(ring: impl AsFd) -> io::Result<Self> {
        // The reader's page comes first, then the writers'.
        let page = page()?;
        let read = Words::map(ring.as_fd(), page, 0, ProtFlags::PROT_READ)?;
        Ok(Self { read, written: Words::map(ring, page, page, ProtFlags::PROT_READ)? })
    }

    /// Up to where entries have been given out.
    pub(super) fn written(&self) -> u64 {
        self.written.at(0).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Up to where entries have been taken.
    pub(super) fn read(&self) -> u64 {
        self.read.at(0).map_or(0, |word| word.load(Ordering::Acquire))
    }
}
