//! Escalations: repeats fold, an approval is for exactly what was attempted, a denial is remembered.

use std::time::Duration;

use writ_core::signal::{ApproverRefusal, Caller};
use writ_core::stance::{
    AnswerRefusal, Attempt, Attempted, EscalationStatus, LiveState, OPEN_PER_ACCOUNT, OPEN_QUESTIONS, Target,
};

use crate::fixture::{
    HOUR, MINUTE, POLICY, account, at, config, root, root_of, security, signal, situation, user, workload,
};

fn to(executable: &str, address: &str, port: u16, protocol: &str) -> Target {
    let (executable, protocol) = (executable.to_owned(), protocol.to_owned());
    Target::Connect { executable, address: address.parse().unwrap(), port, protocol }
}

fn attempt() -> Attempt {
    Attempt {
        account: "billing".into(),
        target: to("/usr/bin/psql", "10.20.0.5", 5432, "tcp"),
        policies: ["prod-needs-a-person".to_owned()].into(),
        policy_digest: POLICY.into(),
    }
}

fn new(attempted: Attempted) -> String {
    match attempted {
        Attempted::New(escalation) => escalation.id,
        other => panic!("not new: {other:?}"),
    }
}

fn approve(live: &mut LiveState, id: &str, ttl: Duration, by: &Caller, second: i64) -> Result<(), AnswerRefusal> {
    live.approve(id, ttl, "looks right", None, by, POLICY, at(second), &config()).map(drop)
}

#[test]
fn repeats_fold_and_every_other_attempt_is_its_own() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    for second in 1..10 {
        assert_eq!(live.attempt(&attempt(), at(second), &config), Attempted::Waiting { id: id.clone() });
    }
    let known = live.escalations().get(&id).unwrap();
    assert_eq!((known.count, known.first_seen, known.last_seen), (10, at(0), at(9)));
    assert_eq!(known.expires, at(3600), "repeats do not prolong the request");
    for change in [
        |a: &mut Attempt| a.account = "agent".into(),
        |a: &mut Attempt| a.target = to("/usr/bin/curl", "10.20.0.5", 5432, "tcp"),
        |a: &mut Attempt| a.target = to("/usr/bin/psql", "10.20.0.6", 5432, "tcp"),
        |a: &mut Attempt| a.target = to("/usr/bin/psql", "10.20.0.5", 5433, "tcp"),
        |a: &mut Attempt| a.target = to("/usr/bin/psql", "10.20.0.5", 5432, "udp"),
        |a: &mut Attempt| a.policies = ["another".to_owned()].into(),
    ] {
        let mut other = attempt();
        change(&mut other);
        new(live.attempt(&other, at(10), &config));
    }
    assert_eq!(live.escalations().all(at(10)).count(), 7);
}

#[test]
fn an_approval_is_for_exactly_what_was_attempted_and_ends() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    assert!(situation(&live, "billing", at(0), &config).state.approvals.is_empty());
    approve(&mut live, &id, 10 * MINUTE, &security(), 60).unwrap();
    let now = situation(&live, "billing", at(60), &config);
    assert_eq!(now.approvals, [id.clone()].into());
    let [approval] = now.state.approvals.as_slice() else { panic!("{now:?}") };
    assert_eq!(approval.executable.as_deref(), Some("/usr/bin/psql"));
    assert_eq!((approval.address, approval.port), ("10.20.0.5".parse().unwrap(), 5432));
    assert_eq!((approval.protocol.as_str(), &approval.policies), ("tcp", &attempt().policies));
    assert!(situation(&live, "agent", at(60), &config).state.approvals.is_empty());
    assert_eq!(live.attempt(&attempt(), at(61), &config), Attempted::Approved { id: id.clone() });
    assert_eq!(approve(&mut live, &id, HOUR, &security(), 62), Err(AnswerRefusal::Already(id.clone())));
    assert!(situation(&live, "billing", at(660), &config).state.approvals.is_empty());
    let ended = live.expire(at(660)).escalations;
    assert_eq!((ended.len(), ended[0].status), (1, EscalationStatus::Expired));
    assert_ne!(new(live.attempt(&attempt(), at(661), &config)), id, "the next attempt asks again");
}

#[test]
fn an_approval_does_not_outlive_the_policies_it_was_given_under() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    approve(&mut live, &id, HOUR, &root(), 1).unwrap();
    let mut other = account(&live, "billing", at(2), &config);
    assert_eq!(other.situation(at(2)).approvals.len(), 1);
    other.policy_digest = "sha256-other";
    assert_eq!(other.situation(at(2)).approvals.len(), 0);
    let under_other = Attempt { policy_digest: "sha256-other".into(), ..attempt() };
    let next = new(live.attempt(&under_other, at(3), &config));
    assert_eq!(live.next_expiry(), Some(at(3)), "its end is due at once");
    let ended = live.expire(at(3)).escalations;
    assert_eq!(
        ended.iter().map(|known| (&known.id, known.status)).collect::<Vec<_>>(),
        [(&id, EscalationStatus::Expired)]
    );
    let refused = live.approve(&next, HOUR, "ok", None, &root(), POLICY, at(4), &config);
    assert_eq!(refused, Err(AnswerRefusal::PolicyChanged(next)));
}

#[test]
fn only_someone_else_who_may_can_answer() {
    let config = config();
    for (what, caller, refused) in [
        ("root", root(), None),
        ("an approver", security(), None),
        ("an operator", user("ops", 1002), Some(ApproverRefusal::NotAnApprover)),
        ("the workload", workload("billing"), Some(ApproverRefusal::Subject)),
        ("the workload's root", root_of("billing"), Some(ApproverRefusal::Subject)),
        ("another workload's root", root_of("agent"), Some(ApproverRefusal::NotAnApprover)),
    ] {
        let refused = refused.map(AnswerRefusal::Approver);
        let mut live = LiveState::default();
        let id = new(live.attempt(&attempt(), at(0), &config));
        let denied = live.clone().deny(&id, "no", &caller, at(1), &config);
        assert_eq!(denied.err(), refused, "{what}");
        assert_eq!(approve(&mut live, &id, HOUR, &caller, 1).err(), refused, "{what}");
    }
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    for ttl in [Duration::ZERO, 9 * HOUR] {
        assert_eq!(approve(&mut live, &id, ttl, &root(), 1), Err(AnswerRefusal::Ttl(8 * HOUR)));
    }
    let silent = live.approve(&id, HOUR, " ", None, &root(), POLICY, at(1), &config);
    assert_eq!(silent, Err(AnswerRefusal::NoReason));
    assert_eq!(approve(&mut live, "E-0", HOUR, &root(), 1), Err(AnswerRefusal::Unknown("E-0".into())));
    assert_eq!(approve(&mut live, &id, HOUR, &root(), 3600), Err(AnswerRefusal::Unknown(id)), "too late");
}

#[test]
fn who_may_approve_nothing_is_told_the_same_of_an_id_that_is_there_and_of_one_that_is_not() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    let refused = AnswerRefusal::Approver(ApproverRefusal::NotAnApprover);
    for offboarded in [false, true] {
        if offboarded {
            live.offboard("billing", "left", &root(), at(1), &config).unwrap();
        }
        for caller in [user("eve", 1003), workload("agent"), root_of("agent")] {
            for id in [id.as_str(), "E-0"] {
                assert_eq!(approve(&mut live, id, HOUR, &caller, 1), Err(refused.clone()), "{id} {caller:?}");
                assert_eq!(live.deny(id, "no", &caller, at(1), &config), Err(refused.clone()), "{id} {caller:?}");
            }
        }
    }
}

#[test]
fn a_denial_is_remembered_and_counted_and_can_be_reconsidered() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    live.deny(&id, "not now", &security(), at(10), &config).unwrap();
    assert_eq!(live.attempt(&attempt(), at(3000), &config), Attempted::Denied { id: id.clone() });
    assert_eq!(live.attempt(&attempt(), at(3609), &config), Attempted::Denied { id: id.clone() });
    assert_eq!(live.escalations().get(&id).unwrap().count, 3);
    assert!(situation(&live, "billing", at(3609), &config).state.approvals.is_empty());
    let mut reconsidered = live.clone();
    approve(&mut reconsidered, &id, HOUR, &security(), 3609).unwrap();
    assert_eq!(situation(&reconsidered, "billing", at(3609), &config).approvals.len(), 1);
    reconsidered.deny(&id, "after all", &security(), at(3610), &config).unwrap();
    assert_eq!(situation(&reconsidered, "billing", at(3610), &config).approvals.len(), 0, "deny takes it back");
    new(live.attempt(&attempt(), at(3610), &config));
}

#[test]
fn drift_ends_approvals_for_good() {
    let config = config();
    let mut live = LiveState::default();
    let id = new(live.attempt(&attempt(), at(0), &config));
    approve(&mut live, &id, HOUR, &root(), 1).unwrap();
    let drift = live.receive(&signal("billing", "workload.shell"), &root(), at(2), &config);
    assert_eq!(drift.approvals.len(), 1);
    assert_eq!(live.escalations().get(&id).unwrap().status, EscalationStatus::Revoked);
    live.expire(at(602));
    assert!(situation(&live, "billing", at(602), &config).state.approvals.is_empty());
}

#[test]
fn a_scan_does_not_fill_memory_or_silence_other_accounts() {
    let config = config();
    let mut live = LiveState::default();
    for port in 1..=u16::try_from(OPEN_PER_ACCOUNT).unwrap() {
        new(live.attempt(
            &Attempt { target: to("/usr/bin/psql", "10.20.0.5", port, "tcp"), ..attempt() },
            at(0),
            &config,
        ));
    }
    assert_eq!(live.attempt(&attempt(), at(0), &config), Attempted::Overflow);
    new(live.attempt(&Attempt { account: "agent".into(), ..attempt() }, at(0), &config));
    new(live.attempt(&attempt(), at(3600), &config));
}

fn question(account: &str, resource: &str) -> Attempt {
    let principal = if account.contains("::") { account.to_owned() } else { format!("ServiceAccount::\"{account}\"") };
    let target = Target::Action { principal, action: "Action::\"issue\"".into(), resource: resource.into() };
    Attempt { account: account.into(), target, ..attempt() }
}

#[test]
fn an_approved_question_holds_for_itself_alone_and_no_connect() {
    let config = config();
    let mut live = LiveState::default();
    let asked = question("billing", "Credential::\"key\"");
    let id = new(live.attempt(&asked, at(0), &config));
    approve(&mut live, &id, 10 * MINUTE, &security(), 0).unwrap();
    assert!(situation(&live, "billing", at(1), &config).state.approvals.is_empty());
    let holds = |attempt: &Attempt, digest: &str, second| {
        live.escalations().approved(&attempt.account, &attempt.target, digest, at(second)).count() == 1
    };
    assert!(holds(&asked, POLICY, 1));
    assert!(!holds(&asked, POLICY, 600), "its time is over");
    assert!(!holds(&asked, "sha256-other", 1), "the policies have changed");
    assert!(!holds(&question("billing", "Credential::\"root\""), POLICY, 1));
    assert!(!holds(&question("agent", "Credential::\"key\""), POLICY, 1));
    // It outlives a restart as it is.
    let restored = LiveState::restore(&live.to_json().unwrap()).unwrap();
    assert_eq!(restored.escalations().get(&id), live.escalations().get(&id));
}

#[test]
fn subjects_that_are_no_accounts_are_approved_too_and_their_number_is_bounded() {
    let config = config();
    let mut live = LiveState::default();
    for number in 0..OPEN_QUESTIONS {
        let id = new(live.attempt(&question(&format!("user::\"{number}\""), "r::\"1\""), at(0), &config));
        if number == 0 {
            approve(&mut live, &id, MINUTE, &security(), 0).unwrap();
        }
    }
    assert_eq!(live.attempt(&question("user::\"more\"", "r::\"1\""), at(1), &config), Attempted::Overflow);
    new(live.attempt(&attempt(), at(1), &config));
}
