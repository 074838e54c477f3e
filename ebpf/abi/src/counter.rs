//! What the kernel side counts, so that everything seen is either recorded or counted as lost.

/// One per-CPU counter of the kernel side. `Seen = Recorded + LostRingFull + LostBudget`, on every CPU,
/// but for attempts that are between two counters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Attempts of managed accounts judged; also the source of sequence numbers.
    Seen = 0,
    /// Events handed to the ring.
    Recorded = 1,
    /// Events lost because the ring was full.
    LostRingFull = 2,
    /// Events lost because the account had used up its share of the ring.
    LostBudget = 3,
    /// Repeats of a datagram counted into an earlier event.
    Folded = 4,
    /// Process events (exec) handed to their ring.
    ProcessRecorded = 5,
    /// Process events lost because their ring was full.
    ProcessLost = 6,
    /// Attempts refused because the caller could not be identified.
    IdentityUnknown = 7,
    /// Attempts refused because of a missing slot, stance, class or cell.
    MissingRow = 8,
    /// Attempts judged by a fallback stance.
    Expired = 9,
    /// Attempts refused because no record could be made.
    RecordLossDenied = 10,
    /// Cgroups met that had not been classified when they were made.
    CgroupUnclassified = 11,
    /// A destination could not be remembered: the account's quota or the map was full.
    SeenMapFull = 12,
    /// A process's lineage could not be remembered: the map was full. That it has one is, and what it attempts is refused.
    LineageFull = 13,
    /// Attempts that more accounts matched than can be judged.
    TooManyAccounts = 14,
    /// A cgroup's class could not be remembered: the map was full, and every attempt in it is classified anew.
    CgroupMapFull = 15,
    /// Connects refused because the session could not be listed for the daemon: the kernel had no memory for it.
    SessionMapFull = 16,
    /// Packets of sessions that are no longer allowed, stopped on their way out.
    EgressStopped = 17,
    /// Process events lost because the account had used up its share of their ring.
    ProcessBudget = 18,
    /// Connects refused because the account has as many sessions open as it may.
    SessionQuota = 19,
    /// A cgroup that a match names could not be remembered: until the next generation, whoever is in a cgroup that leads to
    /// no account and was not met before is refused.
    CgroupLost = 20,
}

/// How many counters there are.
pub const COUNTERS: u32 = 21;

impl Counter {
    /// Every counter, in the order of its number.
    pub const ALL: [Self; COUNTERS as usize] = [
        Self::Seen,
        Self::Recorded,
        Self::LostRingFull,
        Self::LostBudget,
        Self::Folded,
        Self::ProcessRecorded,
        Self::ProcessLost,
        Self::IdentityUnknown,
        Self::MissingRow,
        Self::Expired,
        Self::RecordLossDenied,
        Self::CgroupUnclassified,
        Self::SeenMapFull,
        Self::LineageFull,
        Self::TooManyAccounts,
        Self::CgroupMapFull,
        Self::SessionMapFull,
        Self::EgressStopped,
        Self::ProcessBudget,
        Self::SessionQuota,
        Self::CgroupLost,
    ];

    /// The counter's name in `status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Recorded => "recorded",
            Self::LostRingFull => "lost-ring-full",
            Self::LostBudget => "lost-budget",
            Self::Folded => "folded",
            Self::ProcessRecorded => "process-recorded",
            Self::ProcessLost => "process-lost",
            Self::IdentityUnknown => "identity-unknown",
            Self::MissingRow => "missing-row",
            Self::Expired => "expired",
            Self::RecordLossDenied => "record-loss-denied",
            Self::CgroupUnclassified => "cgroup-unclassified",
            Self::SeenMapFull => "seen-map-full",
            Self::LineageFull => "lineage-full",
            Self::TooManyAccounts => "too-many-accounts",
            Self::CgroupMapFull => "cgroup-map-full",
            Self::SessionMapFull => "session-map-full",
            Self::EgressStopped => "egress-stopped",
            Self::ProcessBudget => "process-budget",
            Self::SessionQuota => "session-quota",
            Self::CgroupLost => "cgroup-lost",
        }
    }
}
