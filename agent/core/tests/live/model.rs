//! Random histories against a naive model: whatever happens in whatever order, the state is what the model says.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use writ_core::signal::{Caller, ClockReading, Incoming, Outcome, RiskRule, SignalStore};
use writ_core::stance::{Attempt, Attempted, LiveState, Target};

use crate::fixture::{POLICY, at, config, grant, signal, user};

const ACCOUNTS: [&str; 2] = ["billing", "agent"];
const KINDS: [&str; 5] = ["edr.malware", "edr.suspicion", "edr.heartbeat", "workload.shell", "probe.odd"];

#[derive(Clone, Debug)]
enum Step {
    Signal {
        account: usize,
        kind: usize,
        source: u32,
        risk: u8,
        ttl: u64,
        age: i64,
        id: Option<u8>,
    },
    Clear {
        nth: usize,
    },
    Grant {
        account: usize,
        ttl: u64,
    },
    Revoke {
        nth: usize,
    },
    Attempt {
        account: usize,
        port: u16,
    },
    Answer {
        nth: usize,
        approve: bool,
        ttl: u64,
    },
    Offboard {
        account: usize,
    },
    Reinstate {
        account: usize,
    },
    Pass {
        seconds: i64,
    },
    /// The wall clock is set: lifetimes keep their length, whatever it says now.
    SetClock {
        seconds: i64,
    },
    Expire,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2usize, 0..5usize, 0..3u32, 0..=100u8, 1..400u64, 0..60i64, prop::option::of(0..6u8))
            .prop_map(|(account, kind, source, risk, ttl, age, id)| {
                Step::Signal { account, kind, source, risk, ttl, age, id }
            }),
        1 => (0..8usize).prop_map(|nth| Step::Clear { nth }),
        3 => (0..2usize, 1..600u64).prop_map(|(account, ttl)| Step::Grant { account, ttl }),
        1 => (0..8usize).prop_map(|nth| Step::Revoke { nth }),
        2 => (0..2usize, 1..4u16).prop_map(|(account, port)| Step::Attempt { account, port }),
        2 => (0..8usize, any::<bool>(), 1..600u64).prop_map(|(nth, approve, ttl)| Step::Answer { nth, approve, ttl }),
        1 => (0..2usize).prop_map(|account| Step::Offboard { account }),
        1 => (0..2usize).prop_map(|account| Step::Reinstate { account }),
        4 => (0..200i64).prop_map(|seconds| Step::Pass { seconds }),
        2 => (-4_000..4_000i64).prop_map(|seconds| Step::SetClock { seconds }),
        2 => Just(Step::Expire),
        2 => Just(Step::Restart),
    ]
}

/// One statement, grant or approval as the model keeps it: what was said, and when it ends.
#[derive(Clone, Debug)]
struct Said {
    account: &'static str,
    kind: &'static str,
    source: u32,
    event: Option<u8>,
    risk: u8,
    at: i64,
    ends: i64,
    id: String,
}

#[derive(Clone, Debug)]
struct Permission {
    account: &'static str,
    id: String,
    ends: i64,
}

#[derive(Default)]
struct Model {
    now: i64,
    /// Seconds that passed, whatever the clock was set to.
    passed: i64,
    signals: Vec<Said>,
    events: BTreeSet<(&'static str, u32, u8)>,
    grants: Vec<Permission>,
    approvals: Vec<Permission>,
    offboarded: BTreeSet<&'static str>,
}

impl Model {
    fn set_clock(&mut self, by: i64) {
        self.now += by;
        for known in &mut self.signals {
            known.at += by;
            known.ends += by;
        }
        self.grants.iter_mut().chain(&mut self.approvals).for_each(|known| known.ends += by);
    }

    fn end_permissions(&mut self, account: &str) {
        self.grants.retain(|known| known.account != account);
        self.approvals.retain(|known| known.account != account);
    }

    /// The outcome a reader of docs/signals.md would expect.
    fn expect(&self, said: &Said) -> &'static str {
        if said.event.is_some_and(|event| self.events.contains(&(said.account, said.source, event))) {
            return "duplicate";
        }
        if said.ends <= self.now {
            return "stale";
        }
        let live = self.signals.iter().find(|known| {
            known.ends > self.now && (known.account, known.kind, known.source) == (said.account, said.kind, said.source)
        });
        match live {
            Some(known) if (known.at, known.risk, known.ends) > (said.at, said.risk, said.ends) => "out-of-order",
            Some(known) if (known.at, known.risk, known.ends) == (said.at, said.risk, said.ends) => "either",
            _ => "accepted",
        }
    }
}

fn sender(source: u32) -> Caller {
    Caller { name: Some("ops".into()), ..user("ops", 3000 + source) }
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let config = config();
    let approver = user("root", 0);
    let mut live = LiveState::default();
    let mut model = Model::default();
    for step in steps {
        let now = at(model.now);
        match step {
            Step::Signal { account, kind, source, risk, ttl, age, id } => {
                let (account, kind) = (ACCOUNTS[account], KINDS[kind]);
                let limit = config.signals.get(kind).map_or(u64::MAX, |kind| kind.ttl.as_secs());
                let spoken = model.now - age;
                let mut said = Said {
                    account,
                    kind,
                    source,
                    event: id,
                    risk,
                    at: spoken,
                    ends: spoken + i64::try_from(ttl.min(limit)).unwrap(),
                    id: String::new(),
                };
                let incoming = Incoming {
                    id: id.map(|id| format!("evt-{id}")),
                    risk: Some(risk),
                    ttl: Some(Duration::from_secs(ttl)),
                    at: Some(at(spoken)),
                    ..signal(account, kind)
                };
                let before = live.clone();
                let outcome = live.receive(&incoming, &sender(source), now, &config).outcome;
                // Without an id, the same words at the same instant are the same event.
                let expected = model.expect(&said);
                let repeats = id.is_none() && outcome.code() == "duplicate";
                prop_assert!(
                    expected == "either" || repeats || outcome.code() == expected,
                    "{incoming:?}: {expected}, and was {outcome:?}"
                );
                match outcome {
                    Outcome::Accepted(accepted) => {
                        prop_assert!(accepted.evicted.is_none());
                        said.id = accepted.signal.id.clone();
                        model
                            .signals
                            .retain(|known| (known.account, known.kind, known.source) != (account, kind, source));
                        model.signals.push(said);
                        model.events.extend(id.map(|id| (account, source, id)));
                        if kind.starts_with("workload.") {
                            model.end_permissions(account);
                        }
                    }
                    _ => {
                        prop_assert_eq!(
                            situations(&live, now),
                            situations(&before, now),
                            "a refusal changed something"
                        );
                    }
                }
            }
            Step::Clear { nth } => {
                let ids: Vec<_> = live.signals().all(now).map(|signal| signal.id.clone()).collect();
                if let Some(id) = ids.get(nth) {
                    live.clear_signal(id, "looked at", &approver, now, &config).unwrap();
                    model.signals.retain(|known| known.id != *id);
                }
            }
            Step::Grant { account, ttl } => {
                let account = ACCOUNTS[account];
                let made =
                    live.create_grant(&grant(account, "prod-db", Duration::from_secs(ttl)), &approver, now, &config);
                prop_assert_eq!(made.is_err(), model.offboarded.contains(account));
                let ends = model.now + i64::try_from(ttl).unwrap();
                model.grants.extend(made.ok().map(|made| Permission { account, id: made.id, ends }));
            }
            Step::Revoke { nth } => {
                let ids: Vec<_> = live.grants().all(now).map(|grant| grant.id.clone()).collect();
                if let Some(id) = ids.get(nth) {
                    live.revoke_grant(id, "done", &approver, now, &config).unwrap();
                    model.grants.retain(|known| known.id != *id);
                }
            }
            Step::Attempt { account, port } => {
                let account = ACCOUNTS[account];
                let attempt = Attempt {
                    account: account.into(),
                    target: Target::Connect {
                        executable: "/bin/x".into(),
                        address: "10.0.0.1".parse().unwrap(),
                        port,
                        protocol: "tcp".into(),
                    },
                    policies: BTreeSet::new(),
                    policy_digest: POLICY.into(),
                };
                if let Attempted::Approved { id } = live.attempt(&attempt, now, &config) {
                    prop_assert!(model.approvals.iter().any(|known| known.id == id && known.ends > model.now));
                }
            }
            Step::Answer { nth, approve, ttl } => {
                let ids: Vec<_> =
                    live.escalations().all(now).map(|known| (known.id.clone(), known.account.clone())).collect();
                let Some((id, account)) = ids.get(nth) else { continue };
                let account = ACCOUNTS.into_iter().find(|name| name == account).unwrap();
                let ends = model.now + i64::try_from(ttl).unwrap();
                let ttl = Duration::from_secs(ttl);
                if approve {
                    let answer = live.approve(id, ttl, "ok", None, &approver, POLICY, now, &config);
                    prop_assert!(answer.is_err() || !model.offboarded.contains(account));
                    model.approvals.extend(answer.ok().map(|known| Permission { account, id: known.id, ends }));
                } else {
                    live.deny(id, "no", &approver, now, &config).unwrap();
                    model.approvals.retain(|known| known.id != *id);
                }
            }
            Step::Offboard { account } => {
                let done = live.offboard(ACCOUNTS[account], "left", &approver, now, &config);
                prop_assert_eq!(done.is_ok(), model.offboarded.insert(ACCOUNTS[account]));
                if done.is_ok() {
                    model.end_permissions(ACCOUNTS[account]);
                }
            }
            Step::Reinstate { account } => {
                let done = live.reinstate(ACCOUNTS[account], "back", &approver, &config);
                prop_assert_eq!(done.is_ok(), model.offboarded.remove(ACCOUNTS[account]));
            }
            Step::Pass { seconds } => {
                model.now += seconds;
                model.passed += seconds;
            }
            Step::SetClock { seconds } => {
                // As the daemon sees it: both clocks, before and after.
                let boot_ns = u64::try_from(model.passed).unwrap() * 1_000_000_000;
                let read = |wall: i64| ClockReading { wall: at(wall), boot_ns, boot_id: "b".into() };
                prop_assert_eq!(live.read_clock(read(model.now)), None);
                let step = live.read_clock(read(model.now + seconds));
                prop_assert_eq!(step.map(|step| step.as_secs()), Some(seconds).filter(|seconds| *seconds != 0));
                model.set_clock(seconds);
            }
            Step::Expire => drop(live.expire(now)),
            Step::Restart => {
                let restored = LiveState::restore(&live.to_json().unwrap()).unwrap();
                prop_assert_eq!(&restored, &live);
                live = restored;
            }
        }
        agrees(&live, &model)?;
    }
    Ok(())
}

type Seen = (u8, BTreeSet<String>, BTreeSet<String>, BTreeSet<String>, BTreeSet<String>, bool);

fn situations(live: &LiveState, now: Timestamp) -> Vec<Seen> {
    let config = config();
    let see = |account| {
        let situation = live.account(account, now, &config, RiskRule::Maximum, POLICY).situation(now);
        let state = situation.state;
        (state.risk, state.signals, state.fresh, situation.grants, situation.approvals, situation.offboarded)
    };
    ACCOUNTS.into_iter().map(see).collect()
}

fn agrees(live: &LiveState, model: &Model) -> Result<(), TestCaseError> {
    let expect = |account: &str| {
        let said: Vec<_> =
            model.signals.iter().filter(|known| known.account == account && known.ends > model.now).collect();
        let of = |kinds: &[&str]| -> BTreeSet<String> {
            said.iter().filter(|known| kinds.contains(&known.kind)).map(|known| known.kind.to_owned()).collect()
        };
        let permitted = |all: &[Permission]| -> BTreeSet<String> {
            all.iter()
                .filter(|known| known.account == account && known.ends > model.now)
                .map(|known| known.id.clone())
                .collect()
        };
        (
            said.iter().map(|known| known.risk).max().unwrap_or(0),
            of(&["edr.malware", "workload.shell"]),
            of(&["edr.heartbeat"]),
            permitted(&model.grants),
            permitted(&model.approvals),
            model.offboarded.contains(account),
        )
    };
    prop_assert_eq!(situations(live, at(model.now)), ACCOUNTS.map(expect).to_vec());
    Ok(())
}

/// Statements as kind, source, risk and second.
fn arrivals() -> impl Strategy<Value = Vec<(usize, u32, u8, i64)>> {
    prop::collection::vec((0..3usize, 0..2u32, 0..=100u8, 0..4i64), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_state_is_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(steps)?;
    }

    #[test]
    fn the_order_and_number_of_arrivals_do_not_matter(
        (arrivals, shuffled) in arrivals().prop_flat_map(|said| {
            let twice = said.iter().chain(&said).copied().collect::<Vec<_>>();
            (Just(said), Just(twice).prop_shuffle())
        })
    ) {
        let config = config();
        let receive = |arrivals: &[(usize, u32, u8, i64)]| {
            let mut store = SignalStore::default();
            for &(kind, source, risk, second) in arrivals {
                let incoming = Incoming { risk: Some(risk), at: Some(at(second)), ..signal("billing", KINDS[kind]) };
                store.receive(&incoming, &sender(source), at(10), &config);
            }
            store.all(at(10)).cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(receive(&arrivals), receive(&shuffled));
    }
}
