//! A session: one connection that was let through, as the kernel remembers it for as long as its socket lives.

use crate::Address;

/// How many accounts one session can belong to.
pub const SESSION_ACCOUNTS: usize = 4;
/// No account: an unused place in [`Session::accounts`].
pub const SESSION_NOBODY: u16 = u16::MAX;

/// What a session was let through as. Kept with the socket (for the egress program) and by cookie (for the daemon).
///
/// Append-only: it outlives generations and, pinned, the daemon. Times are boot-time nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Session {
    /// When it was let through.
    pub opened: u64,
    /// For how long that is known to hold (see [`seal`]); 0: judge again with the next packet.
    pub held: u64,
    /// Number of the decision on its CPU.
    pub sequence: u64,
    /// Cookie of the socket.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Inode of the executable that connected; 0: it was not asked for. Not its class: a later generation has others.
    pub executable_inode: u64,
    /// The destination that was judged.
    pub address: Address,
    /// Where its socket sends from: what it takes, with the destination and the cookie, to close it without a search.
    pub source: Address,
    /// Epochs of the accounts when it was last judged.
    pub epochs: [u32; SESSION_ACCOUNTS],
    /// The accounts that were judged.
    pub accounts: [u16; SESSION_ACCOUNTS],
    /// Generation of the decision.
    pub generation: u32,
    /// Device of the executable that connected, as the kernel writes it.
    pub executable_device: u32,
    /// CPU of the decision.
    pub cpu: u32,
    /// The process that connected.
    pub pid: u32,
    /// Port, in host byte order.
    pub port: u16,
    /// The account that the decision names.
    pub account: u16,
    /// Protocol (see [`crate::Protocol`]).
    pub protocol: u8,
    /// How it came to be known (`SESSION_…`).
    pub state: u8,
    /// Where it is counted while its socket is open (`ROOM_…`).
    pub room: u8,
    /// 1 if its socket was let through to somewhere else before: whether it went there is asked of it with each packet. A
    /// connect that was let through can still fail, and leave a datagram socket where it was.
    pub moved: u8,
    /// Port it sends from, in host byte order; 0: no packet has been seen yet, and [`Session::source`] says nothing.
    pub source_port: u16,
    /// Nothing.
    pub reserved: [u16; 3],
}

/// How many sessions the list has room for.
pub const SESSIONS: u32 = 262_144;
/// How many of them accounts may have beyond their share, all together.
pub const SESSIONS_SHARED: u64 = SESSIONS as u64 / 4;
/// [`Session::room`]: not counted, as what the daemon found open.
pub const ROOM_NONE: u8 = 0;
/// [`Session::room`]: counted in the account's own share.
pub const ROOM_OWN: u8 = 1;
/// [`Session::room`]: counted in what is there for all.
pub const ROOM_SHARED: u8 = 2;

/// How many sessions each of so many accounts may always have: half the list, evenly, so that no account can take the room
/// of another. A quarter is for whoever needs more, the last one for what was found open when writ started. At least one.
pub const fn session_share(accounts: u64) -> u64 {
    let share = SESSIONS as u64 / 2 / if accounts == 0 { 1 } else { accounts };
    if share == 0 { 1 } else { share }
}

/// [`Session::state`]: let through by a connect hook.
pub const SESSION_JUDGED: u8 = 0;
/// [`Session::state`]: made before writ judged, found by the daemon.
pub const SESSION_FOUND: u8 = 1;
/// [`Session::state`]: found like that, refused by policy then, and left alone until its account's access is tightened.
pub const SESSION_TOLERATED: u8 = 3;
/// [`Session::cpu`] of a session that was found: [`Session::sequence`] is the number of the agent's record then.
pub const SESSION_FOUND_CPU: u32 = u32::MAX;
/// [`Session::state`]: refused since, and only its packets could be stopped.
pub const SESSION_STOPPED: u8 = 2;

const EPOCH_BITS: u32 = 24;
const MILLISECOND: u64 = 1_000_000;

/// "Allowed until" and the epochs this was judged in as one word, so that it is stored and read whole: two packets judged
/// at once in different epochs must not leave the deadline of the one with the epoch of the other.
#[inline(always)]
pub const fn seal(until: u64, epochs: &[u32; SESSION_ACCOUNTS]) -> u64 {
    let [a, b, c, d] = *epochs;
    seal_mixed(until, a ^ b ^ c ^ d)
}

/// The same of epochs that were put together already, by exclusive or.
#[inline(always)]
pub const fn seal_mixed(until: u64, epochs: u32) -> u64 {
    // Rounded down: near the deadline every packet is judged, none is let through late.
    let most = u64::MAX >> EPOCH_BITS;
    let milliseconds = until / MILLISECOND;
    let milliseconds = if milliseconds > most { most } else { milliseconds };
    milliseconds << EPOCH_BITS | (epochs & ((1 << EPOCH_BITS) - 1)) as u64
}

#[inline(always)]
const fn mixed(epochs: &[u32; SESSION_ACCOUNTS]) -> u64 {
    let [a, b, c, d] = *epochs;
    ((a ^ b ^ c ^ d) & ((1 << EPOCH_BITS) - 1)) as u64
}

/// Whether a sealed judgement of these epochs still holds.
#[inline(always)]
pub const fn holds(sealed: u64, epochs: &[u32; SESSION_ACCOUNTS], now: u64) -> bool {
    sealed & ((1 << EPOCH_BITS) - 1) == mixed(epochs) && now / MILLISECOND < sealed >> EPOCH_BITS
}

/// Whether a sealed judgement ends with time: if not, the clock need not be read.
#[inline(always)]
pub const fn ends_by_time(sealed: u64) -> bool {
    sealed >> EPOCH_BITS != u64::MAX >> EPOCH_BITS
}
