//! What an account may do now, as the kernel holds it: the active generation, the account's slot, and the stance it names.

/// A boot-time instant that is never reached.
pub const NEVER: u64 = u64::MAX;

/// How many 64-bit words a stance occupies in its table.
pub const STANCE_WORDS: u32 = 8;

/// The one word every program run reads first: the generation in force and what its lookups can leave out.
///
/// Bits 0–31 generation (its lowest bit selects the inner maps), 32 upwards flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Active(pub u64);

impl Active {
    /// Some account is matched by unit or cgroup.
    pub const MATCHES_CGROUPS: u64 = 1 << 32;
    /// Some account is matched by executable.
    pub const MATCHES_EXECUTABLES: u64 = 1 << 33;
    /// The executable is an input of some policy.
    pub const CLASSES_EXECUTABLES: u64 = 1 << 34;
    /// The global mode is observe.
    pub const OBSERVE: u64 = 1 << 35;
    /// Some account's policies name AF_UNIX or AF_NETLINK sockets.
    pub const JUDGES_LOCAL: u64 = 1 << 36;
    /// The log cannot be written: accounts for which no record means no access are refused.
    pub const LOG_FAILS: u64 = 1 << 40;

    /// The number of the generation; it only ever grows while the maps are pinned.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    /// Which of the two inner maps of every outer map belongs to it.
    #[inline(always)]
    pub const fn side(self) -> u32 {
        (self.0 & 1) as u32
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// What holds for an account in every stance of a generation; one 64-bit word per account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct AccountFlags(pub u64);

impl AccountFlags {
    /// The account is declared in this generation.
    pub const PRESENT: u64 = 1;
    /// Verdicts are reported, not enforced.
    pub const OBSERVE: u64 = 1 << 1;
    /// No record means no access.
    pub const RECORD_LOSS_DENIES: u64 = 1 << 2;
    /// Everything is refused until the account is reinstated.
    pub const OFFBOARDED: u64 = 1 << 3;
    /// A policy of the account names AF_UNIX sockets, so they are judged.
    pub const JUDGES_UNIX: u64 = 1 << 4;
    /// A policy of the account names AF_NETLINK sockets, so they are judged.
    pub const JUDGES_NETLINK: u64 = 1 << 5;
    const ERRNO_SHIFT: u32 = 16;

    /// The errno a refused call returns sits in bits 16–31.
    pub const fn with_errno(self, errno: u16) -> Self {
        Self(self.0 & !(0xffff << Self::ERRNO_SHIFT) | (errno as u64) << Self::ERRNO_SHIFT)
    }

    /// The errno a refused call returns; 0 means the kernel's default, EPERM.
    #[inline(always)]
    pub const fn errno(self) -> u16 {
        (self.0 >> Self::ERRNO_SHIFT) as u16
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// Which stance an account is in: bits 0–31 its index, 32–63 the epoch, which grows with every change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Slot(pub u64);

impl Slot {
    /// Packs a slot.
    pub const fn new(stance: u32, epoch: u32) -> Self {
        Self(stance as u64 | (epoch as u64) << 32)
    }

    /// Index of the stance.
    #[inline(always)]
    pub const fn stance(self) -> u32 {
        self.0 as u32
    }

    /// Epoch of the account.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One stance: where its row lies in the tables, how the classes project onto it, and how long it holds.
///
/// Cell index = `cells + (((executable · addresses + address) · ports + port) · PROTOCOLS + protocol) · 2 + new`, each factor
/// being the projection of a global class (see [`crate::Tables::projection`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stance {
    /// Boot-time nanoseconds from which the fallback holds; [`NEVER`] if it does not expire.
    pub valid_until: u64,
    /// Boot-time nanoseconds until which verdicts are only observed (break-glass); 0 if never, [`NEVER`] if always.
    pub observe_until: u64,
    /// Boot-time nanoseconds until which `new_destination` stays false and destinations are learnt; 0 if never.
    pub learning_until: u64,
    /// Index of the stance that holds after `valid_until`. A fallback does not expire itself.
    pub fallback: u32,
    /// First cell of the row.
    pub cells: u32,
    /// First cell of the socket families ([`crate::FAMILIES`] cells).
    pub families: u32,
    /// Base of the executables' projection.
    pub executable_base: u32,
    /// Base of the address classes' projection.
    pub address_base: u32,
    /// Base of the port classes' projection.
    pub port_base: u32,
    /// Number of projected address classes.
    pub addresses: u32,
    /// Number of projected port classes.
    pub ports: u32,
}

/// A stance as it lies in its table: found once, read word by word (a BPF program's stack is small).
pub trait StanceRow: Copy {
    /// One word of it (see [`Stance::to_words`]).
    fn word(self, of: StanceWord) -> u64;
}

impl StanceRow for [u64; STANCE_WORDS as usize] {
    #[inline(always)]
    fn word(self, of: StanceWord) -> u64 {
        let [a, b, c, d, e, f, g, h] = self;
        match of {
            StanceWord::ValidUntil => a,
            StanceWord::ObserveUntil => b,
            StanceWord::LearningUntil => c,
            StanceWord::FallbackCells => d,
            StanceWord::FamiliesExecutables => e,
            StanceWord::Bases => f,
            StanceWord::Counts => g,
            StanceWord::Present => h,
        }
    }
}

/// Names of a stance's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum StanceWord {
    /// `valid_until`
    ValidUntil = 0,
    /// `observe_until`
    ObserveUntil = 1,
    /// `learning_until`
    LearningUntil = 2,
    /// `fallback` (low half) and `cells`
    FallbackCells = 3,
    /// `families` and `executable_base`
    FamiliesExecutables = 4,
    /// `address_base` and `port_base`
    Bases = 5,
    /// `addresses` and `ports`
    Counts = 6,
    /// 1 where a stance was written
    Present = 7,
}

/// The two halves of a word, low one first.
#[inline(always)]
pub(crate) const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl Stance {
    /// The stance as table words.
    pub const fn to_words(self) -> [u64; STANCE_WORDS as usize] {
        [
            self.valid_until,
            self.observe_until,
            self.learning_until,
            self.fallback as u64 | (self.cells as u64) << 32,
            self.families as u64 | (self.executable_base as u64) << 32,
            self.address_base as u64 | (self.port_base as u64) << 32,
            self.addresses as u64 | (self.ports as u64) << 32,
            1, // present: an unwritten stance is all zeroes
        ]
    }

    /// The stance in these table words; `None` if it was never written.
    #[inline(always)]
    pub const fn from_words(words: [u64; STANCE_WORDS as usize]) -> Option<Self> {
        let [valid_until, observe_until, learning_until, a, b, c, d, present] = words;
        if present != 1 {
            return None;
        }
        Some(Self {
            valid_until,
            observe_until,
            learning_until,
            fallback: a as u32,
            cells: (a >> 32) as u32,
            families: b as u32,
            executable_base: (b >> 32) as u32,
            address_base: c as u32,
            port_base: (c >> 32) as u32,
            addresses: d as u32,
            ports: (d >> 32) as u32,
        })
    }
}
