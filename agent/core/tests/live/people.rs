//! Offboarding, break-glass, and what comes back after a restart or a clock that was set.

use std::time::Duration;

use jiff::SignedDuration;
use writ_core::signal::{ApproverRefusal, ClockReading};
use writ_core::stance::{
    AnswerRefusal, Attempt, Attempted, BreakGlassRefusal, BreakGlassRequest, FORMAT, GrantRefusal, LiveState,
    OffboardingRefusal, RestoreError, Target, difference,
};

use crate::fixture::{
    HOUR, MINUTE, POLICY, at, config, edr, grant, root, root_of, security, signal, situation, user, workload,
};

fn attempt() -> Attempt {
    Attempt {
        account: "billing".into(),
        target: Target::Connect {
            executable: "/usr/bin/psql".into(),
            address: "fd00:20::5".parse().unwrap(),
            port: 5432,
            protocol: "tcp".into(),
        },
        policies: ["p".to_owned()].into(),
        policy_digest: POLICY.into(),
    }
}

fn escalate(live: &mut LiveState, second: i64) -> String {
    match live.attempt(&attempt(), at(second), &config()) {
        Attempted::New(escalation) => escalation.id,
        other => panic!("not new: {other:?}"),
    }
}

#[test]
fn offboarding_ends_every_permission_until_a_reasoned_reinstatement_and_brings_none_back() {
    let config = config();
    let mut live = LiveState::default();
    live.create_grant(&grant("billing", "prod-db", HOUR), &root(), at(0), &config).unwrap();
    let approved = escalate(&mut live, 0);
    live.approve(&approved, HOUR, "ok", None, &root(), POLICY, at(0), &config).unwrap();
    for (caller, account, reason, expected) in [
        (workload("billing"), "billing", "r", OffboardingRefusal::Approver(ApproverRefusal::Subject)),
        (user("ops", 1002), "billing", "r", OffboardingRefusal::Approver(ApproverRefusal::NotAnApprover)),
        (user("ops", 1002), "nobody", "r", OffboardingRefusal::Approver(ApproverRefusal::NotAnApprover)),
        (root(), "nobody", "r", OffboardingRefusal::UnknownAccount("nobody".into())),
        (root(), "billing", "", OffboardingRefusal::NoReason),
    ] {
        assert_eq!(live.offboard(account, reason, &caller, at(1), &config), Err(expected));
    }
    let (entry, grants, escalations) = live.offboard("billing", "left", &security(), at(2), &config).unwrap();
    assert_eq!((entry.reason.as_str(), grants.len(), escalations.len()), ("left", 1, 1));
    assert_eq!(
        live.offboard("billing", "left", &root(), at(3), &config),
        Err(OffboardingRefusal::Already("billing".into()))
    );

    let mut live = LiveState::restore(&live.to_json().unwrap()).unwrap();
    assert!(situation(&live, "billing", at(3), &config).offboarded, "it survives a restart");
    let ask = grant("billing", "prod-db", HOUR);
    assert_eq!(live.create_grant(&ask, &root(), at(3), &config), Err(GrantRefusal::Offboarded("billing".into())));
    let late = escalate(&mut live, 3);
    assert_eq!(
        live.approve(&late, HOUR, "ok", None, &root(), POLICY, at(3), &config),
        Err(AnswerRefusal::Offboarded("billing".into()))
    );
    let glass = BreakGlassRequest { account: Some("billing".into()), ttl: HOUR, reason: "r".into() };
    assert_eq!(
        live.begin_break_glass(&glass, &root(), at(3), &config),
        Err(BreakGlassRefusal::Offboarded("billing".into()))
    );

    let subject = Err(OffboardingRefusal::Approver(ApproverRefusal::Subject));
    assert_eq!(live.reinstate("billing", "back", &root_of("billing"), &config), subject);
    assert_eq!(live.reinstate("billing", " ", &root(), &config), Err(OffboardingRefusal::NoReason));
    live.reinstate("billing", "back", &root(), &config).unwrap();
    assert_eq!(
        live.reinstate("billing", "back", &root(), &config),
        Err(OffboardingRefusal::NotOffboarded("billing".into()))
    );
    let after = situation(&live, "billing", at(4), &config);
    assert!(!after.offboarded && after.grants.is_empty() && after.approvals.is_empty());
}

#[test]
fn break_glass_ends_by_itself_and_reaches_whom_it_names() {
    let config = config();
    let mut live = LiveState::default();
    let ask = |account: Option<&str>, ttl: Duration| BreakGlassRequest {
        account: account.map(str::to_owned),
        ttl,
        reason: "outage 3".into(),
    };
    let silent = BreakGlassRequest { reason: String::new(), ..ask(None, HOUR) };
    for (request, caller, expected) in [
        (ask(Some("billing"), HOUR), workload("billing"), BreakGlassRefusal::Approver(ApproverRefusal::Subject)),
        (ask(None, HOUR), workload("billing"), BreakGlassRefusal::Approver(ApproverRefusal::Subject)),
        (ask(None, HOUR), user("ops", 1002), BreakGlassRefusal::Approver(ApproverRefusal::NotAnApprover)),
        (ask(Some("nobody"), HOUR), user("ops", 1002), BreakGlassRefusal::Approver(ApproverRefusal::NotAnApprover)),
        (ask(Some("nobody"), HOUR), root(), BreakGlassRefusal::UnknownAccount("nobody".into())),
        (ask(None, Duration::ZERO), root(), BreakGlassRefusal::Ttl(8 * HOUR)),
        (ask(None, 9 * HOUR), root(), BreakGlassRefusal::Ttl(8 * HOUR)),
        (silent, root(), BreakGlassRefusal::NoReason),
    ] {
        assert_eq!(live.begin_break_glass(&request, &caller, at(0), &config), Err(expected), "{request:?}");
    }
    let until =
        |live: &LiveState, account: &str, second| situation(live, account, at(second), &config).break_glass_until;
    live.begin_break_glass(&ask(Some("billing"), 10 * MINUTE), &security(), at(0), &config).unwrap();
    assert_eq!((until(&live, "billing", 1), until(&live, "agent", 1)), (Some(at(600)), None));
    live.begin_break_glass(&ask(None, 5 * MINUTE), &security(), at(0), &config).unwrap();
    assert_eq!((until(&live, "billing", 1), until(&live, "agent", 1)), (Some(at(600)), Some(at(300))));
    assert_eq!((until(&live, "billing", 300), until(&live, "agent", 300)), (Some(at(600)), None));
    assert_eq!(live.next_expiry(), Some(at(300)), "what is over is due until it is taken up");
    assert_eq!(live.expire(at(300)).break_glass.len(), 1);
    assert_eq!(live.next_expiry(), Some(at(600)));
    assert_eq!(until(&live, "billing", 600), None);
    assert_eq!(live.expire(at(600)).break_glass.len(), 1);
    assert_eq!(live.next_expiry(), None);
}

#[test]
fn a_restart_loses_nothing_and_a_file_it_cannot_read_is_an_error() {
    let config = config();
    let mut live = LiveState::default();
    live.receive(&signal("billing", "edr.malware"), &edr(), at(0), &config);
    live.create_grant(&grant("billing", "[fd00:20::]/48:5432", HOUR), &root(), at(1), &config).unwrap();
    let approved = escalate(&mut live, 2);
    live.approve(&approved, HOUR, "ok", Some("T-1".into()), &root(), POLICY, at(3), &config).unwrap();
    live.offboard("agent", "left", &root(), at(4), &config).unwrap();
    live.receive(&signal("billing", "workload.shell"), &root(), at(5), &config);
    live.read_clock(ClockReading { wall: at(5), boot_ns: 5, boot_id: "a".into() });
    let json = live.to_json().unwrap();
    assert_eq!(LiveState::restore(&json).unwrap(), live);

    let newer_member = json.replacen("{\"format\"", "{\"later\":[1],\"format\"", 1);
    assert_eq!(LiveState::restore(&newer_member).unwrap(), live, "an added member is passed over");
    let newer_format = json.replacen("\"format\":1", "\"format\":2", 1);
    assert!(matches!(LiveState::restore(&newer_format), Err(RestoreError::Newer { found: 2 })));
    assert_eq!(FORMAT, 1);
    for broken in ["", "{}", "{\"format\":1}", json.split_at(json.len() / 2).0] {
        assert!(matches!(LiveState::restore(broken), Err(RestoreError::Malformed(_))), "{broken}");
    }
}

#[test]
fn lifetimes_keep_their_length_when_the_wall_clock_is_set() {
    let config = config();
    let read =
        |wall, boot: u64, id: &str| ClockReading { wall: at(wall), boot_ns: boot * 1_000_000_000, boot_id: id.into() };
    for step in [-7200, 7200] {
        let mut live = LiveState::default();
        assert_eq!(live.read_clock(read(0, 100, "a")), None);
        live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(0), &config);
        live.create_grant(&grant("billing", "prod-db", 10 * MINUTE), &root(), at(0), &config).unwrap();
        let approved = escalate(&mut live, 0);
        live.approve(&approved, 10 * MINUTE, "ok", None, &root(), POLICY, at(0), &config).unwrap();
        let glass = BreakGlassRequest { account: None, ttl: 10 * MINUTE, reason: "r".into() };
        live.begin_break_glass(&glass, &root(), at(0), &config).unwrap();
        let mut live = LiveState::restore(&live.to_json().unwrap()).unwrap();
        assert_eq!(live.read_clock(read(60 + step, 160, "a")), Some(SignedDuration::from_secs(step)));
        assert_eq!(live.next_expiry(), Some(at(300 + step)));
        let last = situation(&live, "billing", at(599 + step), &config);
        assert_eq!((last.grants.len(), last.approvals.len(), last.break_glass_until), (1, 1, Some(at(600 + step))));
        let over = situation(&live, "billing", at(600 + step), &config);
        assert_eq!((over.grants.len(), over.approvals.len(), over.break_glass_until), (0, 0, None));
        let heartbeat = live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(61 + step), &config);
        assert_eq!(heartbeat.outcome.code(), "accepted", "a clock set back does not lock senders out");
    }
    let mut live = LiveState::default();
    live.read_clock(read(0, 100, "a"));
    assert_eq!(live.read_clock(read(10_000, 10_100, "a")), None, "time that passed is no step");
    assert_eq!(live.read_clock(read(90_000, 3, "b")), None, "across boots the wall clock is all there is");
}

#[test]
fn a_change_says_what_differs_and_the_digest_tells_rows_apart() {
    let config = config();
    let mut live = LiveState::default();
    let before = situation(&live, "billing", at(0), &config);
    assert!(difference(&before, &situation(&live, "billing", at(9), &config)).is_empty());
    live.receive(&signal("billing", "edr.malware"), &edr(), at(1), &config);
    live.receive(&signal("billing", "edr.heartbeat"), &edr(), at(1), &config);
    let made = live.create_grant(&grant("billing", "prod-db", HOUR), &root(), at(1), &config).unwrap();
    let after = situation(&live, "billing", at(1), &config);
    let delta = difference(&before, &after);
    assert_eq!(delta.risk, Some((0, 90)));
    assert_eq!(delta.signals.added, ["edr.malware".to_owned()].into());
    assert_eq!(delta.fresh.added, ["edr.heartbeat".to_owned()].into());
    assert_eq!(delta.grants.added, [made.id].into());
    assert_eq!(difference(&after, &before).risk, Some((90, 0)));

    let mut later = after.clone();
    later.state.now = at(2);
    assert_eq!(after.digest("day"), later.digest("day"), "the time counts by its class only");
    let mut others = vec![before.digest("day"), after.digest("night")];
    for change in [
        |s: &mut writ_core::stance::Situation| s.state.risk = 89,
        |s: &mut writ_core::stance::Situation| s.state.signals.clear(),
        |s: &mut writ_core::stance::Situation| s.state.fresh.clear(),
        |s: &mut writ_core::stance::Situation| s.grants.clear(),
        |s: &mut writ_core::stance::Situation| s.offboarded = true,
        |s: &mut writ_core::stance::Situation| s.account = "agent".into(),
    ] {
        let mut other = after.clone();
        change(&mut other);
        others.push(other.digest("day"));
    }
    assert!(!others.contains(&after.digest("day")));
    assert!(after.digest("day").starts_with("sha256-") && after.digest("day").len() == 7 + 64);
}
