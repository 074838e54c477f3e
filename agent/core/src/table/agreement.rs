//! The kernel's decision over a generation and Cedar's own answer, on random policies and attempts: they must be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::{Timestamp, ToSpan};
use writ_abi::{Address, Endpoint, Family, NEVER, Protocol, Reason, Verdict};

use super::{Generation, Outlook, build};
use crate::config::{Config, Destination};
use crate::policy::fixture::{account, bundle, config, destination};
use crate::policy::mutation::{self, Mutation};
use crate::policy::{AccountState, Approval, Attempt, Bundle};

pub(super) const ACCOUNTS: [&str; 3] = ["alpha", "beta", "gamma"];
pub(super) const PATHS: [&str; 4] = ["/usr/bin/a", "/usr/bin/b", "/usr/bin/c", "/usr/bin/never-named"];
pub(super) const GROUPS: [&str; 5] = ["d0", "d1", "d2", "d3", "d4"];
pub(super) const PREFIXES: [&str; 12] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "0.0.0.0/1",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::7/128",
    "::1/128",
    "224.0.0.0/4",
];
pub(super) const PORTS: [u16; 8] = [0, 22, 53, 443, 444, 5432, 8443, 65535];
pub(super) const START: &str = "2026-11-23T12:00:00Z";

/// A small generator: the same numbers for the same seed, everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn some<T: Copy>(&mut self, of: &[T], most: usize) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| self.pick(of)).collect()
    }
}

fn destinations(random: &mut Random) -> BTreeMap<String, Destination> {
    GROUPS
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let prefixes = random.some(&PREFIXES, 4);
            let ports: Vec<(u16, u16)> = random
                .some(&PORTS, 2)
                .into_iter()
                .map(|first| (first, first.saturating_add(random.below(3) as u16)))
                .collect();
            // Later destinations lie in earlier ones, so that parents make no circle.
            let parents = if index > 0 { random.some(&GROUPS[..index], 2) } else { Vec::new() };
            let mut found = destination(name, &prefixes, &ports, &parents);
            found.protocols = random.some(&[Protocol::Tcp, Protocol::Udp], 1);
            (found.name.clone(), found)
        })
        .collect()
}

fn condition(random: &mut Random, depth: usize) -> String {
    let op = random.pick(&["==", "!=", "<", "<=", ">", ">="]);
    let equality = random.pick(&["==", "!="]);
    let port = random.pick(&PORTS);
    let path = random.pick(&["/usr/bin/a", "/usr/bin/b", "unlisted"]);
    match random.below(if depth == 0 { 22 } else { 19 }) {
        0 => format!("context.port {op} {port}"),
        1 => format!("{port} {op} context.port"),
        2 => format!("[{port}, {}].contains(context.port)", random.pick(&PORTS)),
        3 | 4 => format!("context.ip.isInRange(ip(\"{}\"))", random.pick(&PREFIXES)),
        5 => format!("context.ip {equality} ip(\"{}\")", random.pick(&["10.1.2.3", "fd00:1::7", "127.0.0.1"])),
        6 => random.pick(&["context.ip.isIpv4()", "context.ip.isLoopback()", "context.ip.isMulticast()"]).into(),
        7 => format!("context.protocol {equality} \"{}\"", random.pick(&["tcp", "udp"])),
        8 => "context.new_destination".into(),
        9 => format!("context.executable {equality} \"{path}\""),
        10 => "principal.executables.contains(context.executable)".into(),
        11 => format!("resource in Destination::\"{}\"", random.pick(&GROUPS)),
        12 => format!(
            "resource in [Destination::\"{}\", Destination::\"{}\"]",
            random.pick(&GROUPS),
            random.pick(&GROUPS)
        ),
        13 => format!("context.risk {op} {}", random.pick(&[20, 37, 80])),
        14 => format!("context.signals.contains(\"{}\")", random.pick(&["s0", "s1"])),
        15 => "context.fresh.contains(\"edr\")".into(),
        16 => format!("context.hour {op} {}", random.pick(&[7, 12, 19])),
        17 => format!("context.weekday {op} 5"),
        18 => format!("context.now {op} datetime(\"2026-11-2{}T13:30:00Z\")", 3 + random.below(3)),
        19 => format!("!({})", condition(random, 1)),
        20 => format!("(if {} then {} else {})", condition(random, 1), condition(random, 1), condition(random, 1)),
        _ => format!("({} && context.risk == 37 && 9223372036854775807 + context.risk > 0)", condition(random, 1)),
    }
}

fn policy(random: &mut Random, number: usize) -> String {
    let principal = match random.below(4) {
        0 => "principal".to_owned(),
        1 => format!("principal in Team::\"{}\"", random.pick(&["t0", "t1"])),
        _ => format!("principal == ServiceAccount::\"{}\"", random.pick(&ACCOUNTS)),
    };
    let head = format!("@id(\"p{number}\") @owner(\"o\") @reason(\"r\")");
    let mode = if random.chance(15) { " @mode(\"observe\")" } else { "" };
    if random.chance(12) {
        let family = random.pick(&["icmp", "raw", "unix", "netlink"]);
        let effect = random.pick(&["permit", "forbid"]);
        return format!(
            "{head}{mode} {effect}({principal}, action == Action::\"open-socket\", resource) when {{ context.family == \"{family}\" || context.risk > 60 }};\n"
        );
    }
    let (effect, decision) = match random.below(10) {
        0..=5 => ("permit", ""),
        6 | 7 => ("forbid", ""),
        _ => ("forbid", " @decision(\"escalate\")"),
    };
    let resource = match random.below(3) {
        0 => "resource".to_owned(),
        _ => format!("resource in Destination::\"{}\"", random.pick(&GROUPS)),
    };
    let clauses: String = (0..random.below(3))
        .map(|_| {
            let joined: Vec<String> = (0..1 + random.below(2)).map(|_| condition(random, 0)).collect();
            let joint = random.pick(&[" && ", " || "]);
            format!(" {} {{ {} }}", random.pick(&["when", "when", "unless"]), joined.join(joint))
        })
        .collect();
    format!("{head}{decision}{mode} {effect}({principal}, action == Action::\"connect\", {resource}){clauses};\n")
}

pub(super) fn world(random: &mut Random) -> Config {
    let mut accounts = vec![account("alpha", &["t0"]), account("beta", &["t0", "t1"]), account("gamma", &[])];
    accounts[0].executables = vec!["/usr/bin/a".into(), "/usr/bin/c".into()];
    let policies: String = (0..3 + random.below(10)).map(|number| policy(random, number)).collect();
    let mut config = config(accounts, &policies);
    config.destinations = destinations(random);
    config
}

pub(super) fn state(random: &mut Random, now: Timestamp) -> AccountState {
    let texts = |random: &mut Random, of: &[&str]| random.some(of, 2).into_iter().map(str::to_owned).collect();
    let approvals = (0..random.below(3))
        .map(|_| Approval {
            policies: (0..3).map(|_| format!("p{}", random.below(12))).collect(),
            executable: random.chance(50).then(|| random.pick(&PATHS).to_owned()),
            address: address(random),
            port: random.pick(&PORTS),
            protocol: random.pick(&["tcp", "udp"]).into(),
        })
        .collect();
    AccountState {
        risk: random.pick(&[0, 19, 20, 37, 79, 80, 100]),
        signals: texts(random, &["s0", "s1"]),
        fresh: texts(random, &["edr"]),
        approvals,
        now,
    }
}

/// An address at, before or after the edge of some prefix; sometimes an odd one.
pub(super) fn address(random: &mut Random) -> IpAddr {
    if random.chance(15) {
        let odd = ["0.0.0.0", "::", "::ffff:10.1.2.3", "::ffff:0.0.0.0", "255.255.255.255", "ffff::ffff"];
        return random.pick(&odd).parse().unwrap();
    }
    let prefix: ipnet::IpNet = random.pick(&PREFIXES).parse().unwrap();
    let step = random.below(3) as u32;
    let edge = if random.chance(50) { prefix.network() } else { prefix.broadcast() };
    match edge {
        IpAddr::V4(edge) => {
            let moved = u32::from(edge).wrapping_add(step).wrapping_sub(1);
            let moved = Ipv4Addr::from(moved);
            if random.chance(10) { IpAddr::V6(moved.to_ipv6_mapped()) } else { IpAddr::V4(moved) }
        }
        IpAddr::V6(edge) => IpAddr::V6(Ipv6Addr::from(u128::from(edge).wrapping_add(u128::from(step)).wrapping_sub(1))),
    }
}

pub(super) fn attempt(random: &mut Random) -> Attempt {
    if random.chance(5) {
        return Attempt::OpenSocket { family: random.pick(&Family::ALL) };
    }
    Attempt::Connect {
        ip: address(random),
        port: random.pick(&PORTS).wrapping_add(random.below(3) as u16).wrapping_sub(1),
        protocol: random.pick(&[Protocol::Tcp, Protocol::Udp]),
        new_destination: random.chance(50),
        executable: random.chance(70).then(|| random.pick(&PATHS).to_owned()),
    }
}

pub(super) fn boot_ns_of(at: Timestamp) -> u64 {
    (at.as_millisecond() as u64) * 1_000_000
}

/// What the kernel would say, with the names behind the numbers.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) would: Verdict,
    pub(super) error: bool,
    pub(super) policies: Vec<String>,
    pub(super) would_policies: Vec<String>,
    pub(super) errors: Vec<String>,
}

pub(super) fn kernel(
    bundle: &Bundle,
    generation: &mut Generation,
    account: &str,
    attempt: &Attempt,
    now: u64,
) -> (Reason, Answer) {
    let account = generation.account(account).unwrap();
    generation.seen.clear();
    let attempt = match attempt {
        Attempt::OpenSocket { family } => writ_abi::Attempt::OpenSocket(*family),
        Attempt::Connect { ip, port, protocol, new_destination, executable } => {
            let address = match bundle.canonical(*ip) {
                IpAddr::V4(ip) => Address::from_v4(ip.octets()),
                IpAddr::V6(ip) => Address::from_octets(ip.octets()),
            };
            if !new_destination {
                generation.seen.insert((account, address.octets()));
            }
            let class = executable.as_ref().and_then(|path| generation.executables.get(path)).copied();
            let endpoint = Endpoint { address, port: *port, protocol: *protocol };
            writ_abi::Attempt::Connect { endpoint, executable: class.unwrap_or(0) }
        }
    };
    let decision = writ_abi::decide(generation, account, &attempt, now);
    let explanation = generation.explanation(decision.explanation).unwrap().clone();
    let answer = Answer {
        verdict: decision.verdict,
        would: decision.would,
        error: decision.reason == Reason::PolicyError,
        would_policies: explanation.would.unwrap_or_else(|| explanation.policies.clone()),
        policies: explanation.policies,
        errors: explanation.errors,
    };
    (decision.reason, answer)
}

pub(super) fn cedar(bundle: &Bundle, account: &str, state: &AccountState, attempt: &Attempt) -> Answer {
    let evaluation = bundle.evaluate(account, state, attempt);
    Answer {
        verdict: evaluation.verdict,
        would: evaluation.would,
        error: evaluation.reason == Reason::PolicyError,
        policies: evaluation.policies,
        would_policies: evaluation.would_policies,
        errors: evaluation.errors,
    }
}

/// Counts of what was compared, so that a run that compared nothing is seen.
#[derive(Default, Debug)]
struct Tally {
    requests: usize,
    mismatches: usize,
    allowed: usize,
    escalated: usize,
    failed: usize,
    observed: usize,
    after_expiry: usize,
    opened_after_expiry: usize,
}

fn compare(seeds: std::ops::Range<u64>, requests: usize, tally: &mut Tally) {
    for seed in seeds {
        let random = &mut Random(seed);
        let config = world(random);
        let bundle = bundle(&config);
        let now: Timestamp = START.parse().unwrap();
        let outlooks: BTreeMap<String, Outlook> = ACCOUNTS
            .iter()
            .map(|name| {
                let mut outlook = Outlook::from(state(random, now));
                let mut at = now;
                for _ in 0..random.below(3) {
                    at += (10 + random.below(600) as i64).minutes();
                    let approvals = random.some(&[0], 1).iter().flat_map(|_| outlook.state.approvals.clone()).collect();
                    outlook.later.push(AccountState { approvals, ..state(random, at) });
                }
                ((*name).to_owned(), outlook)
            })
            .collect();
        let mut generation = build(&bundle, &config, 2, &outlooks, &[], &boot_ns_of).unwrap();
        for _ in 0..requests {
            let account = random.pick(&ACCOUNTS);
            let attempt = attempt(random);
            let outlook = &outlooks[account];
            let later = random.chance(30);
            let at = if later { now + (random.below(10 * 24 * 60) as i64).minutes() } else { now };
            let holding = outlook.later.iter().rev().find(|state| state.now <= at).unwrap_or(&outlook.state);
            let expected = cedar(&bundle, account, &AccountState { now: at, ..holding.clone() }, &attempt);
            let (reason, found) = kernel(&bundle, &mut generation, account, &attempt, boot_ns_of(at));
            tally.requests += 1;
            let expired = {
                let slot = generation.slots[generation.account(account).unwrap() as usize];
                boot_ns_of(at) >= generation.stances[writ_abi::Slot(slot).stance() as usize].valid_until
            };
            let agrees = if expired {
                tally.after_expiry += 1;
                tally.opened_after_expiry += usize::from(found.verdict == Verdict::Allow);
                let unjudged = matches!(reason, Reason::Expired | Reason::PolicyError);
                // A fallback may be stricter than policy, never laxer.
                unjudged && found.verdict >= expected.verdict && found.would >= expected.would
            } else {
                found == expected
            };
            tally.allowed += usize::from(found.verdict == Verdict::Allow);
            tally.escalated += usize::from(found.verdict == Verdict::Escalate);
            tally.failed += usize::from(found.error);
            tally.observed += usize::from(found.would != found.verdict);
            tally.mismatches += usize::from(!agrees);
            if !agrees && mutation::current() == Mutation::None {
                panic!(
                    "seed {seed}, {account} at {at}, expired {expired}: {attempt:?}\nkernel {reason:?} {found:?}\ncedar {expected:?}\n{holding:?}\n{}",
                    bundle.archived_policies()
                );
            }
        }
    }
}

#[test]
fn the_kernel_decides_what_cedar_decides() {
    let mut tally = Tally::default();
    compare(0..110, 200, &mut tally);
    assert_eq!((tally.requests, tally.mismatches), (22_000, 0));
    // Every kind of answer occurred often enough to have been tested.
    assert!(tally.allowed > 1_000, "{tally:?}");
    assert!(tally.escalated > 100, "{tally:?}");
    assert!(tally.failed > 20, "{tally:?}");
    assert!(tally.observed > 200, "{tally:?}");
    assert!(tally.after_expiry > 1_000, "{tally:?}");
    assert!(tally.opened_after_expiry > 100, "{tally:?}");
}

#[test]
fn a_lost_port_cut_is_noticed() {
    let _guard = mutation::with(Mutation::PortCut);
    let mut tally = Tally::default();
    compare(0..15, 100, &mut tally);
    assert!(tally.mismatches > 0);
}

#[test]
fn a_destination_that_loses_its_addresses_is_noticed() {
    let _guard = mutation::with(Mutation::DestinationAddresses);
    let mut tally = Tally::default();
    compare(0..15, 100, &mut tally);
    assert!(tally.mismatches > 0);
}

#[test]
fn a_fallback_that_forgets_a_later_state_is_noticed() {
    let _guard = mutation::with(Mutation::LaterStates);
    let mut tally = Tally::default();
    compare(0..15, 100, &mut tally);
    assert!(tally.mismatches > 0);
}

#[test]
fn a_state_without_any_time_never_expires() {
    let config = config(
        vec![account("alpha", &[])],
        "@id(\"p\") @owner(\"o\") @reason(\"r\") permit(principal, action == Action::\"connect\", resource);",
    );
    let bundle = bundle(&config);
    let outlook = Outlook::from(AccountState::quiet(START.parse().unwrap()));
    let outlooks = BTreeMap::from([("alpha".to_owned(), outlook)]);
    let generation = build(&bundle, &config, 2, &outlooks, &[], &boot_ns_of).unwrap();
    let stance = generation.stances[writ_abi::Slot(generation.slots[0]).stance() as usize];
    assert_eq!(stance.valid_until, NEVER);
    assert_eq!(bundle.escalating(), BTreeSet::new());
}
