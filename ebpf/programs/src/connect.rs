//! The connect path: what is attempted, who attempts it, the verdict, the record, and the answer to the kernel.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use writ_abi::{
    AccountFlags, Address, Attempt, Counter, Decision, Endpoint, Family, Hook, NAT64_PREFIXES, Protocol, Reason, Verdict, decide,
    stricter,
};

use crate::{
    config::config,
    emit::{self, Outcome, Seen, count},
    identity::{self, Caller, NOBODY},
    map::{SEEN, SEEN_COUNT, SeenKey},
    tables::KernelTables,
};

/// What a cgroup program returns to let the call go on.
const PASS: i32 = 1;
/// What it returns to refuse it.
const REFUSE: i32 = 0;
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
    let (family, kind, protocol) =
        unsafe { ((*context.sock).family, (*context.sock).type_, (*context.sock).protocol) };
    let Some(opened) = Family::of_inet(kind, protocol) else { return PASS };
    judge(&mut Attempt::OpenSocket(opened), &Seen {
        hook: Hook::SockCreate,
        given: Address([0; 16]),
        address: Address([0; 16]),
        port: 0,
        protocol: opened as u8,
        open_socket: true,
        socket_family: family,
        socket_type: kind,
        socket_protocol: protocol,
        context: context.as_ptr(),
    })
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
    let words = unsafe {
        let words = &raw const (*context.sock_addr).user_ip6;
        let words = words.cast::<u32>();
        [
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ]
    };
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] =
        [words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes()];
    judge_address(context, hook, Address([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]))
}

#[inline(always)]
fn judge_address(context: &SockAddrContext, hook: Hook, given: Address) -> i32 {
    // SAFETY: the kernel hands the program a valid `bpf_sock_addr`; each member is read once.
    let (port, family, kind, number) = unsafe {
        let address = context.sock_addr;
        ((*address).user_port, (*address).family, (*address).type_, (*address).protocol)
    };
    let port = u16::from_be(port as u16);
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
    let mut attempt = match protocol {
        Some(protocol) => Attempt::Connect { endpoint: Endpoint { address, port, protocol }, executable: 0 },
        None => Attempt::OpenSocket(match Family::of_inet(kind, number) {
            Some(family) => family,
            None => Family::OtherIp,
        }),
    };
    let open_socket = matches!(attempt, Attempt::OpenSocket(_));
    let seen = Seen {
        hook,
        given,
        address,
        port,
        protocol: match attempt {
            Attempt::Connect { endpoint, .. } => endpoint.protocol as u8,
            Attempt::OpenSocket(family) => family as u8,
        },
        open_socket,
        socket_family: family,
        socket_type: kind,
        socket_protocol: number,
        context: context.as_ptr(),
    };
    judge(&mut attempt, &seen)
}

/// Judges one attempt for every account the caller belongs to; the strictest outcome is the answer. A function of its own
/// in the object too: the stack of a program is 512 bytes.
#[inline(never)]
fn judge(attempt: &mut Attempt, seen: &Seen) -> i32 {
    let Some(tables) = KernelTables::current() else { return PASS };
    let mut caller = Caller::NONE;
    identity::find(&tables, &mut caller);
    if caller.unmanaged() {
        return PASS;
    }
    if let Attempt::Connect { executable, .. } = attempt {
        *executable = caller.executable_class;
    }
    let mut outcome = Outcome { decision: nobody(Reason::IdentityUnknown), at: now(), views: caller.views[0], account: caller.accounts[0], errno: 0 };
    if outcome.account != NOBODY {
        judge_account(&tables, outcome.account, attempt, outcome.at, &mut outcome.decision);
    }
    if caller.accounts[1] != NOBODY {
        // Rare: several accounts match one caller.
        let mut other = nobody(Reason::IdentityUnknown);
        let mut index = 1;
        while index < 4 {
            let (account, views) = match index {
                1 => (caller.accounts[1], caller.views[1]),
                2 => (caller.accounts[2], caller.views[2]),
                _ => (caller.accounts[3], caller.views[3]),
            };
            if account != NOBODY {
                judge_account(&tables, account, attempt, outcome.at, &mut other);
                if stricter(&outcome.decision, &other) {
                    outcome.decision = other;
                    outcome.account = account;
                    outcome.views = views;
                }
            }
            index += 1;
        }
    }
    if caller.unknown || caller.overflow {
        // Whoever it is, it is refused; the account named keeps its errno.
        outcome.decision.verdict = Verdict::Deny;
        outcome.decision.would = Verdict::Deny;
        outcome.decision.reason = if caller.unknown { Reason::IdentityUnknown } else { Reason::TooManyAccounts };
        outcome.decision.enforced = true;
        outcome.decision.learn = false;
    }
    tally(&outcome.decision);
    let mut answer = PASS;
    if outcome.decision.refuses() {
        outcome.errno = refusal(&outcome.decision);
        answer = REFUSE;
    }
    let recorded = emit::decision(&tables, &caller, seen, &outcome);
    if !recorded && outcome.decision.enforced && outcome.decision.flags.has(AccountFlags::RECORD_LOSS_DENIES) {
        count(Counter::RecordLossDenied);
        outcome.errno = refusal(&outcome.decision);
        answer = REFUSE;
    }
    if answer == PASS && outcome.decision.learn {
        learn(u32::from(outcome.account), &seen.address, outcome.at);
    }
    if answer == REFUSE && config!(set_retval) == 1 {
        // SAFETY: the helper takes any negative errno.
        unsafe { bpf_set_retval(-i32::from(outcome.errno)) };
    }
    answer
}

/// The decision of one account. A function of its own in the object too, so that its stack is given back.
#[inline(never)]
fn judge_account(tables: &KernelTables, account: u16, attempt: &Attempt, now: u64, decision: &mut Decision) {
    *decision = decide(tables, u32::from(account), attempt, now);
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// A refusal that no account's tables led to.
#[inline(always)]
fn nobody(reason: Reason) -> Decision {
    Decision {
        verdict: Verdict::Deny,
        reason,
        enforced: true,
        would: Verdict::Deny,
        stance: 0,
        epoch: 0,
        explanation: 0,
        flags: AccountFlags::default(),
        new_destination: false,
        learn: false,
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
    match SEEN.insert(SeenKey { account, address: address.0 }, now, IF_ABSENT) {
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
