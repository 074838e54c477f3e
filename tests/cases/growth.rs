//! What a grant, an approval or an unchanged reload changes: one account in the generation in force, and nothing else.

use std::fs;

use serde_json::Value;
use writ_tests::{Config, Host, TcpPeer, config, user, wait};

fn generation(host: &Host) -> u64 {
    host.status().get("generation").and_then(Value::as_u64).expect("the status has a generation")
}

#[track_caller]
fn grant(host: &Host, account: &str, to: &str) -> String {
    let made = host.writ_json(&["grant", "create", "--account", account, "--to", to, "--ttl", "10m", "--reason", "x"]);
    made.get("id").and_then(Value::as_str).expect("the grant has an id").to_owned()
}

#[test]
fn a_grant_is_added_to_the_generation_in_force_for_its_account_alone_and_replays() {
    let (web, db, other) = (TcpPeer::new(), TcpPeer::new(), TcpPeer::new());
    let stranger = user::ensure(user::STRANGER);
    let second = format!("[service-account.second]\nowner = \"o\"\nmatch = {{ user = \"{}\" }}\n", user::STRANGER);
    let config = Config::new()
        .destination("web", web.address)
        .destination("db", db.address)
        .permit("to-web", "web")
        .file("service-accounts.d/second.toml", &second);
    let host = Host::start(&config);
    host.attempt("tcp", &[web.address]).assert_succeeded();
    host.attempt("tcp", &[db.address]).assert_failed("EACCES");
    let before = generation(&host);

    // Nothing asked about `db` or about the other's endpoint before: both are told apart now.
    let to_db = grant(&host, config::ACCOUNT, "db");
    let to_other = grant(&host, config::ACCOUNT, &format!("{}/tcp", other.address));
    host.attempt("tcp", &[db.address]).assert_succeeded();
    host.attempt("tcp", &[other.address]).assert_succeeded();
    host.attempt("tcp", &[web.address]).assert_succeeded();
    host.attempt_as(&stranger, "tcp", &[db.address]).assert_failed("EACCES");
    host.writ_json(&["grant", "revoke", &to_db]);
    host.attempt("tcp", &[db.address]).assert_failed("EACCES");
    host.attempt("tcp", &[other.address]).assert_succeeded();
    assert_eq!(generation(&host), before, "no new generation was needed");

    // The other account's first grant makes classes that the first one's rows were made without.
    let for_second = grant(&host, "second", "web");
    host.attempt_as(&stranger, "tcp", &[web.address]).assert_succeeded();
    host.attempt("tcp", &[web.address]).assert_succeeded();
    host.writ_json(&["grant", "revoke", &for_second]);
    host.attempt_as(&stranger, "tcp", &[web.address]).assert_failed("EACCES");

    let judged = wait::until("every judgement is recorded", || Some(host.judgements()).filter(|all| all.len() == 11));
    let sets: Vec<&str> = judged.iter().map(|record| record.text("/policy_digest")).collect();
    assert_eq!((sets[0], sets[5]), (sets[1], sets[0]), "without a grant: the configured set, {sets:?}");
    assert!(sets[2] == sets[3] && sets[3] == sets[4] && sets[4] != sets[0], "with both grants: {sets:?}");
    assert!(sets[6] == sets[7] && sets[6] != sets[4] && sets[6] != sets[0], "with one of them: {sets:?}");
    assert_eq!(judged[3].text("/grant/id"), to_other);
    let replayed = host.writ_output(&["replay", &host.log_directory().display().to_string()]);
    assert!(replayed.status.success(), "{replayed:?}");
}

#[test]
fn a_grant_for_an_executable_that_nothing_named_opens_for_it_alone() {
    let (web, db) = (TcpPeer::new(), TcpPeer::new());
    let host = Host::start(&Config::new().destination("web", web.address).permit("to-web", "web"));
    let program = host.directory().join("another-probe");
    fs::copy(host.probe(), &program).expect("cannot copy the probe");
    let before = generation(&host);
    let to = format!("{}/tcp", db.address);
    let path = program.display().to_string();
    let body = serde_json::json!({
        "account": config::ACCOUNT, "to": to, "ttl": "10m", "reason": "x", "executable": path
    });
    let (status, answer) = host.api().post("/v1/grants", &body);
    assert_eq!(status, 200, "{answer}");

    host.attempt("tcp", &[db.address]).assert_failed("EACCES");
    let mut command = host.command(&program);
    let output = command.args(["tcp", &db.address.to_string()]).output().expect("cannot run the probe");
    assert!(output.status.success(), "{output:?}");
    host.attempt("tcp", &[web.address]).assert_succeeded();
    assert_eq!(generation(&host), before, "no new generation was needed");
    let judged = wait::until("every judgement is recorded", || Some(host.judgements()).filter(|all| all.len() == 3));
    let verdicts: Vec<&str> = judged.iter().map(|record| record.text("/verdict")).collect();
    assert_eq!(verdicts, ["deny", "allow", "allow"]);
}

#[test]
fn an_unchanged_reload_is_recorded_and_swaps_nothing_until_the_host_has_changed() {
    let peer = TcpPeer::new();
    let stranger = user::ensure(user::STRANGER);
    let config = Config::new().destination("web", peer.address).permit("to-web", "web");
    let host = Host::prepare(&config);
    let tool = host.directory().join("tool");
    let account = format!("[service-account.tool]\nowner = \"o\"\nmatch = {{ executable = \"{}\" }}\n", tool.display());
    host.configure(&config.file("service-accounts.d/tool.toml", &account));
    let mut host = host;
    host.run_daemon();
    let before = generation(&host);

    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(generation(&host), before, "nothing is another, so nothing was swapped");
    // The same text means more now: an executable that an account is matched by is there.
    fs::copy(host.probe(), &tool).expect("cannot copy the probe");
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(generation(&host), before + 1, "what the host has now is in force");

    let mut command = host.command_as(&stranger, &tool);
    command.args(["tcp", &peer.address.to_string()]);
    command.output().expect("cannot run the tool");
    host.expect_judgements(&[format!("deny tcp {} EACCES", peer.address)]);
    let reloads = host.records_of("lifecycle");
    let reloads: Vec<_> = reloads.iter().filter(|record| record.text("/event") == "reload").collect();
    assert_eq!(reloads.len(), 2, "each reload is on record");
    assert!(reloads.iter().all(|record| record.text("/before") == record.text("/after")), "with both digests");
}
