//! Sessions: what was let through is remembered with its socket, and stopped on its way out once it is allowed no more.
//!
//! The daemon ends such sessions at once, by closing their sockets. This is what holds when it cannot: because it is dead,
//! because the stance ran out by itself, because the socket is beyond its reach.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_sk_storage_get,
    },
    macros::{cgroup_skb, cgroup_sock},
    programs::{SkBuffContext, SockContext},
};
use writ_abi::{
    AccountFlags, Active, Address, BUDGETS, Budget, Counter, Hook, Protocol, ROOM_NONE, ROOM_OWN, ROOM_SHARED, Reason,
    SESSION_ACCOUNTS, SESSION_FOUND, SESSION_JUDGED, SESSION_TOLERATED, SESSIONS_SHARED, Session, Tables, Verdict,
    ends_by_time, holds, seal, seal_mixed,
};

use crate::{
    connect::{self, PASS, REFUSE},
    emit::{self, Outcome, Seen, count},
    identity::{Caller, NOBODY},
    map::{COUNTS, EXECUTABLES, ExecutableKey, FOUND, SESSIONS, SESSIONS_SHARE, SESSIONS_USED, TRACKED},
    tables::{KernelTables, NO_CLASS},
};

const AF_INET: u32 = 2;

/// The session kept with a socket: null if there is none.
#[inline(always)]
fn stored(socket: *mut c_void, flags: u32) -> *mut Session {
    let map = (&raw const TRACKED).cast_mut().cast::<c_void>();
    // SAFETY: the verifier sees that the map is one of socket storage, and that the socket is one; null makes new storage
    // all zeroes.
    unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), u64::from(flags)).cast() }
}

/// The session of a socket that was open before writ judged, by its cookie: null if there is none.
#[inline(always)]
fn found_open(context: *mut c_void) -> *mut Session {
    if FOUND.get(0).is_none_or(|listed| *listed == 0) {
        return core::ptr::null_mut();
    }
    // SAFETY: the context of a program on packets or on sockets, which is what the helper takes.
    let cookie = unsafe { bpf_get_socket_cookie(context) };
    SESSIONS.get_ptr_mut(cookie).unwrap_or(core::ptr::null_mut())
}

/// Remembers what is let through. What cannot be remembered could not be ended, so it is refused; a program cannot bring
/// that about to escape (by filling its socket's option memory) without being refused.
///
/// The kernel holds the socket's lock around connect hooks, so nobody else writes here; the egress program reads, and
/// judges again whatever it does not find sealed.
#[inline(never)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be copied to the stack")]
pub(crate) fn track(active: u64, caller: &Caller, seen: &Seen, outcome: &mut Outcome, context: *mut c_void) {
    // SAFETY: the context of the connect hooks, which alone are tracked; the member is read once.
    let socket = unsafe { (*context.cast::<bpf_sock_addr>()).__bindgen_anon_1.sk };
    let session =
        if socket.is_null() { core::ptr::null_mut() } else { stored(socket.cast(), BPF_SK_STORAGE_GET_F_CREATE) };
    if session.is_null() {
        return refuse(outcome);
    }
    // SAFETY: the pointer is what the storage lookup returned. New storage is all zeroes: not counted.
    let room = unsafe { take_room(outcome.account, (*session).account, (*session).room) };
    if room == ROOM_NONE {
        count(Counter::SessionQuota);
        return refuse(outcome);
    }
    let [_, second, ..] = caller.accounts;
    let epoch = outcome.decision.epoch;
    // Several accounts: their epochs are learnt with the first packet, which is judged again.
    let epochs = if second == NOBODY { [epoch, 0, 0, 0] } else { [0; SESSION_ACCOUNTS] };
    let until = if second == NOBODY { outcome.decision.until } else { 0 };
    // SAFETY: the pointer is what the storage lookup returned.
    let moved = unsafe {
        let elsewhere = (*session).address != seen.address || (*session).port != seen.port;
        seen.protocol == Protocol::Udp as u8 && ((*session).moved != 0 || (*session).opened != 0 && elsewhere)
    };
    // SAFETY: the pointer is what the storage lookup returned; the helpers have no preconditions.
    unsafe {
        (*session).held = 0;
        (*session).opened = outcome.at;
        // The number that `emit::decision` gives this attempt next. Another task can be judged on this CPU in between; then
        // the session names that decision, and nothing else comes of it.
        (*session).sequence = sequence();
        [(*session).cookie, (*session).netns] = outcome.cookies;
        (*session).address = seen.address;
        (*session).epochs = epochs;
        (*session).accounts = caller.accounts;
        (*session).generation = Active(active).generation();
        (*session).executable_inode = caller.executable.inode;
        (*session).executable_device = caller.executable.device;
        (*session).cpu = bpf_get_smp_processor_id();
        (*session).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*session).port = seen.port;
        (*session).account = outcome.account;
        (*session).protocol = seen.protocol;
        (*session).state = SESSION_JUDGED;
        (*session).room = room;
        (*session).moved = u8::from(moved);
        (*session).source_port = 0;
        (*session).held = if until == 0 { 0 } else { seal(until, &epochs) };
        if SESSIONS.insert((*session).cookie, &*session, 0).is_err() {
            // The daemon could not find it to cut it.
            count(Counter::SessionMapFull);
            refuse(outcome);
        }
    }
}

/// What cannot be remembered is refused.
#[inline(always)]
fn refuse(outcome: &mut Outcome) {
    outcome.decision.verdict = Verdict::Deny;
    outcome.decision.would = Verdict::Deny;
    outcome.decision.reason = Reason::Untracked;
    outcome.decision.learn = false;
}

/// Counts a session of an account for as long as its socket is open: in the account's own share, or in what is there for
/// all. The socket may be counted already, for what it was connected to before. [`ROOM_NONE`] if there is no room.
#[inline(always)]
fn take_room(account: u16, counted_for: u16, counted: u8) -> u8 {
    if counted == ROOM_SHARED || counted == ROOM_OWN && counted_for == account {
        return counted;
    }
    let (Some(share), Some(own), Some(shared)) =
        (SESSIONS_SHARE.get(0), SESSIONS_USED.get_ptr_mut(Budget::row(account)), SESSIONS_USED.get_ptr_mut(BUDGETS))
    else {
        return ROOM_NONE;
    };
    // SAFETY: the pointers are what the map lookups returned; aligned words. What was taken too much is given back.
    let room = unsafe {
        if emit::increment(own) < *share {
            ROOM_OWN
        } else {
            emit::decrement(own);
            if emit::increment(shared) < SESSIONS_SHARED {
                ROOM_SHARED
            } else {
                emit::decrement(shared);
                ROOM_NONE
            }
        }
    };
    if room != ROOM_NONE {
        give_back(counted_for, counted);
    }
    room
}

/// Uncounts a session.
#[inline(always)]
fn give_back(account: u16, room: u8) {
    let row = match room {
        ROOM_OWN => Budget::row(account),
        ROOM_SHARED => BUDGETS,
        _ => return,
    };
    if let Some(used) = SESSIONS_USED.get_ptr_mut(row) {
        // SAFETY: the pointer is what the map lookup returned; an aligned word.
        unsafe { emit::decrement(used) };
    }
}

#[inline(always)]
fn sequence() -> u64 {
    let Some(counts) = COUNTS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer is what the map lookup returned; the counter's number is below the array's length.
    unsafe { core::ptr::read_volatile(counts.cast::<u64>().add(Counter::Seen as usize)) + 1 }
}

/// A socket being closed: its session is over.
#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(context: SockContext) -> i32 {
    let session = stored(context.as_ptr(), 0);
    if !session.is_null() {
        // SAFETY: the pointer is what the storage lookup returned. That nothing is listed is no error.
        unsafe {
            let _ = SESSIONS.remove((*session).cookie);
            give_back((*session).account, (*session).room);
            (*session).room = ROOM_NONE;
        }
        return PASS;
    }
    let session = found_open(context.as_ptr());
    if !session.is_null() {
        // SAFETY: as above. What was found open is counted nowhere.
        let _ = unsafe { SESSIONS.remove((*session).cookie) };
    }
    PASS
}

/// A packet on its way out. Most sockets have no session, and most sessions hold: both leave after a few lookups.
#[cgroup_skb(egress)]
pub(crate) fn egress(context: SkBuffContext) -> i32 {
    // SAFETY: the kernel hands the program a valid `__sk_buff`; the member is read once.
    let socket = unsafe { (*context.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return PASS;
    }
    let mut session = stored(socket.cast(), 0);
    if session.is_null() {
        session = found_open(context.as_ptr());
        if session.is_null() {
            return PASS;
        }
    }
    if has_options(&context) {
        // Source routing sends a packet elsewhere than the address that was judged; no other option is worth the difference.
        count(Counter::EgressStopped);
        return REFUSE;
    }
    let Some(tables) = KernelTables::current() else { return PASS };
    // SAFETY: the pointers are what the storage lookup returned, and the socket of the packet.
    unsafe {
        if (*session).moved != 0 {
            follow(session, socket);
        }
        if (*session).source_port == 0 {
            learn_source(session, socket);
        }
    }
    // SAFETY: the pointer is what the storage lookup returned; `held` is stored whole.
    let (sealed, accounts, epochs) =
        unsafe { (core::ptr::read_volatile(&raw const (*session).held), (*session).accounts, (*session).epochs) };
    let now = if ends_by_time(sealed) { connect::now() } else { 0 };
    if holds(sealed, &epochs, now) && unmoved(&tables, &accounts, &epochs) {
        return PASS;
    }
    let refused = judge_session(tables.active().0, session, connect::now()) != 0;
    // SAFETY: the pointer is what the storage lookup returned.
    let tolerated = unsafe { (*session).state } == SESSION_TOLERATED;
    if !refused && tolerated {
        // It is allowed by now: from here on it is a session like any other.
        // SAFETY: as above.
        unsafe { (*session).state = SESSION_FOUND };
    }
    if !refused || tolerated || ends(&context) {
        return PASS;
    }
    count(Counter::EgressStopped);
    REFUSE
}

/// Has a session be of what its socket is connected to, if that is not what was let through last.
///
/// # Safety
/// `session` is a whole value, `socket` the socket of a packet.
#[inline(always)]
unsafe fn follow(session: *mut Session, socket: *mut bpf_sock) {
    // SAFETY: the caller's promise; each member is read by itself, as the kernel wants it.
    let (given, port) = unsafe {
        let given = if (*socket).family == AF_INET {
            Address::from_v4((*socket).dst_ip4.to_ne_bytes())
        } else {
            let [a, b, c, d] = [
                core::ptr::read_volatile(&raw const (*socket).dst_ip6[0]),
                core::ptr::read_volatile(&raw const (*socket).dst_ip6[1]),
                core::ptr::read_volatile(&raw const (*socket).dst_ip6[2]),
                core::ptr::read_volatile(&raw const (*socket).dst_ip6[3]),
            ];
            Address::from_words([u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32])
        };
        (given, u16::from_be((*socket).dst_port))
    };
    if port == 0 {
        return; // Connected to nothing.
    }
    let address = Seen::addressed(Hook::Connect4, given, port, [0, 0, 17]).address;
    // SAFETY: the caller's promise.
    unsafe {
        if (*session).address != address || (*session).port != port {
            core::ptr::write_volatile(&raw mut (*session).held, 0);
            (*session).address = address;
            (*session).port = port;
        }
    }
}

/// Puts where a session's socket sends from on the list, for whoever has to close it.
///
/// # Safety
/// `session` is a whole value, `socket` the socket of a packet.
#[inline(always)]
unsafe fn learn_source(session: *mut Session, socket: *mut bpf_sock) {
    // SAFETY: the caller's promise; each member is read by itself, as the kernel wants it.
    unsafe {
        let source = if (*socket).family == AF_INET {
            Address::from_v4((*socket).src_ip4.to_ne_bytes())
        } else {
            let [a, b, c, d] = [
                core::ptr::read_volatile(&raw const (*socket).src_ip6[0]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[1]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[2]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[3]),
            ];
            Address::from_words([u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32])
        };
        let port = (*socket).src_port as u16;
        (*session).source = source;
        (*session).source_port = port;
        if let Some(listed) = SESSIONS.get_ptr_mut((*session).cookie) {
            (*listed).source = source;
            (*listed).source_port = port;
        }
    }
}

#[inline(always)]
fn unmoved(tables: &KernelTables, accounts: &[u16; SESSION_ACCOUNTS], epochs: &[u32; SESSION_ACCOUNTS]) -> bool {
    let same = |account: u16, epoch: u32| match tables.slot(u32::from(account)) {
        Some(slot) => slot.epoch() == epoch,
        None => false,
    };
    let ([a, b, c, d], [e, f, g, h]) = (*accounts, *epochs);
    same(a, e) && (b == NOBODY || same(b, f) && (c == NOBODY || same(c, g) && (d == NOBODY || same(d, h))))
}

/// Judges a session by the tables as they are now: 1 if some account of it may not go on; otherwise it is sealed anew.
/// Global for the reason given at [`connect::judge_attempt`].
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(clippy::indexing_slicing, reason = "`place` is below the length of both arrays: the loop ends there")]
pub(crate) extern "C" fn judge_session(active: u64, session: *mut Session, now: u64) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    let Some(session) = (unsafe { session.as_mut() }) else { return 0 };
    let tables = KernelTables::of(Active(active), NO_CLASS);
    let seen = Seen {
        given: Address::NONE,
        address: session.address,
        executable: executable_class(tables.side(), session.executable_inode, session.executable_device),
        class: tables.class_of(&session.address),
        port: session.port,
        socket_family: 0,
        socket_type: 0,
        socket_protocol: 0,
        hook: 0,
        protocol: session.protocol,
        family: 0,
        open_socket: 0,
    };
    let mut outcome =
        Outcome { decision: connect::nobody(), at: now, account: NOBODY, views: 0, errno: 0, cookies: [0; 2] };
    let mut until = writ_abi::NEVER;
    // Not read back from the session, where another packet may have written others: a judgement is of one set of epochs.
    let mut epochs = 0;
    let mut place = 0;
    while place < SESSION_ACCOUNTS {
        let account = session.accounts[place];
        if account == NOBODY {
            break;
        }
        // An account that is declared no more is nobody's to judge: its processes are not judged either.
        let declared = match tables.flags(u32::from(account)) {
            Some(flags) => flags.has(AccountFlags::PRESENT),
            None => true,
        };
        if declared {
            outcome.account = NOBODY;
            connect::judge_attempt(active, account, &seen, &mut outcome);
            if outcome.decision.refuses() {
                return 1;
            }
        }
        let epoch = match tables.slot(u32::from(account)) {
            Some(slot) if declared => {
                if slot.epoch() == outcome.decision.epoch {
                    slot.epoch()
                } else {
                    return 0;
                }
            }
            Some(slot) => slot.epoch(),
            None => 0,
        };
        session.epochs[place] = epoch;
        epochs ^= epoch;
        let holds = if declared { outcome.decision.until } else { writ_abi::NEVER };
        if holds < until {
            until = holds;
        }
        place += 1;
    }
    // SAFETY: a whole, aligned word of the session.
    unsafe { core::ptr::write_volatile(&raw mut session.held, if until == 0 { 0 } else { seal_mixed(until, epochs) }) };
    0
}

/// The class of an executable in a generation; 0, which is any other's, if it has none.
#[inline(always)]
fn executable_class(side: u32, inode: u64, device: u32) -> u32 {
    if inode == 0 {
        return 0;
    }
    let Some(executables) = EXECUTABLES.get(side) else { return 0 };
    // SAFETY: entries of a generation's map are never removed while it is in force.
    match unsafe { executables.get(ExecutableKey { inode, device, reserved: 0 }) } {
        Some(entry) => (*entry >> 32) as u32,
        None => 0,
    }
}

/// Whether an IPv4 packet has options.
#[inline(always)]
fn has_options(context: &SkBuffContext) -> bool {
    const WITHOUT: u8 = 5;
    match context.load::<u8>(0) {
        Ok(first) => first >> 4 == 4 && first & 15 > WITHOUT,
        // A packet without a first byte goes nowhere.
        Err(_) => false,
    }
}

/// Whether a packet is a TCP reset or end without a payload: the peer is to learn that the session is over.
#[inline(always)]
fn ends(context: &SkBuffContext) -> bool {
    const TCP: u8 = 6;
    const FIN_OR_RST: u8 = 0b101;
    let Ok(first) = context.load::<u8>(0) else { return false };
    let (header, protocol) = if first >> 4 == 4 {
        let Ok(protocol) = context.load::<u8>(9) else { return false };
        (usize::from(first & 15) * 4, protocol)
    } else {
        // Behind an extension header nothing is looked for: such a packet is stopped.
        let Ok(protocol) = context.load::<u8>(6) else { return false };
        (40, protocol)
    };
    if protocol != TCP {
        return false;
    }
    let Ok(offset) = context.load::<u8>(header + 12) else { return false };
    let Ok(flags) = context.load::<u8>(header + 13) else { return false };
    flags & FIN_OR_RST != 0 && context.len() as usize == header + usize::from(offset >> 4) * 4
}
