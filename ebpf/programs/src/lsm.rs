//! The BPF LSM, where the kernel has it: what cgroup hooks cannot see, and only that, so that an attempt is judged once.
//!
//! These hooks are called for the whole host. Members of arguments are read as the verifier lets typed pointers be read,
//! which costs nothing: the hook of every send leaves after four such reads.

use aya_ebpf::{
    EbpfContext, bindings::BPF_SK_STORAGE_GET_F_CREATE, helpers::generated::bpf_sk_storage_get, macros::lsm,
    programs::LsmContext,
};
use core::ffi::c_void;
use writ_abi::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, AccountFlags, Active, Address, Family, Hook, LSM_PULSE, LSM_PULSE_ERRNO,
    Reason, Tables, Verdict,
};

use crate::{
    cgroup,
    config::config,
    connect::{Origin, judge},
    emit::{Outcome, Seen},
    errno::negated,
    identity::{self, Caller, NOBODY},
    map::OPENED,
    socket,
    tables::KernelTables,
    task,
};

/// What an LSM program returns to let the call go on.
const GO_ON: i32 = 0;

/// A socket about to be made: `(family, type, protocol, kern)`. IP sockets are seen by cgroup/sock_create.
#[lsm(hook = "socket_create")]
pub(crate) fn lsm_create(context: LsmContext) -> i32 {
    let [family, kind, protocol, kern] = [0, 1, 2, 3].map(|index| context.arg::<i32>(index).cast_unsigned());
    if family == 0 && protocol == LSM_PULSE {
        return -LSM_PULSE_ERRNO;
    }
    let Some(opened) = Family::of_address_family(family) else { return GO_ON };
    if kern != 0 || !concerns(opened) {
        return GO_ON;
    }
    answer(judge(Seen::opening(Hook::LsmCreate, opened, [family, kind, protocol]), &Unmade(opened)))
}

/// A socket that was made: `(socket, family, type, protocol, kern)`. It was judged; whose it was is written down.
#[lsm(hook = "socket_post_create")]
pub(crate) fn lsm_created(context: LsmContext) -> i32 {
    let [family, kind, protocol, kern] = [1, 2, 3, 4].map(|index| context.arg::<i32>(index).cast_unsigned());
    let opened = match Family::of_address_family(family) {
        Some(opened) => Some(opened),
        None => Family::of_inet(kind, protocol),
    };
    let Some(opened) = opened else { return GO_ON };
    if kern != 0 || opened.only_where_named() || !identity::confined() {
        return GO_ON;
    }
    let Some(tables) = KernelTables::current() else { return GO_ON };
    let mut caller = Caller::NONE;
    identity::find(&tables, &mut caller, 0);
    if caller.accounts[0] == NOBODY {
        return GO_ON;
    }
    let made = sock(context.arg::<*const c_void>(0));
    if !made.is_null() {
        let accounts = opened_for(made, BPF_SK_STORAGE_GET_F_CREATE);
        if !accounts.is_null() {
            // SAFETY: the pointer is what the storage lookup returned.
            unsafe { *accounts = word(&caller) };
        }
    }
    GO_ON
}

/// A connect: `(socket, address, length)`.
#[lsm(hook = "socket_connect")]
pub(crate) fn lsm_connect(context: LsmContext) -> i32 {
    let used = sock(context.arg::<*const c_void>(0));
    if used.is_null() {
        return GO_ON;
    }
    match Used::of(used) {
        None => GO_ON,
        Some(Used::Addressed) => elsewhere(Hook::LsmConnect, &context, used, context.arg::<*const c_void>(1) as u64),
        // cgroup/connect4 and connect6 see these.
        Some(Used::Opened(Family::Icmp | Family::Udplite)) => GO_ON,
        Some(Used::Opened(family)) => handed(Hook::LsmConnect, &context, used, family),
    }
}

/// A send: `(socket, message, size)`.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn lsm_sendmsg(context: LsmContext) -> i32 {
    let used = sock(context.arg::<*const c_void>(0));
    if used.is_null() {
        return GO_ON;
    }
    match Used::of(used) {
        None => GO_ON,
        Some(Used::Addressed) => {
            if config!(root_level) == 0 {
                return GO_ON; // The whole host is judged: no socket lies elsewhere.
            }
            let name = task::read::<u64>(context.arg::<*const c_void>(1) as u64, config!(sockets.msg_name));
            // A message without a name goes where the socket was connected to, which was judged.
            if name == Some(0) { GO_ON } else { elsewhere(Hook::LsmSendmsg, &context, used, name.unwrap_or(1)) }
        }
        // cgroup/sendmsg4 and sendmsg6 see these.
        Some(Used::Opened(Family::Udplite)) => GO_ON,
        Some(Used::Opened(family)) => handed(Hook::LsmSendmsg, &context, used, family),
    }
}

/// What using a socket is to be judged as.
enum Used {
    /// By destination.
    Addressed,
    /// By family.
    Opened(Family),
}

impl Used {
    /// `None` for sockets whose use is not judged.
    #[inline(always)]
    fn of(used: *const c_void) -> Option<Self> {
        let family = u32::from(member::<u16>(used, config!(sockets.family)));
        match family {
            AF_UNIX | AF_NETLINK => None,
            AF_INET | AF_INET6 => {
                let kind = u32::from(member::<u16>(used, config!(sockets.kind)));
                Some(match Family::of_inet(kind, u32::from(member::<u16>(used, config!(sockets.protocol)))) {
                    Some(opened) => Self::Opened(opened),
                    None => Self::Addressed,
                })
            }
            _ => Family::of_address_family(family).map(Self::Opened),
        }
    }
}

/// Reads a member of a typed pointer: a plain load, which the verifier checks against the kernel's types and makes safe.
#[inline(always)]
fn member<T: Copy>(of: *const c_void, offset: u32) -> T {
    // SAFETY: the verifier refuses the program unless there is such a member; a bad pointer reads as zero.
    unsafe { core::ptr::read_volatile(of.byte_add(offset as usize).cast::<T>()) }
}

/// The `struct sock` of a `struct socket`; may be null.
#[inline(always)]
fn sock(socket: *const c_void) -> *const c_void {
    member(socket, config!(sockets.socket_sk))
}

/// The `struct sock` of the hook's first argument as a number, which is what may be shown to a global function; never 0.
#[inline(always)]
fn number(context: &LsmContext) -> u64 {
    // The context holds the arguments, a word each.
    let socket = task::follow(context.as_ptr() as u64, 0);
    socket.and_then(|socket| task::follow(socket, config!(sockets.socket_sk))).unwrap_or(1)
}

/// Whether anything can come of judging this family here.
#[inline(always)]
fn concerns(family: Family) -> bool {
    if !identity::confined() {
        return false;
    }
    let Some(tables) = KernelTables::current() else { return false };
    !family.only_where_named() || tables.active().has(Active::JUDGES_LOCAL)
}

/// What an LSM program returns for an errno.
#[inline(always)]
fn answer(errno: u16) -> i32 {
    negated(errno) as i32
}

/// The accounts as one word; only compared.
#[inline(always)]
fn word(caller: &Caller) -> u64 {
    let [a, b, c, d] = caller.accounts.map(u64::from);
    a | b << 16 | c << 32 | d << 48
}

/// What is written down with a socket; null if nothing is, or if there was no memory for it.
#[inline(always)]
fn opened_for(used: *const c_void, flags: u32) -> *mut u64 {
    let map = (&raw const OPENED).cast_mut().cast::<c_void>();
    // SAFETY: the verifier sees that the map is one of socket storage, and that the socket is one.
    unsafe { bpf_sk_storage_get(map, used.cast_mut(), core::ptr::null_mut(), u64::from(flags)).cast() }
}

/// A socket that does not exist yet.
struct Unmade(Family);

impl Origin for Unmade {
    #[inline(always)]
    fn socket(&self) -> u64 {
        0
    }

    #[inline(always)]
    fn settled(&self, tables: &KernelTables, caller: &Caller) -> bool {
        let flag = match self.0 {
            Family::Unix => AccountFlags::JUDGES_UNIX,
            Family::Netlink => AccountFlags::JUDGES_NETLINK,
            _ => return false,
        };
        // Whoever cannot be identified is judged.
        let named = |account: u16| match tables.flags(u32::from(account)) {
            Some(flags) => account != NOBODY && flags.has(flag),
            None => false,
        };
        let [a, b, c, d] = caller.accounts;
        caller.unknown == 0 && caller.overflow == 0 && !(named(a) || named(b) || named(c) || named(d))
    }

    #[inline(always)]
    fn cookies(&self) -> [u64; 2] {
        [0, socket::own_netns()]
    }
}

/// A socket without a destination that the caller may not have opened itself.
struct Handed(*const c_void, u64);

impl Origin for Handed {
    #[inline(always)]
    fn socket(&self) -> u64 {
        self.1
    }

    #[inline(always)]
    fn settled(&self, _tables: &KernelTables, caller: &Caller) -> bool {
        let accounts = opened_for(self.0, 0);
        // SAFETY: the pointer is what the storage lookup returned.
        caller.unknown == 0 && caller.overflow == 0 && !accounts.is_null() && unsafe { *accounts } == word(caller)
    }

    #[inline(always)]
    fn cookies(&self) -> [u64; 2] {
        [0, socket::own_netns()]
    }

    #[inline(always)]
    fn remember(&self, _active: u64, caller: &Caller, _seen: &Seen, outcome: &mut Outcome) {
        let accounts = opened_for(self.0, BPF_SK_STORAGE_GET_F_CREATE);
        if accounts.is_null() {
            // It would be judged, and recorded, with every send.
            outcome.decision.verdict = Verdict::Deny;
            outcome.decision.would = Verdict::Deny;
            outcome.decision.reason = Reason::Untracked;
        } else {
            // SAFETY: the pointer is what the storage lookup returned.
            unsafe { *accounts = word(caller) };
        }
    }
}

/// Judges the use of a socket without a destination, unless it was judged when the same accounts opened it.
#[inline(always)]
fn handed(hook: Hook, context: &LsmContext, used: *const c_void, family: Family) -> i32 {
    if !identity::confined() {
        return GO_ON;
    }
    let numbers = [
        u32::from(member::<u16>(used, config!(sockets.family))),
        u32::from(member::<u16>(used, config!(sockets.kind))),
        u32::from(member::<u16>(used, config!(sockets.protocol))),
    ];
    answer(judge(Seen::opening(hook, family, numbers), &Handed(used, number(context))))
}

/// A socket whose cgroup lies outside what is judged: no cgroup hook sees what it does.
struct Elsewhere(u64);

impl Origin for Elsewhere {
    #[inline(always)]
    fn socket(&self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn cookies(&self) -> [u64; 2] {
        [0, socket::own_netns()]
    }
}

/// Judges a TCP or UDP destination if the caller is judged and its socket lies elsewhere. `name` is the kernel's copy of
/// the address.
#[inline(always)]
fn elsewhere(hook: Hook, context: &LsmContext, used: *const c_void, name: u64) -> i32 {
    if config!(root_level) == 0 || !identity::confined() {
        return GO_ON;
    }
    let socket = number(context);
    let inside = match socket::cgroup(socket) {
        Some(0) => Some(false),
        Some(cgroup) => cgroup::is_confined(cgroup),
        None => None,
    };
    if inside == Some(true) {
        return GO_ON;
    }
    let numbers = [
        u32::from(member::<u16>(used, config!(sockets.family))),
        u32::from(member::<u16>(used, config!(sockets.kind))),
        u32::from(member::<u16>(used, config!(sockets.protocol))),
    ];
    // `sa_family`, the port in network order, then the IPv4 address, or flow information and the IPv6 address.
    let Some([head, v4]) = task::read::<[u32; 2]>(name, 0) else { return -1 };
    let port = u16::from_be((head >> 16) as u16);
    let given = match head & 0xffff {
        AF_INET => Address::from_v4(v4.to_ne_bytes()),
        // What udp_sendmsg makes of it.
        0 if hook as u8 == Hook::LsmSendmsg as u8 && numbers[0] == AF_INET => Address::from_v4(v4.to_ne_bytes()),
        AF_INET6 => {
            let Some(words) = task::read::<[u64; 2]>(name, 8) else { return -1 };
            Address::from_words(words)
        }
        // The end of an association, which leads nowhere.
        _ => return GO_ON,
    };
    answer(judge(Seen::addressed(hook, given, port, numbers), &Elsewhere(socket)))
}
