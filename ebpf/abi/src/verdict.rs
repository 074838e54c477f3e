//! What can be decided, why, and how one table cell says so.

/// The judgement of one attempt. The order is strictness: of several, the greatest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// Policy permits it.
    Allow = 1,
    /// Only escalating policies forbid it: refused now, a person may approve.
    Escalate = 2,
    /// Refused.
    Deny = 3,
}

impl Verdict {
    /// The verdict a table or event carries; anything unknown is a deny.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Allow,
            2 => Self::Escalate,
            _ => Self::Deny,
        }
    }
}

/// Why a verdict was reached: `policy` is the ordinary case, every other value is a named fallback.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Reason {
    /// The cell of the current stance.
    Policy = 1,
    /// The current stance had expired; the cell of its fallback.
    Expired = 2,
    /// A policy's condition errored for this class of connects: the cell denies.
    PolicyError = 3,
    /// The account has no slot in this generation.
    NoSlot = 4,
    /// The slot names a stance that is not there.
    NoStance = 5,
    /// The address, port or executable has no class.
    NoClass = 6,
    /// The stance has no such cell.
    NoCell = 7,
    /// The identity of the caller could not be read.
    IdentityUnknown = 8,
    /// More accounts match the caller than can be judged.
    TooManyAccounts = 9,
    /// The record could not be handed over and the account demands one.
    RecordLoss = 10,
    /// The address could not be read.
    NoAddress = 11,
    /// The account is offboarded: everything is refused.
    Offboarded = 12,
    /// The session could not be remembered with its socket, so it could not be ended later.
    Untracked = 13,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 13] = [
        Self::Policy,
        Self::Expired,
        Self::PolicyError,
        Self::NoSlot,
        Self::NoStance,
        Self::NoClass,
        Self::NoCell,
        Self::IdentityUnknown,
        Self::TooManyAccounts,
        Self::RecordLoss,
        Self::NoAddress,
        Self::Offboarded,
        Self::Untracked,
    ];

    /// The reason with this number, if there is one.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == bits)
    }

    /// Whether it is what policies said; any other has no policy that determined it.
    pub const fn is_of_policy(self) -> bool {
        matches!(self, Self::Policy | Self::Expired | Self::PolicyError)
    }

    /// The `reason_code` of records.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Expired => "stance-expired",
            Self::PolicyError => "policy-error",
            Self::NoSlot => "no-slot",
            Self::NoStance => "no-stance",
            Self::NoClass => "no-class",
            Self::NoCell => "no-cell",
            Self::IdentityUnknown => "identity-unknown",
            Self::TooManyAccounts => "too-many-accounts",
            Self::RecordLoss => "record-loss",
            Self::NoAddress => "no-address",
            Self::Offboarded => "offboarded",
            Self::Untracked => "session-untracked",
        }
    }
}

/// The transport protocols that `Action::"connect"` knows. Every other protocol needs `Action::"open-socket"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, MPTCP included.
    Tcp = 0,
    /// UDP.
    Udp = 1,
}

/// How many protocols a row distinguishes.
pub const PROTOCOLS: u32 = 2;

impl Protocol {
    /// The protocol with this number, if there is one.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Tcp),
            1 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `tcp` or `udp`, as policies and records write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One compiled cell: the verdict for a class of attempts, what observe-mode policies would have said, and the number of
/// the explanation (the determining policies) in the generation's list.
///
/// Bits 0–7 verdict, 8–15 would-be verdict, 16–23 reason, 32–63 explanation. Zero is "no cell".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Cell(pub u64);

impl Cell {
    /// Packs a cell.
    pub const fn new(verdict: Verdict, would: Verdict, reason: Reason, explanation: u32) -> Self {
        Self(verdict as u64 | (would as u64) << 8 | (reason as u64) << 16 | (explanation as u64) << 32)
    }

    /// The enforced verdict.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        Verdict::from_bits(self.0 as u8)
    }

    /// The verdict with observe-mode policies counted in.
    #[inline(always)]
    pub const fn would(self) -> Verdict {
        Verdict::from_bits((self.0 >> 8) as u8)
    }

    /// The reason's number (see [`Reason::from_bits`]).
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The explanation's index.
    #[inline(always)]
    pub const fn explanation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
