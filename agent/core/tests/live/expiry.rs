//! Time alone: how long a situation holds, and that the fallback made from the later ones never opens.

use jiff::Timestamp;
use proptest::prelude::*;
use writ_core::signal::{Caller, Incoming};
use writ_core::stance::{
    Attempt, Attempted, LiveState, Situation, Target, TimeClasses, deadline, expiry_states, expiry_steps, valid_until,
};

use crate::fixture::{HOUR, MINUTE, POLICY, account, at, config, edr, grant, root, signal};

#[test]
fn a_situation_holds_until_the_first_end_that_policy_can_notice() {
    let config = config();
    let never = TimeClasses::default();
    let mut live = LiveState::default();
    let until =
        |live: &LiveState, times: &TimeClasses| valid_until(&account(live, "billing", at(0), &config), at(0), times);
    assert_eq!(until(&live, &never), None);
    live.receive(&signal("billing", "edr.malware"), &edr(), at(0), &config);
    assert_eq!(until(&live, &never), Some(at(3600)));
    let lesser = Incoming { risk: Some(5), ttl: Some(MINUTE), ..signal("billing", "noise") };
    live.receive(&lesser, &root(), at(0), &config);
    assert_eq!(until(&live, &never), Some(at(3600)), "a lesser signal's end changes nothing");
    live.create_grant(&grant("billing", "prod-db", 20 * MINUTE), &root(), at(0), &config).unwrap();
    assert_eq!(until(&live, &never), Some(at(1200)));
    live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(0), &config);
    assert_eq!(until(&live, &never), Some(at(300)), "freshness ends");
    let attempt = Attempt {
        account: "billing".into(),
        target: Target::Connect {
            executable: "/usr/bin/psql".into(),
            address: "10.20.0.5".parse().unwrap(),
            port: 5432,
            protocol: "tcp".into(),
        },
        policies: Default::default(),
        policy_digest: POLICY.into(),
    };
    let Attempted::New(asked) = live.attempt(&attempt, at(0), &config) else { panic!("not new") };
    assert_eq!(until(&live, &never), Some(at(300)), "a request's end is nothing to policy");
    live.approve(&asked.id, 4 * MINUTE, "ok", None, &root(), POLICY, at(0), &config).unwrap();
    assert_eq!(until(&live, &never), Some(at(240)), "an approval ends");
    let window = TimeClasses { next: Some(at(120)), ..never };
    assert_eq!(until(&live, &window), Some(at(120)));
}

#[test]
fn freshness_lasts_as_long_as_the_latest_source_says() {
    let config = config();
    let mut live = LiveState::default();
    let required = ["edr.heartbeat".to_owned(), "edr.malware".to_owned()];
    live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(0), &config);
    live.receive(&signal("billing", "edr.heartbeat"), &root(), at(60), &config);
    live.receive(&signal("billing", "edr.malware"), &edr(), at(60), &config);
    let view = account(&live, "billing", at(60), &config);
    let fresh = |second| view.freshness(&required, at(second)).into_values().collect::<Vec<_>>();
    assert_eq!(fresh(60), [Some(at(360)), None], "a kind that is no freshness never is fresh");
    assert_eq!(fresh(359), [Some(at(360)), None]);
    assert_eq!(fresh(360), [None, None]);
    assert!(view.situation(at(359)).state.fresh.contains("edr.heartbeat"));
    assert!(view.situation(at(360)).state.fresh.is_empty());
}

#[test]
fn states_come_in_order_with_the_present_first_and_past_the_bound_there_is_no_list() {
    let config = config();
    let mut live = LiveState::default();
    live.receive(&signal("billing", "edr.malware"), &edr(), at(0), &config);
    live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(0), &config);
    live.create_grant(&grant("billing", "prod-db", 20 * MINUTE), &root(), at(0), &config).unwrap();
    let view = account(&live, "billing", at(0), &config);
    let steps = expiry_steps(&view, at(0), 4).unwrap();
    let seen: Vec<_> = (steps.iter())
        .map(|step| {
            (step.from, step.situation.state.fresh.len(), step.situation.grants.len(), step.situation.state.risk)
        })
        .collect();
    assert_eq!(seen, [(at(0), 1, 1, 90), (at(300), 0, 1, 90), (at(1200), 0, 0, 90), (at(3600), 0, 0, 0)]);
    assert_eq!(expiry_steps(&view, at(0), 3), None);

    let times = TimeClasses { representatives: vec![at(50), at(90_000)], ..TimeClasses::default() };
    let states = expiry_states(&view, at(0), &times, 12).unwrap();
    assert_eq!(states.len(), 12, "each with each time of day, and with its own");
    assert_eq!(states[0], view.situation(at(0)));
    assert_eq!(expiry_states(&view, at(0), &times, 11), None);
    assert_eq!(expiry_states(&view, at(0), &TimeClasses::default(), 0), None);
}

#[test]
fn an_end_that_only_opens_does_not_end_the_row() {
    let config = config();
    let mut live = LiveState::default();
    live.receive(&signal("billing", "workload.shell"), &root(), at(0), &config);
    live.create_grant(&grant("billing", "prod-db", HOUR), &root(), at(0), &config).unwrap();
    let view = account(&live, "billing", at(0), &config);
    let steps = expiry_steps(&view, at(0), 16).unwrap();
    assert_eq!(valid_until(&view, at(0), &TimeClasses::default()), Some(at(600)));
    let needs_grant = |later: &Situation| !later.grants.is_empty();
    assert_eq!(deadline(&steps, &TimeClasses::default(), needs_grant), Some(at(3600)));
    assert_eq!(deadline(&steps, &TimeClasses::default(), |_| true), None);
    let window = TimeClasses { next: Some(at(10)), ..TimeClasses::default() };
    assert_eq!(deadline(&steps, &window, |_| true), Some(at(10)));
}

/// A policy of any shape: whether it allows is a scrambled bit of all it can see.
fn allows(policy: u64, situation: &Situation, class: &str) -> bool {
    let seen = situation.digest(class);
    let bits = seen.bytes().fold(policy, |bits, byte| (bits ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // Mostly allowing: a fallback that always denies would prove nothing.
    bits >> 61 != 0
}

/// The time classes of a policy that distinguishes even from odd ten-minute spans.
fn class_of(now: Timestamp) -> &'static str {
    if (now.as_second() / 600) % 2 == 0 { "even" } else { "odd" }
}

proptest! {
    #[test]
    fn a_fallback_allows_only_what_every_later_moment_and_the_present_allow(
        policy: u64,
        ends in prop::collection::vec((0usize..5, 1u64..4000), 0..6),
        grants in prop::collection::vec(1u64..4000, 0..3),
    ) {
        let config = config();
        let mut live = LiveState::default();
        for (index, (kind, ttl)) in ends.into_iter().enumerate() {
            let kind = ["edr.malware", "edr.suspicion", "edr.heartbeat", "maintenance", "noise"][kind];
            let ttl = std::time::Duration::from_secs(ttl);
            let incoming = Incoming { risk: Some(10 * index as u8), ttl: Some(ttl), ..signal("billing", kind) };
            let caller = Caller { uid: 3000 + index as u32, name: Some("ops".into()), ..Caller::default() };
            live.receive(&incoming, &caller, at(0), &config);
        }
        for ttl in grants {
            let ask = grant("billing", "prod-db", std::time::Duration::from_secs(ttl));
            live.create_grant(&ask, &root(), at(0), &config).unwrap();
        }
        let view = account(&live, "billing", at(0), &config);
        let times = TimeClasses {
            class: class_of(at(0)).into(),
            next: None,
            representatives: vec![at(0), at(600)],
        };
        let states = expiry_states(&view, at(0), &times, 64).unwrap();
        let fallback = states.iter().all(|state| allows(policy, state, class_of(state.state.now)));
        for second in (0..5000).step_by(13) {
            let truth = view.situation(at(second));
            prop_assert!(
                !fallback || allows(policy, &truth, class_of(at(second))),
                "the fallback allows what {second} s later is denied"
            );
        }
    }
}
