//! Many who ask at once, while the engine has other things to do: each answer is on record, and is what policy says.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use writ_tests::{Api, Config, Host, UdpPeer, config, wait};

const ASKERS: usize = 8;
const ONE: &str = "/access/v1/evaluation";

/// One key is issued, no other is. Policy sets of another round are other sets that say the same.
fn config(peer: &UdpPeer, round: u32) -> Config {
    let schema = "entity Credential;\naction issue appliesTo { principal: [ServiceAccount], resource: [Credential], context: {} };\n";
    let policies = format!(
        "@id(\"own-key\") @owner(\"tests\") @reason(\"it deploys, round {round}\")\n\
         permit (principal, action == Action::\"issue\", resource == Credential::\"own-key\");\n"
    );
    Config::new()
        .destination("open", peer.address)
        .permit("to-open", "open")
        .file("schema.d/keys.cedarschema", schema)
        .file("policies.d/keys.cedar", &policies)
}

/// Asks about either key in turn, until `over` or the daemon hangs up; the decisions that were answered.
fn ask(mut api: Api, over: &AtomicBool, answered: &AtomicUsize) -> Vec<String> {
    let mut decisions = Vec::new();
    for key in ["own-key", "other-key"].iter().cycle() {
        let body = json!({
            "subject": { "type": "service_account", "id": config::ACCOUNT },
            "action": { "name": "issue" },
            "resource": { "type": "Credential", "id": key },
        });
        if over.load(Ordering::Relaxed) {
            break;
        }
        match api.post_json_while_it_lasts(ONE, &body) {
            Some((200, answer)) => {
                assert_eq!(answer["decision"], json!(*key == "own-key"), "{key}: {answer}");
                decisions.push(answer["context"]["decision_id"].as_str().expect("a decision has an id").to_owned());
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Some((503, _)) | None => break,
            Some((status, answer)) => panic!("{status}: {answer}"),
        }
    }
    decisions
}

fn wait_for(answered: &AtomicUsize, more: usize) {
    let wanted = answered.load(Ordering::Relaxed) + more;
    wait::until("enough answers", || (answered.load(Ordering::Relaxed) >= wanted).then_some(()));
}

/// Whether each of these is in the log exactly once.
fn assert_on_record(host: &Host, decisions: &[String]) {
    let answered: BTreeSet<&str> = decisions.iter().map(String::as_str).collect();
    assert_eq!(answered.len(), decisions.len(), "no two answers are of one decision");
    let records = host.records();
    let on_record: Vec<&str> = records.iter().map(|record| record.text("/id")).collect();
    let found: BTreeSet<&str> = on_record.iter().copied().collect();
    assert_eq!(found.len(), on_record.len(), "no id is twice in the log");
    assert_eq!(answered.difference(&found).next(), None, "an answer that is not on record");
}

#[test]
fn answers_are_right_and_on_record_while_connects_flood_and_policy_is_loaded_anew() {
    let peer = UdpPeer::new();
    let host = Host::start(&config(&peer, 0));
    let flood = host.flood("udp-connect", peer.address);
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let decisions = thread::scope(|scope| {
        let (over, answered) = (&over, &answered);
        let askers: Vec<_> =
            (0..ASKERS).map(|_| host.api()).map(|api| scope.spawn(|| ask(api, over, answered))).collect();
        for round in 1..=5 {
            wait_for(answered, 200);
            let signal = json!({ "account": config::ACCOUNT, "kind": "noticed", "risk": 5, "ttl": "1m" });
            let (status, answer) = host.api().post("/v1/signals", &signal);
            assert_eq!(status, 200, "{answer}");
            let before = host.status()["policy_digest"].clone();
            host.configure(&config(&peer, round));
            assert!(host.writ_output(&["reload"]).status.success());
            assert_ne!(host.status()["policy_digest"], before, "another set is in force");
        }
        over.store(true, Ordering::Relaxed);
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect::<Vec<_>>()
    });
    let connects = flood.stop();
    assert!(connects.failed.is_empty(), "{connects:?}");
    assert_on_record(&host, &decisions);
    host.assert_verified(host.settled());
}

#[test]
fn what_is_asked_while_the_daemon_stops_is_answered_and_on_record_or_not_answered() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&config(&peer, 0));
    for _ in 0..5 {
        let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let decisions = thread::scope(|scope| {
            let (over, answered) = (&over, &answered);
            let askers: Vec<_> =
                (0..ASKERS).map(|_| host.api()).map(|api| scope.spawn(|| ask(api, over, answered))).collect();
            wait_for(answered, 100);
            host.signal_daemon(Signal::SIGTERM);
            askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(host.daemon_ends(), Some(0));
        assert_on_record(&host, &decisions);
        let last: Value = host.records().last().expect("records").0.clone();
        assert_eq!((&last["type"], &last["event"]), (&json!("lifecycle"), &json!("stop")), "nothing follows: {last}");
        host.run_daemon();
    }
    host.assert_verified(host.settled());
}
