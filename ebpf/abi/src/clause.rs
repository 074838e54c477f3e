//! How a view of the caller (a user, a cgroup, an executable) leads to the accounts it belongs to.

/// How many accounts one attempt can be judged for; more is refused as `too-many-accounts`.
pub const MAX_SUBJECTS: usize = 4;

/// How many clauses one view can lead to; `check` refuses configurations beyond it.
pub const MAX_CLAUSES: u32 = 8;

/// Words of the filter of users; behind them lie the rows of subordinate uids: their number, then two words for each.
pub const USER_FILTER_WORDS: u32 = 1024;

/// How many rows of subordinate uids the kernel looks through.
pub const MOST_SUBORDINATES: u32 = 65_536;

/// Uids below are not looked for among subordinates (`SUB_UID_MIN` of login.defs(5) is 100,000); `check` warns of rows that
/// begin there.
pub const LEAST_SUBORDINATE: u32 = 0x1_0000;

/// What a view's map entry says: nothing, exactly one account, or a list of clauses.
///
/// 0: the view is known and belongs to no account. Bit 31 set: the account in bits 0–15 matches by this view alone.
/// Otherwise the index of a list in the clause table: its first word is the number of clauses, which follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ClauseList(pub u32);

impl ClauseList {
    /// A view that belongs to no account.
    pub const NONE: Self = Self(0);
    const DIRECT: u32 = 1 << 31;

    /// A view that alone makes the caller this account.
    pub const fn direct(account: u16) -> Self {
        Self(Self::DIRECT | account as u32)
    }

    /// The account, if the view alone decides.
    #[inline(always)]
    pub const fn account(self) -> Option<u16> {
        if self.0 & Self::DIRECT != 0 { Some(self.0 as u16) } else { None }
    }
}

/// One `match` table of an account, anchored at one of its keys (cgroup before executable before user); what remains to
/// be compared is the selector number of the other keys, 0 where the clause has no such key.
///
/// Bits 0–15 account, 16–39 user selector, 40–63 executable selector. A user's selector is its uid's number in the
/// generation; an executable's is its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Clause(pub u64);

impl Clause {
    /// Packs a clause. Selectors use 24 bits.
    pub const fn new(account: u16, user: u32, executable: u32) -> Self {
        Self(account as u64 | ((user & 0xff_ffff) as u64) << 16 | ((executable & 0xff_ffff) as u64) << 40)
    }

    /// The account.
    #[inline(always)]
    pub const fn account(self) -> u16 {
        self.0 as u16
    }

    /// Number of the user selector that one of the user views must have, or 0.
    #[inline(always)]
    pub const fn user(self) -> u32 {
        (self.0 >> 16) as u32 & 0xff_ffff
    }

    /// Class of the executable that the task must run, or 0.
    #[inline(always)]
    pub const fn executable(self) -> u32 {
        (self.0 >> 40) as u32 & 0xff_ffff
    }
}
