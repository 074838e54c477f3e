//! Grants and approvals added to a generation in force, one after the other, against Cedar and against building anew.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::{Timestamp, ToSpan};
use writ_abi::{Protocol, Slot};

use super::agreement::{
    ACCOUNTS, GROUPS, PATHS, PORTS, PREFIXES, Random, START, attempt, boot_ns_of, cedar, kernel, state, world,
};
use super::{Generation, Outlook, build};
use crate::policy::fixture::bundle;
use crate::policy::{Bundle, Grant, GrantTarget};

fn grant(random: &mut Random, id: usize, account: &str, now: Timestamp) -> Grant {
    let target = if random.chance(40) {
        GrantTarget::Destination(random.pick(&GROUPS).to_owned())
    } else {
        let addresses: IpNet = match random.below(4) {
            0 => random.pick(&PREFIXES).parse().unwrap(),
            1 => super::agreement::address(random).to_canonical().into(),
            2 => "10.1.2.0/25".parse().unwrap(),
            _ => "fd00:1::/96".parse().unwrap(),
        };
        let protocol = random.chance(70).then(|| random.pick(&[Protocol::Tcp, Protocol::Udp]));
        GrantTarget::Endpoint { addresses, port: random.pick(&PORTS), protocol }
    };
    Grant {
        id: format!("G-{id}"),
        account: account.to_owned(),
        target,
        executable: random.chance(40).then(|| random.pick(&PATHS).to_owned()),
        expires: now + (30 + random.below(600) as i64).minutes(),
        approver: "alice".into(),
        reason: "a test".into(),
    }
}

/// Puts an account into a stance the way the daemon does: by growing what is in force, or, if that cannot be, anew.
fn follow(
    bundle: &Bundle,
    config: &crate::config::Config,
    generation: &mut Generation,
    outlooks: &BTreeMap<String, Outlook>,
    account: &str,
    rebuilt: &mut usize,
) {
    let outlook = &outlooks[account];
    generation.forget_rows(account);
    if generation.grow(bundle, account, outlook).is_none() {
        *rebuilt += 1;
        *generation = build(bundle, config, 2, outlooks, &[], &boot_ns_of).unwrap();
        return;
    }
    assert!(!generation.has_rows(bundle, account, outlook), "its rows were forgotten");
    let stance = generation.append_stance(bundle, account, outlook, &boot_ns_of).unwrap();
    assert!(generation.has_rows(bundle, account, outlook));
    let index = generation.account(account).unwrap();
    generation.set_slot(index, Slot::new(stance, outlook.epoch));
}

#[test]
fn what_is_added_one_by_one_decides_as_cedar_does_and_as_building_anew_does() {
    let (mut compared, mut allowed_by_grant, mut rebuilt) = (0, 0, 0);
    for seed in 1_004..1_008 {
        let random = &mut Random(seed);
        let config = world(random);
        let mut bundle = bundle(&config);
        let now: Timestamp = START.parse().unwrap();
        let mut outlooks: BTreeMap<String, Outlook> =
            ACCOUNTS.iter().map(|name| ((*name).to_owned(), Outlook::from(state(random, now)))).collect();
        let mut generation = build(&bundle, &config, 2, &outlooks, &[], &boot_ns_of).unwrap();
        let mut grants: BTreeMap<&str, Vec<Grant>> = BTreeMap::new();
        for step in 0..8 {
            let account = random.pick(&ACCOUNTS);
            match random.below(3) {
                // Another state: signals, approvals.
                0 => drop(outlooks.insert(account.to_owned(), Outlook::from(state(random, now)))),
                1 if random.chance(50) => drop(grants.remove(account)),
                _ => {
                    let made = grant(random, step, account, now);
                    grants.entry(account).or_default().push(made);
                }
            }
            let sources: Vec<_> = grants.get(account).into_iter().flatten().map(Grant::source).collect();
            bundle = bundle.granting(account, &sources).unwrap();
            follow(&bundle, &config, &mut generation, &outlooks, account, &mut rebuilt);
            let mut anew = build(&bundle, &config, 2, &outlooks, &[], &boot_ns_of).unwrap();
            for _ in 0..25 {
                let (account, attempt) = (random.pick(&ACCOUNTS), attempt(random));
                let expected = cedar(&bundle, account, &outlooks[account].state, &attempt);
                let (_, found) = kernel(&bundle, &mut generation, account, &attempt, boot_ns_of(now));
                let (_, built) = kernel(&bundle, &mut anew, account, &attempt, boot_ns_of(now));
                let asked = || format!("seed {seed}, step {step}, {account}: {attempt:?}\n{grants:#?}");
                assert_eq!(built, expected, "built anew, {}", asked());
                assert_eq!(found, expected, "{}", asked());
                // After every end that time brings, too.
                let later = now + (random.below(24 * 60) as i64).minutes();
                let (reason, after) = kernel(&bundle, &mut generation, account, &attempt, boot_ns_of(later));
                let at_last = crate::policy::AccountState { now: later, ..outlooks[account].state.clone() };
                let then = cedar(&bundle, account, &at_last, &attempt);
                assert!(
                    after.verdict >= then.verdict,
                    "seed {seed}, step {step}, {account} at {later} ({reason:?}): {attempt:?}"
                );
                compared += 1;
                allowed_by_grant += usize::from(found.policies.iter().any(|id| id.starts_with("grant:")));
            }
        }
    }
    assert_eq!(compared, 4 * 8 * 25);
    assert!(allowed_by_grant > 2, "{allowed_by_grant} were allowed by a grant");
    assert!(rebuilt < 4, "{rebuilt} steps took a new generation");
}

#[test]
fn a_fallback_written_first_opens_nothing_and_ends_nothing_else() {
    for seed in 0..20 {
        let random = &mut Random(seed);
        let config = world(random);
        let bundle = bundle(&config);
        let now: Timestamp = START.parse().unwrap();
        let outlooks: BTreeMap<String, Outlook> =
            ACCOUNTS.iter().map(|name| ((*name).to_owned(), Outlook::from(state(random, now)))).collect();
        let mut generation = build(&bundle, &config, 2, &outlooks, &[], &boot_ns_of).unwrap();
        let account = random.pick(&ACCOUNTS);
        let index = generation.account(account).unwrap();
        let before = Slot(generation.slots[index as usize]);
        let fallback = generation.append_fallback(before.stance()).unwrap();
        for _ in 0..50 {
            let attempt = attempt(random);
            let (_, was) = kernel(&bundle, &mut generation, account, &attempt, boot_ns_of(now));
            generation.set_slot(index, Slot::new(fallback, 1));
            let (reason, is) = kernel(&bundle, &mut generation, account, &attempt, boot_ns_of(now));
            generation.set_slot(index, before);
            assert!(is.verdict >= was.verdict && reason != writ_abi::Reason::Policy, "{attempt:?}: {was:?} {is:?}");
        }
    }
}
