//! The connect path: what is attempted, who attempts it, the verdict, the record, and the answer to the kernel.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use writ_abi::{
    AccountFlags, Active, Address, Attempt, Counter, Decision, Endpoint, Family, Hook, NAT64_PREFIXES, Protocol,
    Reason, Tables, Verdict, decide, stricter,
};

use crate::{
    config::config,
    emit::{self, Outcome, Seen, count},
    errno::negated,
    identity::{self, Caller, NOBODY},
    map::{SEEN, SEEN_COUNT, SeenKey},
    session, socket,
    tables::{KernelTables, NO_CLASS},
};

/// What a cgroup program returns to let the call go on.
pub(crate) const PASS: i32 = 1;
/// What it returns to refuse it.
pub(crate) const REFUSE: i32 = 0;
/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;
/// How many destinations one account can be remembered for.
const SEEN_QUOTA: u64 = 16384;

/// A connect to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(context: SockAddrContext) -> i32 {
    judge_v4(&context, Hook::Connect4)
}

/// A connect to an IPv6 address, IPv4-mapped ones included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(context: SockAddrContext) -> i32 {
    judge_v6(&context, Hook::Connect6)
}

/// A datagram sent to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(context: SockAddrContext) -> i32 {
    judge_v4(&context, Hook::Sendmsg4)
}

/// A datagram sent to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(context: SockAddrContext) -> i32 {
    judge_v6(&context, Hook::Sendmsg6)
}

/// An IPv4 or IPv6 socket being made; TCP and UDP are decided when they connect or send.
#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(context: SockContext) -> i32 {
    // SAFETY: the kernel hands the program a valid `bpf_sock`; each member is read once.
    let (family, kind, protocol) = unsafe { ((*context.sock).family, (*context.sock).type_, (*context.sock).protocol) };
    let Some(opened) = Family::of_inet(kind, protocol) else { return PASS };
    let seen = Seen::opening(Hook::SockCreate, opened, [family, kind, protocol]);
    answer(judge(seen, &Opening(context.as_ptr())))
}

/// What judging an attempt needs of the hook that saw it.
pub(crate) trait Origin {
    /// The socket that is used, if it was made before this call: the kernel's `struct sock`; 0 for none.
    fn socket(&self) -> u64;

    /// Whether nothing is to be judged: this caller's use of this socket was, or its family is not for this caller.
    #[inline(always)]
    fn settled(&self, _tables: &KernelTables, _caller: &Caller) -> bool {
        false
    }

    /// Cookies of the socket and of its network namespace; 0 where there is none.
    fn cookies(&self) -> [u64; 2];

    /// Remembers what is let through. It may change its mind.
    #[inline(always)]
    fn remember(&self, _active: u64, _caller: &Caller, _seen: &Seen, _outcome: &mut Outcome) {}
}

/// cgroup/sock_create: the context is the new socket.
struct Opening(*mut c_void);

impl Origin for Opening {
    #[inline(always)]
    fn socket(&self) -> u64 {
        0
    }

    #[inline(always)]
    fn cookies(&self) -> [u64; 2] {
        // SAFETY: the context of the hook, which is what the helper takes.
        [0, unsafe { bpf_get_netns_cookie(self.0) }]
    }
}

/// The address hooks.
struct Addressing(*mut c_void);

impl Origin for Addressing {
    #[inline(always)]
    fn socket(&self) -> u64 {
        socket::of_sock_addr(self.0)
    }

    #[inline(always)]
    fn cookies(&self) -> [u64; 2] {
        // SAFETY: the context of the hook, which is what the helpers take.
        unsafe { [bpf_get_socket_cookie(self.0), bpf_get_netns_cookie(self.0)] }
    }

    #[inline(always)]
    fn remember(&self, active: u64, caller: &Caller, seen: &Seen, outcome: &mut Outcome) {
        if seen.tracked() {
            session::track(active, caller, seen, outcome, self.0);
        }
    }
}

/// What a cgroup program returns for an errno; 0 lets the call go on.
#[inline(always)]
fn answer(errno: u16) -> i32 {
    if errno == 0 {
        return PASS;
    }
    if config!(set_retval) == 1 {
        set_retval(errno);
    }
    REFUSE
}

/// Has the refused call return this errno. The verifier of Linux 7.3 wants to see that what the helper is given is an errno,
/// in all 64 bits of the register, where the helper's declaration has an int.
#[inline(always)]
fn set_retval(errno: u16) {
    const HELPER: usize = 187; // BPF_FUNC_set_retval
    // SAFETY: a helper is called by its number, and the verifier holds it to its declaration.
    let helper: unsafe extern "C" fn(i64) -> i64 = unsafe { core::mem::transmute(HELPER) };
    // SAFETY: it takes any negative errno.
    unsafe { helper(negated(errno)) };
}

#[inline(always)]
fn judge_v4(context: &SockAddrContext, hook: Hook) -> i32 {
    // SAFETY: the kernel hands the program a valid `bpf_sock_addr`; `user_ip4` holds the address in network byte order.
    let given = Address::from_v4(unsafe { (*context.sock_addr).user_ip4 }.to_ne_bytes());
    judge_address(context, hook, given)
}

#[inline(always)]
fn judge_v6(context: &SockAddrContext, hook: Hook) -> i32 {
    // SAFETY: as above; the four words of `user_ip6` are in network byte order, and may be read only word by word.
    let [a, b, c, d] = unsafe {
        let words = (&raw const (*context.sock_addr).user_ip6).cast::<u32>();
        [words, words.add(1), words.add(2), words.add(3)].map(|word| u64::from(core::ptr::read_volatile(word)))
    };
    // The octets lie in memory as the two words do; BPF is little-endian here (`bpfel`).
    judge_address(context, hook, Address::from_words([a | b << 32, c | d << 32]))
}

#[inline(always)]
fn judge_address(context: &SockAddrContext, hook: Hook, given: Address) -> i32 {
    // SAFETY: the kernel hands the program a valid `bpf_sock_addr`; each member is read once.
    let (port, socket_family, kind, number) = unsafe {
        let address = context.sock_addr;
        ((*address).user_port, (*address).family, (*address).type_, (*address).protocol)
    };
    let seen = Seen::addressed(hook, given, u16::from_be(port as u16), [socket_family, kind, number]);
    answer(judge(seen, &Addressing(context.as_ptr())))
}

impl Seen {
    /// A socket without a destination. `socket` is its address family, type and protocol.
    #[inline(always)]
    pub(crate) fn opening(hook: Hook, family: Family, socket: [u32; 3]) -> Self {
        let [socket_family, kind, protocol] = socket;
        Self {
            hook: hook as u8,
            given: Address::NONE,
            address: Address::NONE,
            port: 0,
            protocol: Protocol::Tcp as u8,
            family: family as u8,
            open_socket: 1,
            executable: 0,
            class: NO_CLASS,
            socket_family: socket_family as u16,
            socket_type: kind as u16,
            socket_protocol: protocol as u16,
        }
    }

    /// A destination, as the caller gave it. `socket` is the socket's address family, type and protocol.
    #[inline(always)]
    pub(crate) fn addressed(hook: Hook, given: Address, port: u16, socket: [u32; 3]) -> Self {
        let [socket_family, kind, number] = socket;
        let address = given
            .translated(&config!(nat64[0]))
            .translated(&config!(nat64[1]))
            .translated(&config!(nat64[2]))
            .translated(&config!(nat64[3]))
            .reached();
        const { assert!(NAT64_PREFIXES == 4) };
        let protocol = match number {
            // IPPROTO_TCP, IPPROTO_MPTCP
            6 | 262 => Some(Protocol::Tcp),
            // IPPROTO_UDP
            17 => Some(Protocol::Udp),
            _ => None,
        };
        let family = match Family::of_inet(kind, number) {
            Some(family) => family,
            None => Family::OtherIp,
        };
        Self {
            hook: hook as u8,
            given,
            address,
            port,
            protocol: match protocol {
                Some(protocol) => protocol as u8,
                None => Protocol::Tcp as u8,
            },
            family: family as u8,
            open_socket: u8::from(protocol.is_none()),
            executable: 0,
            class: NO_CLASS,
            socket_family: socket_family as u16,
            socket_type: kind as u16,
            socket_protocol: number as u16,
        }
    }
}

/// Judges one attempt for every account the caller belongs to; the strictest outcome is the answer: an errno, or 0 to let
/// it go on.
#[inline(always)]
pub(crate) fn judge(mut seen: Seen, origin: &impl Origin) -> u16 {
    let Some(tables) = KernelTables::current() else { return 0 };
    let mut caller = Caller::NONE;
    identity::find(&tables, &mut caller, origin.socket());
    if caller.unmanaged() || origin.settled(&tables, &caller) {
        return 0;
    }
    seen.executable = caller.executable_class;
    // For an attempt without an address too: see `judge_attempt` for what a choice here can come to.
    seen.class = tables.class_of(&seen.address);
    let active = tables.active().0;
    let mut outcome =
        Outcome { decision: nobody(), at: now(), views: 0, account: NOBODY, errno: 0, cookies: origin.cookies() };
    let [a, b, c, d] = caller.accounts;
    judge_account(active, a, &seen, &mut outcome);
    if b != NOBODY {
        // Rare: several accounts match one caller.
        judge_account(active, b, &seen, &mut outcome);
        judge_account(active, c, &seen, &mut outcome);
        judge_account(active, d, &seen, &mut outcome);
    }
    outcome.views = if outcome.account == a {
        caller.views[0]
    } else if outcome.account == b {
        caller.views[1]
    } else if outcome.account == c {
        caller.views[2]
    } else {
        caller.views[3]
    };
    if caller.unknown != 0 || caller.overflow != 0 {
        // Whoever it is, it is refused; the account named keeps its errno.
        outcome.decision.verdict = Verdict::Deny;
        outcome.decision.would = Verdict::Deny;
        outcome.decision.reason = if caller.unknown != 0 { Reason::IdentityUnknown } else { Reason::TooManyAccounts };
        outcome.decision.enforced = true;
        outcome.decision.learn = false;
    }
    if tables.active().has(Active::LOG_FAILS)
        && outcome.decision.enforced
        && outcome.decision.verdict == Verdict::Allow
        && outcome.decision.flags.has(AccountFlags::RECORD_LOSS_DENIES)
    {
        count(Counter::RecordLossDenied);
        outcome.decision.verdict = Verdict::Deny;
        outcome.decision.would = Verdict::Deny;
        outcome.decision.reason = Reason::RecordLoss;
        outcome.decision.learn = false;
    }
    if !outcome.decision.refuses() {
        origin.remember(active, &caller, &seen, &mut outcome);
    }
    tally(&outcome.decision);
    if outcome.decision.refuses() {
        outcome.errno = refusal(&outcome.decision);
    }
    let recorded = emit::decision(tables.active(), &caller, &seen, &outcome);
    if !recorded && outcome.decision.enforced && outcome.decision.flags.has(AccountFlags::RECORD_LOSS_DENIES) {
        count(Counter::RecordLossDenied);
        outcome.errno = refusal(&outcome.decision);
    }
    if outcome.errno == 0 && outcome.decision.learn {
        learn(u32::from(outcome.account), &seen.address, outcome.at);
    }
    outcome.errno
}

/// Judges for one account; the outcome is its own if it is the first or the stricter one.
#[inline(always)]
fn judge_account(active: u64, account: u16, seen: &Seen, outcome: &mut Outcome) {
    if account != NOBODY {
        judge_attempt(active, account, seen, outcome);
    }
}

/// Judges what was attempted for one account.
///
/// A global function of the object (hence the C ABI and the fixed name): the verifier checks it once, for any attempt, where
/// it would otherwise follow every way each of its callers can get there and give up. And whether it is a destination or a
/// family is asked of memory whose contents the verifier does not know. That of Linux 6.1 has been seen to prune the way on
/// which a caller's register said "destination", because it knew the one on which it said "family", and to cut the branch
/// away: every connect was then judged as a family, and refused.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn judge_attempt(active: u64, account: u16, seen: *const Seen, outcome: *mut Outcome) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole value.
    let (Some(seen), Some(outcome)) = (unsafe { seen.as_ref() }, unsafe { outcome.as_mut() }) else { return 0 };
    let attempt = if seen.open_socket == 1 {
        let Some(family) = Family::from_bits(seen.family) else { return 0 };
        Attempt::OpenSocket(family)
    } else {
        let protocol = if seen.protocol == Protocol::Udp as u8 { Protocol::Udp } else { Protocol::Tcp };
        let endpoint = Endpoint { address: seen.address, port: seen.port, protocol };
        Attempt::Connect { endpoint, executable: seen.executable }
    };
    let decision = decide(&KernelTables::of(Active(active), seen.class), u32::from(account), &attempt, outcome.at);
    prefer(outcome, decision, account);
    0
}

#[inline(always)]
fn prefer(outcome: &mut Outcome, decision: Decision, account: u16) {
    if outcome.account == NOBODY || stricter(&outcome.decision, &decision) {
        outcome.decision = decision;
        outcome.account = account;
    }
}

#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The refusal of whoever cannot be identified.
#[inline(always)]
pub(crate) fn nobody() -> Decision {
    Decision {
        verdict: Verdict::Deny,
        reason: Reason::IdentityUnknown,
        enforced: true,
        would: Verdict::Deny,
        stance: 0,
        epoch: 0,
        explanation: 0,
        flags: AccountFlags::default(),
        new_destination: false,
        learn: false,
        // Not a constant to the compiler: it would call a loop over bytes to set so many zeroes.
        until: black_box(0),
    }
}

/// The errno of a refusal, as the kernel will report it: EPERM where none is set or none can be.
#[inline(always)]
fn refusal(decision: &Decision) -> u16 {
    const EPERM: u16 = 1;
    if config!(set_retval) != 1 || decision.flags.errno() == 0 { EPERM } else { decision.flags.errno() }
}

/// Counts every outcome that policy did not decide.
#[inline(always)]
fn tally(decision: &Decision) {
    match decision.reason {
        Reason::Expired => count(Counter::Expired),
        Reason::NoSlot | Reason::NoStance | Reason::NoClass | Reason::NoCell => count(Counter::MissingRow),
        Reason::IdentityUnknown => count(Counter::IdentityUnknown),
        Reason::TooManyAccounts => count(Counter::TooManyAccounts),
        _ => 0,
    };
}

/// Remembers a destination the account was allowed to reach, within its quota.
#[inline(always)]
fn learn(account: u32, address: &Address, now: u64) {
    let Some(used) = SEEN_COUNT.get_ptr_mut(account) else { return };
    // SAFETY: the pointer is what the map lookup returned.
    if unsafe { core::ptr::read_volatile(used) } >= SEEN_QUOTA {
        count(Counter::SeenMapFull);
        return;
    }
    match SEEN.insert(SeenKey { account, address: address.quads() }, now, IF_ABSENT) {
        Ok(()) => {
            // SAFETY: as above.
            unsafe { emit::increment(used) };
        }
        Err(-17) => {} // EEXIST: another connect was first.
        Err(_) => {
            count(Counter::SeenMapFull);
        }
    }
}
