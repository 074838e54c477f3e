//! Who may say what, what becomes of it, and the risk it adds up to.

use std::time::Duration;

use jiff::Timestamp;
use writ_core::config::Transmitter;
use writ_core::signal::{
    Accepted, Caller, Incoming, LIVE_PER_ACCOUNT, LIVE_PER_SOURCE, Malformed, Outcome, REMEMBERED_PER_ACCOUNT,
    RiskRule, Signal, SignalStore, UNDECLARED_MAX_TTL, Unauthorised, assess, risk,
};
use writ_core::stance::{ClearRefusal, LiveState};

use crate::fixture::{HOUR, MINUTE, at, config, edr, root, root_of, security, signal, user, workload};

fn accept(store: &mut SignalStore, incoming: &Incoming, caller: &Caller, now: Timestamp) -> Accepted {
    match store.receive(incoming, caller, now, &config()) {
        Outcome::Accepted(accepted) => *accepted,
        other => panic!("{incoming:?} was {other:?}"),
    }
}

fn transmitter(kinds: &[&str], account: &str) -> Transmitter {
    let pair = |(index, kind): (usize, &&str)| (format!("urn:event:{index}"), (*kind).to_owned());
    Transmitter {
        jwks: "/etc/writ/jwks".into(),
        ca: String::new(),
        audience: "https://host.example".into(),
        subjects: [("spiffe://example/ci".to_owned(), account.to_owned())].into(),
        events: kinds.iter().enumerate().map(pair).collect(),
        critical: Vec::new(),
        heartbeat: Some("edr.heartbeat".into()),
        verification: None,
    }
}

#[test]
fn a_transmitter_of_events_sends_what_it_is_declared_for_and_is_nobody_otherwise() {
    let mut config = config();
    config.agent.approvers = vec!["root".into(), "edr-agent".into(), "ssf:edr-agent".into()];
    config.agent.operators = vec!["edr-agent".into(), "ssf:edr-agent".into()];
    // Called like a user who may send all of it: no issuer is a user.
    config.agent.ssf.insert("edr-agent".into(), transmitter(&["edr.suspicion"], "billing"));
    config.agent.ssf.insert("https://other.example".into(), transmitter(&["maintenance", "edr.malware"], "agent"));
    if let Some(kind) = config.signals.get_mut("maintenance") {
        kind.from.push("ssf:edr-agent".into());
    }
    let (not_mapped, not_in_from) = (Some(Unauthorised::NotMapped), Some(Unauthorised::NotInFrom));
    for (who, issuer, account, kind, refused) in [
        ("what it maps", "edr-agent", "billing", "edr.suspicion", None),
        ("its heartbeat", "edr-agent", "billing", "edr.heartbeat", None),
        ("a kind that `from` gives to a user of its name", "edr-agent", "billing", "edr.malware", not_mapped),
        ("a kind that nobody may send", "edr-agent", "billing", "workload.shell", not_mapped),
        ("an account that none of its subjects is", "edr-agent", "agent", "edr.suspicion", not_mapped),
        ("another's mapping", "https://other.example", "agent", "edr.suspicion", not_mapped),
        ("what it maps, too", "https://other.example", "agent", "edr.malware", None),
        (
            "a kind that `from` leaves to another transmitter",
            "https://other.example",
            "agent",
            "maintenance",
            not_in_from,
        ),
        ("an issuer that is not declared", "https://unknown.example", "billing", "edr.suspicion", not_mapped),
    ] {
        let caller = Caller::transmitter(issuer);
        let outcome = SignalStore::default().receive(&signal(account, kind), &caller, at(0), &config);
        match refused {
            None => assert_eq!(outcome.code(), "accepted", "{who}"),
            Some(reason) => assert_eq!(outcome, Outcome::Unauthorised { reason }, "{who}"),
        }
    }
    let caller = Caller::transmitter("edr-agent");
    assert!(
        !caller.is_operator(&config.agent.operators),
        "it reloads nothing, and undeclared kinds are not its to send"
    );
    assert!(caller.may_approve(&config.agent.approvers, Some("billing")).is_err());
    let undeclared = Incoming { risk: Some(90), ttl: Some(MINUTE), ..signal("billing", "something.else") };
    let outcome = SignalStore::default().receive(&undeclared, &caller, at(0), &config);
    assert_ne!(outcome.code(), "accepted");
    // What it said, it may take back; what a user of its name said, it may not.
    let mut live = LiveState::default();
    let own = live.receive(&signal("billing", "edr.suspicion"), &caller, at(0), &config);
    let own = own.outcome.accepted().unwrap().id.clone();
    let edr = live.receive(&signal("billing", "edr.malware"), &edr(), at(0), &config);
    let edr = edr.outcome.accepted().unwrap().id.clone();
    assert_eq!(
        live.clear_signal(&edr, "r", &caller, at(1), &config),
        Err(ClearRefusal::NotPermitted(edr)),
        "of a user"
    );
    assert!(live.clear_signal(&own, "r", &caller, at(1), &config).is_ok());
}

fn responder() -> Caller {
    Caller { groups: vec!["responders".into()], ..user("bob", 1001) }
}

#[test]
fn a_signal_is_taken_from_root_operators_and_whom_its_kind_names() {
    let not_in_from = Some(Unauthorised::NotInFrom);
    let laundered_edr = Caller { accounts: vec!["billing".into()], ..edr() };
    let laundered_self = Caller { accounts: vec!["selfie".into()], ..edr() };
    for (who, caller, account, kind, refused) in [
        ("root", root(), "billing", "edr.malware", None),
        ("an operator", user("ops", 1002), "billing", "edr.malware", None),
        ("a named user", edr(), "billing", "edr.malware", None),
        ("a named group", responder(), "billing", "edr.malware", None),
        ("anybody else", user("eve", 1003), "billing", "edr.malware", not_in_from),
        ("an approver, who is no operator", security(), "billing", "edr.malware", not_in_from),
        ("a named user of another kind", edr(), "billing", "maintenance", not_in_from),
        ("a kind that names nobody", edr(), "billing", "workload.shell", not_in_from),
        ("a detector of writ", Caller::detector("writ"), "billing", "workload.shell", None),
        ("a workload about another", workload("billing"), "agent", "edr.malware", not_in_from),
        ("a declared workload about another", workload("billing"), "agent", "self.report", None),
        ("a workload about itself", workload("billing"), "billing", "edr.malware", not_in_from),
        ("a declared workload about itself", workload("billing"), "billing", "self.report", None),
        ("a workload's root about itself", root_of("billing"), "billing", "maintenance", not_in_from),
        ("a workload's root about another", root_of("billing"), "agent", "maintenance", not_in_from),
        (
            "a workload's operator about itself",
            Caller { accounts: vec!["billing".into()], ..user("ops", 1002) },
            "billing",
            "maintenance",
            not_in_from,
        ),
        (
            "a workload as the sensor, about itself",
            laundered_edr,
            "billing",
            "edr.heartbeat",
            Some(Unauthorised::OwnFreshness),
        ),
        ("a workload's freshness by its own declared user", workload("selfie"), "selfie", "edr.heartbeat", None),
        (
            "the same by a user it switched to",
            laundered_self,
            "selfie",
            "edr.heartbeat",
            Some(Unauthorised::OwnFreshness),
        ),
    ] {
        let outcome = SignalStore::default().receive(&signal(account, kind), &caller, at(0), &config());
        match refused {
            None => assert_eq!(outcome.code(), "accepted", "{who}"),
            Some(reason) => assert_eq!(outcome, Outcome::Unauthorised { reason }, "{who}"),
        }
    }
}

#[test]
fn every_refusal_has_its_name_and_changes_nothing() {
    let long = "x".repeat(129);
    let id = |id: &str| Incoming { id: Some(id.into()), ..signal("billing", "edr.malware") };
    let undeclared = |risk, ttl| Incoming { risk, ttl, ..signal("billing", "probe.odd") };
    let dated = |at| Incoming { at: Some(at), ..signal("billing", "edr.malware") };
    let malformed = |field| Outcome::Malformed { field };
    for (incoming, caller, expected) in [
        (signal("billing", "not a kind"), root(), malformed(Malformed::Kind)),
        (signal("billing", "workload.*"), root(), malformed(Malformed::Kind)),
        (id(""), root(), malformed(Malformed::Id)),
        (id("a b"), root(), malformed(Malformed::Id)),
        (id(&long), root(), malformed(Malformed::Id)),
        (id("S-0011223344556677"), root(), malformed(Malformed::Id)),
        (Incoming { risk: Some(101), ..signal("billing", "edr.malware") }, root(), malformed(Malformed::Risk)),
        (Incoming { ttl: Some(Duration::ZERO), ..signal("billing", "edr.malware") }, root(), malformed(Malformed::Ttl)),
        (signal("nobody", "edr.malware"), root(), Outcome::UnknownAccount),
        (undeclared(Some(5), Some(MINUTE)), edr(), Outcome::UnknownKind),
        (undeclared(Some(5), Some(MINUTE)), root_of("agent"), Outcome::UnknownKind),
        (undeclared(None, Some(MINUTE)), root(), Outcome::Incomplete),
        (undeclared(Some(5), None), root(), Outcome::Incomplete),
        (dated(at(1006)), root(), Outcome::FutureDated { at: at(1006) }),
        (dated(at(1000 - 3600)), root(), Outcome::Stale { expired: at(1000) }),
    ] {
        let mut store = SignalStore::default();
        assert_eq!(store.receive(&incoming, &caller, at(1000), &config()), expected, "{incoming:?}");
        assert_eq!(store.all(Timestamp::MIN).count(), 0, "{incoming:?} left something");
    }
}

#[test]
fn what_exceeds_the_kind_is_clipped_and_said() {
    let mut store = SignalStore::default();
    let ask = Incoming {
        risk: Some(100),
        ttl: Some(2 * HOUR),
        evidence: Some("é".repeat(3000)),
        ..signal("billing", "edr.suspicion")
    };
    let limited = accept(&mut store, &ask, &edr(), at(0));
    assert!(limited.clipped.ttl && limited.clipped.risk && limited.clipped.evidence);
    assert_eq!((limited.signal.risk, limited.signal.expires), (40, at(3600)));
    assert_eq!(limited.signal.evidence.unwrap().len(), 4096, "whole characters only");

    let operator = accept(&mut store, &ask, &root(), at(0));
    assert!(operator.clipped.ttl && !operator.clipped.risk, "an operator may state any risk");
    assert_eq!(operator.signal.risk, 100);

    let forever = Incoming { risk: Some(1), ttl: Some(Duration::MAX), ..signal("billing", "probe.odd") };
    let undeclared = accept(&mut store, &forever, &root(), at(0));
    assert!(undeclared.clipped.ttl);
    assert_eq!(undeclared.signal.expires, at(0).checked_add(UNDECLARED_MAX_TTL).unwrap());
}

#[test]
fn a_clock_that_runs_ahead_within_the_skew_does_not_lock_its_sender_out() {
    let mut store = SignalStore::default();
    let ahead = accept(&mut store, &Incoming { at: Some(at(5)), ..signal("billing", "edr.heartbeat") }, &edr(), at(0));
    assert_eq!(ahead.signal.at, at(0));
    accept(&mut store, &Incoming { at: Some(at(2)), ..signal("billing", "edr.heartbeat") }, &edr(), at(2));
}

#[test]
fn a_repeated_event_changes_nothing_not_even_after_its_signal_is_gone() {
    let mut store = SignalStore::default();
    let event = Incoming { id: Some("evt-1".into()), ..signal("billing", "edr.malware") };
    let first = accept(&mut store, &event, &edr(), at(0));
    assert_eq!(first.signal.id, "evt-1");
    let before = store.clone();
    let duplicate = Outcome::Duplicate { id: "evt-1".into() };
    assert_eq!(store.receive(&event, &edr(), at(9), &config()), duplicate);
    assert_eq!(store, before);
    store.clear("evt-1").unwrap();
    assert_eq!(store.receive(&event, &edr(), at(10), &config()), duplicate, "a replay does not undo a clear");
    let mut restored: SignalStore = serde_json::from_str(&serde_json::to_string(&store).unwrap()).unwrap();
    assert_eq!(restored.receive(&event, &edr(), at(11), &config()), duplicate, "nor across a restart");
}

#[test]
fn nobody_can_use_up_an_id_that_another_sender_will_need() {
    let mut store = SignalStore::default();
    let squat = Incoming { id: Some("evt-1".into()), ..signal("billing", "self.report") };
    accept(&mut store, &squat, &workload("billing"), at(0));
    let real = Incoming { id: Some("evt-1".into()), ..signal("billing", "edr.malware") };
    let taken = accept(&mut store, &real, &edr(), at(1)).signal;
    assert!(taken.id.starts_with("S-"));
    assert_eq!((taken.event.as_deref(), taken.risk), (Some("evt-1"), 90));
    assert_eq!(store.receive(&real, &edr(), at(2), &config()), Outcome::Duplicate { id: "evt-1".into() });
}

#[test]
fn a_source_has_one_live_signal_of_a_kind_and_it_is_the_latest() {
    let mut store = SignalStore::default();
    let said = |second, risk| Incoming { at: Some(at(second)), risk: Some(risk), ..signal("billing", "edr.malware") };
    let first = accept(&mut store, &said(0, 80), &edr(), at(100)).signal;
    let second = accept(&mut store, &said(50, 20), &edr(), at(100));
    assert_eq!(second.replaced, Some(first));
    let late = store.receive(&said(20, 90), &edr(), at(100), &config());
    assert_eq!(late, Outcome::OutOfOrder { live: second.signal.id.clone() });
    accept(&mut store, &said(10, 60), &responder(), at(100));
    let risks: Vec<_> = store.live("billing", at(100)).map(|signal| signal.risk).collect();
    assert_eq!(risks.len(), 2, "another source's statement stands beside it");
    assert_eq!(risk(RiskRule::Maximum, store.live("billing", at(100))), 60);
}

#[test]
fn an_account_never_takes_back_what_it_said_about_itself() {
    let own = |risk, ttl| Incoming { risk: Some(risk), ttl: Some(ttl), ..signal("billing", "self.report") };
    for (next, permitted) in
        [(own(20, HOUR), true), (own(30, HOUR), true), (own(19, HOUR), false), (own(20, MINUTE), false)]
    {
        let mut store = SignalStore::default();
        accept(&mut store, &own(20, HOUR), &workload("billing"), at(0));
        let outcome = store.receive(&next, &workload("billing"), at(1), &config());
        if permitted {
            assert_eq!(outcome.code(), "accepted");
        } else {
            assert_eq!(outcome, Outcome::Unauthorised { reason: Unauthorised::LowersOwnRisk });
        }
    }
}

#[test]
fn a_repeat_is_answered_with_the_id_of_the_signal_that_is_live_by_it() {
    let config = config();
    let mut live = LiveState::default();
    let event = Incoming { id: Some("m".into()), ..signal("billing", "edr.suspicion") };
    let first = live.receive(&event, &edr(), at(0), &config);
    assert_eq!(first.id.as_deref(), Some("m"));
    assert_eq!(live.receive(&event, &edr(), at(1), &config).id, first.id);
    // The id is another sender's: this one's signal has an assigned id, and its repeats are answered with that.
    let other = live.receive(&event, &root(), at(1), &config);
    assert!(other.id.is_some() && other.id != first.id, "{other:?}");
    assert_eq!(live.receive(&event, &root(), at(2), &config).id, other.id);
}

#[test]
fn a_signal_is_cleared_by_operators_and_its_sender_but_never_by_its_subject() {
    let config = config();
    let mut live = LiveState::default();
    let event = |id: &str, kind| Incoming { id: Some(id.into()), ..signal("billing", kind) };
    live.receive(&event("m", "edr.malware"), &edr(), at(0), &config);
    live.receive(&event("own", "self.report"), &workload("billing"), at(0), &config);
    live.receive(&event("r", "edr.suspicion"), &root(), at(0), &config);
    for (id, caller) in [
        ("m", user("eve", 1003)),
        ("m", workload("billing")),
        ("m", root_of("billing")),
        ("own", workload("billing")),
        ("r", root_of("agent")),
        ("r", edr()),
    ] {
        let refusal = live.clear_signal(id, "fixed", &caller, at(1), &config).unwrap_err();
        assert_eq!(refusal, ClearRefusal::NotPermitted(id.into()), "{caller:?}");
        // Nor is it told whether there is another.
        let refusal = live.clear_signal("none", "fixed", &caller, at(1), &config).unwrap_err();
        assert_eq!(refusal, ClearRefusal::NotPermitted("none".into()), "{caller:?}");
    }
    assert_eq!(live.clear_signal("m", " ", &edr(), at(1), &config), Err(ClearRefusal::NoReason));
    live.clear_signal("m", "false alarm", &edr(), at(1), &config).unwrap();
    live.clear_signal("own", "looked at", &user("ops", 1002), at(1), &config).unwrap();
    live.clear_signal("r", "looked at", &root(), at(1), &config).unwrap();
    assert_eq!(live.clear_signal("r", "again", &root(), at(1), &config), Err(ClearRefusal::Unknown("r".into())));
    assert_eq!(live.signals().all(at(1)).count(), 0);
}

#[test]
fn a_flood_is_bounded_and_keeps_no_grave_signal_out() {
    let mut store = SignalStore::default();
    let config = config();
    let operators: Vec<_> = (0..20).map(|n| Caller { name: Some("ops".into()), ..user("ops", 2000 + n) }).collect();
    let mut overflows = 0;
    for round in 0..LIVE_PER_SOURCE + 10 {
        for caller in &operators {
            let noise = Incoming { risk: Some(5), ttl: Some(HOUR), ..signal("billing", &format!("noise.n{round}")) };
            match store.receive(&noise, caller, at(0), &config) {
                Outcome::Overflow { .. } => overflows += 1,
                outcome => assert_eq!(outcome.code(), "accepted"),
            }
        }
    }
    assert!(overflows > 0);
    assert_eq!(store.live("billing", at(0)).count(), LIVE_PER_ACCOUNT);
    let most = operators
        .iter()
        .map(|caller| store.live("billing", at(0)).filter(|s| s.source.uid == caller.uid).count())
        .max();
    assert!(most.unwrap() <= LIVE_PER_SOURCE);

    let grave = accept(&mut store, &signal("billing", "edr.malware"), &edr(), at(1));
    assert_eq!(grave.evicted.map(|gone| gone.risk), Some(5));
    assert_eq!(store.live("billing", at(1)).count(), LIVE_PER_ACCOUNT);
    assert_eq!(risk(RiskRule::Maximum, store.live("billing", at(1))), 90);
    accept(&mut store, &signal("agent", "edr.malware"), &edr(), at(1));
    let flag = store.receive(&signal("billing", "maintenance"), &root(), at(1), &config);
    assert_eq!(flag.code(), "overflow", "a signal of no risk makes nothing give way");
}

#[test]
fn what_a_policy_may_ask_for_by_name_gives_way_to_nothing() {
    let mut store = SignalStore::default();
    accept(&mut store, &signal("billing", "maintenance"), &root(), at(0));
    accept(&mut store, &signal("billing", "edr.heartbeat"), &root(), at(0));
    for n in 2..LIVE_PER_SOURCE {
        let noise = Incoming { risk: Some(5), ttl: Some(HOUR), ..signal("billing", &format!("noise.n{n}")) };
        accept(&mut store, &noise, &root(), at(0));
    }
    let evicted = accept(&mut store, &signal("billing", "edr.malware"), &root(), at(1)).evicted.unwrap();
    assert_eq!(evicted.risk, 5, "not the flag and not the freshness, whose risk is less");
}

#[test]
fn a_live_event_is_recognised_however_much_came_after_it() {
    let mut store = SignalStore::default();
    let first = Incoming { id: Some("first".into()), ..signal("billing", "edr.malware") };
    accept(&mut store, &first, &edr(), at(0));
    for n in 0..=i64::try_from(REMEMBERED_PER_ACCOUNT).unwrap() {
        let beat = Incoming { id: Some(format!("beat-{n}")), ..signal("billing", "edr.heartbeat") };
        accept(&mut store, &beat, &edr(), at(1 + n));
    }
    assert_eq!(store.receive(&first, &edr(), at(2000), &config()), Outcome::Duplicate { id: "first".into() });
}

#[test]
fn expiry_returns_each_signal_once_at_its_end() {
    let mut store = SignalStore::default();
    accept(&mut store, &signal("billing", "edr.malware"), &edr(), at(0));
    accept(&mut store, &signal("billing", "edr.heartbeat"), &edr(), at(0));
    assert_eq!(store.next_expiry(), Some(at(300)));
    assert_eq!(store.live("billing", at(299)).count(), 2);
    assert_eq!(store.live("billing", at(300)).count(), 1, "over at its end, removed or not");
    let kinds = |ended: Vec<Signal>| ended.into_iter().map(|signal| signal.kind).collect::<Vec<_>>();
    assert_eq!(kinds(store.expire(at(299))), [""; 0]);
    assert_eq!(kinds(store.expire(at(3600))), ["edr.heartbeat", "edr.malware"]);
    assert_eq!(kinds(store.expire(at(3600))), [""; 0]);
    store.expire(at(3 * 24 * 3600));
    assert_eq!(store, SignalStore::default(), "nothing is remembered for ever");
}

#[test]
fn risk_is_the_maximum_or_the_capped_sum_and_says_why() {
    let mut store = SignalStore::default();
    assert_eq!(risk(RiskRule::Maximum, store.live("billing", at(0))), 0);
    accept(&mut store, &signal("billing", "edr.suspicion"), &edr(), at(0));
    accept(&mut store, &signal("billing", "workload.shell"), &root(), at(0));
    accept(&mut store, &signal("billing", "edr.heartbeat"), &edr(), at(0));
    let explained = |rule| {
        let risk = assess(rule, store.live("billing", at(0)));
        let parts: Vec<_> = risk.contributions.into_iter().map(|part| (part.kind, part.risk, part.decisive)).collect();
        (risk.value, parts)
    };
    let parts = |decisive| {
        vec![
            ("workload.shell".to_owned(), 60, true),
            ("edr.suspicion".to_owned(), 40, decisive),
            ("edr.heartbeat".to_owned(), 0, false),
        ]
    };
    assert_eq!(explained(RiskRule::Maximum), (60, parts(false)));
    assert_eq!(explained(RiskRule::CappedSum), (100, parts(true)));
    accept(&mut store, &signal("billing", "edr.malware"), &edr(), at(0));
    assert_eq!(risk(RiskRule::CappedSum, store.live("billing", at(0))), 100);
}
