//! Grants: what their destinations mean, who may make them, and that an ended one stays ended.

use std::time::Duration;

use writ_core::signal::{ApproverRefusal, Caller};
use writ_core::stance::{
    DestinationError, GRANTS_PER_ACCOUNT, GrantDestination, GrantRefusal, GrantRequest, LiveState, RevocationCause,
    RevokeRefusal,
};

use crate::fixture::{
    HOUR, MINUTE, at, config, edr, grant, root, root_of, security, signal, situation, user, workload,
};

#[test]
fn a_destination_reads_as_it_is_written_in_one_canonical_form() {
    for (text, canonical) in [
        ("prod-db", "prod-db"),
        ("10.20.0.5:5432", "10.20.0.5:5432/tcp"),
        ("10.20.0.5/32:5432/tcp", "10.20.0.5:5432/tcp"),
        ("10.20.0.0/16:53/udp", "10.20.0.0/16:53/udp"),
        ("0.0.0.0/0:443", "0.0.0.0/0:443/tcp"),
        ("0.0.0.0:80", "127.0.0.1:80/tcp"),
        ("[::]:80", "[::1]:80/tcp"),
        ("[::]/0:443", "[::]/0:443/tcp"),
        ("[fd00:20::1]:5432", "[fd00:20::1]:5432/tcp"),
        ("[fd00:20::]/48:5432", "[fd00:20::]/48:5432/tcp"),
        ("[fd00:20::/48]:5432/udp", "[fd00:20::]/48:5432/udp"),
        ("[fd00:20:0:0::1/128]:1", "[fd00:20::1]:1/tcp"),
        ("[::ffff:10.0.0.1]:65535", "10.0.0.1:65535/tcp"),
        ("[::ffff:10.0.0.0/104]:1", "10.0.0.0/8:1/tcp"),
        ("[::ffff:0.0.0.0/128]:1", "127.0.0.1:1/tcp"),
    ] {
        let destination: GrantDestination = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(destination.to_string(), canonical, "{text}");
        assert_eq!(canonical.parse(), Ok(destination.clone()), "{text}");
        let json = serde_json::to_string(&destination).unwrap();
        assert_eq!(json, format!("\"{canonical}\""));
        assert_eq!(serde_json::from_str::<GrantDestination>(&json).unwrap(), destination);
    }
}

#[test]
fn a_destination_that_could_mean_something_else_is_refused() {
    use DestinationError::{Address, Brackets, Form, HostBits, Mapped, Port, Protocol};
    let text = str::to_owned;
    for (given, expected) in [
        ("", Form(text(""))),
        ("10.20.0.5", Form(text("10.20.0.5"))),
        ("prod db", Form(text("prod db"))),
        ("10.0.0.0/8", Form(text("10.0.0.0/8"))),
        ("[fd00::1]", Form(text("[fd00::1]"))),
        ("[fd00::1:443", Form(text("[fd00::1:443"))),
        ("[fd00::/48]/48:443", Form(text("[fd00::/48]/48:443"))),
        ("[fd00::1]x:443", Form(text("[fd00::1]x:443"))),
        ("fd00::1:443", Brackets(text("fd00::1:443"))),
        ("prod-db:5432", Address(text("prod-db"))),
        ("10.0.0.0/33:1", Address(text("10.0.0.0/33"))),
        ("10.0.0.0/+8:1", Address(text("10.0.0.0/+8"))),
        ("10.0.0/8:1", Address(text("10.0.0/8"))),
        ("[fe80::1%eth0]:1", Address(text("fe80::1%eth0"))),
        ("10.20.0.5/16:1", HostBits { given: text("10.20.0.5/16"), network: text("10.20.0.0/16") }),
        ("[::/80]:1", Mapped(text("::/80"))),
        ("10.0.0.1:0", Port(text("0"))),
        ("10.0.0.1:+1", Port(text("+1"))),
        ("10.0.0.1:65536", Port(text("65536"))),
        ("10.0.0.1:1-5", Port(text("1-5"))),
        ("10.0.0.1:", Port(text(""))),
        ("10.0.0.1:1/sctp", Protocol(text("sctp"))),
        ("10.0.0.1:1/tcp/x", Protocol(text("tcp/x"))),
    ] {
        assert_eq!(given.parse::<GrantDestination>(), Err(expected), "{given}");
    }
}

#[test]
fn a_grant_is_made_only_by_someone_else_for_something_real_and_not_for_long() {
    let config = config();
    let ok = || grant("billing", "prod-db", HOUR);
    let with = |change: fn(&mut GrantRequest)| {
        let mut request = ok();
        change(&mut request);
        request
    };
    let subject = GrantRefusal::Approver(ApproverRefusal::Subject);
    let stranger = GrantRefusal::Approver(ApproverRefusal::NotAnApprover);
    let workload_in_security = Caller { groups: vec!["security".into()], ..workload("billing") };
    for (what, request, caller, expected) in [
        ("root", ok(), root(), None),
        ("an approver", ok(), security(), None),
        ("an operator", ok(), user("ops", 1002), Some(stranger.clone())),
        ("anybody else", ok(), user("eve", 1003), Some(stranger.clone())),
        ("the workload", ok(), workload("billing"), Some(subject.clone())),
        ("the workload as an approver", ok(), workload_in_security, Some(subject.clone())),
        ("the workload's root", ok(), root_of("billing"), Some(subject)),
        ("another workload's root", ok(), root_of("agent"), Some(stranger)),
        (
            "anybody else, of an unknown account",
            grant("nobody", "prod-db", HOUR),
            user("eve", 1003),
            Some(GrantRefusal::Approver(ApproverRefusal::NotAnApprover)),
        ),
        (
            "an unknown account",
            grant("nobody", "prod-db", HOUR),
            root(),
            Some(GrantRefusal::UnknownAccount("nobody".into())),
        ),
        (
            "an unknown destination",
            grant("billing", "prod", HOUR),
            root(),
            Some(GrantRefusal::UnknownDestination("prod".into())),
        ),
        ("an endpoint", grant("billing", "192.0.2.1:443", HOUR), root(), None),
        ("no time", with(|r| r.ttl = Duration::ZERO), root(), Some(GrantRefusal::NoTtl)),
        ("the longest time", with(|r| r.ttl = 8 * HOUR), root(), None),
        ("too long a time", with(|r| r.ttl = 8 * HOUR + MINUTE), root(), Some(GrantRefusal::TtlTooLong(8 * HOUR))),
        ("no reason", with(|r| r.reason = " \n".into()), root(), Some(GrantRefusal::NoReason)),
        (
            "a bare program",
            with(|r| r.executable = Some("psql".into())),
            root(),
            Some(GrantRefusal::Executable("psql".into())),
        ),
    ] {
        let mut live = LiveState::default();
        let outcome = live.create_grant(&request, &caller, at(0), &config);
        assert_eq!(outcome.as_ref().err(), expected.as_ref(), "{what}");
        assert_eq!(live.grants().all(at(0)).count(), usize::from(expected.is_none()), "{what}");
    }
}

#[test]
fn a_grant_says_who_made_it_and_ends_at_its_expiry() {
    let config = config();
    let mut live = LiveState::default();
    let made = live.create_grant(&grant("billing", "prod-db", HOUR), &security(), at(0), &config).unwrap();
    assert!(made.id.starts_with("G-"));
    assert_eq!(
        (made.approver.uid, made.approver.loginuid, made.approver.ticket.as_deref()),
        (1000, Some(1000), Some("OPS-7"))
    );
    assert!(situation(&live, "billing", at(3599), &config).grants.contains(&made.id));
    assert!(situation(&live, "billing", at(3600), &config).grants.is_empty(), "whether or not it has been removed");
    assert!(situation(&live, "agent", at(0), &config).grants.is_empty());
    assert_eq!(live.expire(at(3600)).grants, [made]);
    assert_eq!(live.expire(at(3600)).grants, []);
}

#[test]
fn a_revoked_grant_is_over_for_good_whoever_ended_it() {
    let config = config();
    let mut live = LiveState::default();
    let ask = grant("billing", "prod-db", HOUR);
    let first = live.create_grant(&ask, &root(), at(0), &config).unwrap();
    let other = live.create_grant(&grant("agent", "prod-db", HOUR), &root(), at(0), &config).unwrap();
    let refused = live.revoke_grant(&first.id, "", &user("eve", 1003), at(1), &config);
    assert_eq!(refused, Err(RevokeRefusal::Approver(ApproverRefusal::NotAnApprover)));
    live.revoke_grant(&first.id, "done", &user("ops", 1002), at(1), &config).unwrap();
    let again = live.revoke_grant(&first.id, "done", &root(), at(2), &config);
    assert_eq!(again, Err(RevokeRefusal::Ended(first.id.clone())));
    assert_eq!(live.revoke_grant("G-0", "", &root(), at(2), &config), Err(RevokeRefusal::Unknown("G-0".into())));
    let not_told = Err(RevokeRefusal::Approver(ApproverRefusal::NotAnApprover));
    assert_eq!(live.revoke_grant("G-0", "", &user("eve", 1003), at(2), &config), not_told, "whether there is one");

    let second = live.create_grant(&ask, &root(), at(10), &config).unwrap();
    assert_ne!(first.id, second.id);
    assert!(live.receive(&signal("billing", "edr.malware"), &edr(), at(11), &config).grants.is_empty(), "not selected");
    let drift = live.receive(&signal("billing", "workload.shell"), &root(), at(12), &config);
    assert_eq!(drift.grants.len(), 1);
    let revoked = drift.grants[0].revoked.clone().unwrap();
    let id = drift.outcome.accepted().unwrap().id.clone();
    assert_eq!(revoked.cause, RevocationCause::Drift { signal: id, kind: "workload.shell".into() });

    live.expire(at(12 + 600));
    let json = live.to_json().unwrap();
    for live in [&live, &LiveState::restore(&json).unwrap()] {
        assert!(
            situation(live, "billing", at(12 + 600), &config).grants.is_empty(),
            "the signal's end restores nothing"
        );
        assert_eq!(live.grants().ended().len(), 2);
        assert_eq!(situation(live, "agent", at(12 + 600), &config).grants, [other.id.clone()].into());
    }
}

#[test]
fn a_refused_signal_revokes_nothing() {
    let config = config();
    let mut live = LiveState::default();
    live.create_grant(&grant("billing", "prod-db", HOUR), &root(), at(0), &config).unwrap();
    let refused = live.receive(&signal("billing", "workload.shell"), &user("eve", 1003), at(1), &config);
    assert_eq!((refused.outcome.code(), refused.grants.len()), ("unauthorised", 0));
    assert_eq!(live.grants().all(at(1)).count(), 1);
}

#[test]
fn an_account_has_a_bounded_number_of_grants() {
    let config = config();
    let mut live = LiveState::default();
    for _ in 0..GRANTS_PER_ACCOUNT {
        live.create_grant(&grant("billing", "prod-db", HOUR), &root(), at(0), &config).unwrap();
    }
    let ask = grant("billing", "prod-db", HOUR);
    assert_eq!(live.create_grant(&ask, &root(), at(0), &config), Err(GrantRefusal::TooMany));
    live.create_grant(&ask, &root(), at(3600), &config).unwrap();
}
