//! What the contract says in a word and nobody else claims: prompt proofs, labels, simulations from live state, exit codes.

use std::process::Command;

use serde_json::{Value, json};
use writ_tests::{Config, Host, UdpPeer, cgroup, config, user, wait};

#[test]
fn a_record_that_was_written_a_moment_ago_is_proved() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new().destination("open", peer.address).permit("to-open", "open"));
    for _ in 0..3 {
        let before = host.judgements().len();
        host.attempt("udp-judge", &[peer.address]).assert_succeeded();
        let record = wait::until("it is on record", || host.judgements().into_iter().nth(before));
        // The daemon signs within the second, and the command waits for it; a machine that is busy may take longer.
        let proved = wait::until("it is proved", || {
            Some(host.writ_output(&["prove", record.text("/id")])).filter(|proved| proved.status.success())
        });
        let proof = host.directory().join("proof");
        std::fs::write(&proof, &proved.stdout).unwrap();
        let verified = host.writ_output(&["verify", "--proof", &proof.display().to_string()]);
        assert!(verified.status.success(), "{verified:?}");
    }
}

#[test]
fn a_simulation_knows_where_the_account_has_been() {
    let (peer, other) = (UdpPeer::new(), "127.0.0.77:9");
    let unusual = "@id(\"unusual\") @owner(\"o\") @reason(\"nowhere new at risk\")\nforbid (principal, action == \
                   Action::\"connect\", resource) when { context.new_destination && context.risk >= 50 };\n";
    let config = Config::new().destination("open", peer.address).permit("to-open", "open");
    let host = Host::start(&config.file("policies.d/unusual.cedar", unusual));
    let at_risk = |to: &str, more: &[&str]| {
        let mut arguments =
            vec!["simulate", "--account", config::ACCOUNT, "--to", to, "--protocol", "udp", "--risk", "60"];
        arguments.extend(more);
        host.writ_output(&arguments).status.code()
    };
    let to = peer.address.to_string();
    assert_eq!(at_risk(&to, &[]), Some(2), "it has been nowhere");
    assert_eq!(at_risk(&to, &["--new-destination=false"]), Some(0));
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    assert_eq!(at_risk(&to, &[]), Some(0), "it has been there");
    assert_eq!(at_risk(&to, &["--new-destination"]), Some(2));
    assert_eq!(at_risk(other, &[]), Some(2));
}

#[test]
fn a_configuration_is_called_by_its_label_or_by_its_digest() {
    let mut config = Config::new();
    let host = Host::start(&config);
    let (bundle, digest) = (host.status()["bundle"].clone(), host.status()["configuration_digest"].clone());
    let (bundle, digest) = (bundle.as_str().expect("a string"), digest.as_str().expect("a string"));
    assert!(bundle.len() >= 16 && digest.starts_with(bundle), "{bundle} {digest}");
    config.agent = "label = \"2026-11-26 payments\"\n".to_owned();
    host.configure(&config);
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(host.status()["bundle"], json!("2026-11-26 payments"));
}

#[test]
fn who_was_refused_is_told_why_by_the_daemon_after_the_one_that_was_running_too() {
    let elsewhere = UdpPeer::new();
    let mut host = Host::start(&Config::new());
    host.attempt("udp-judge", &[elsewhere.address]).assert_failed("EACCES");
    host.settled();
    host.kill_daemon();
    host.run_daemon();
    let told = host.writ_as(host.service_user(), &["why", "--json"]);
    assert!(told.status.success(), "{told:?}");
    let told: Value = serde_json::from_slice(&told.stdout).expect("it is JSON");
    let to = told.pointer("/accounts/0/denials/0/to").and_then(Value::as_str);
    assert_eq!(to, Some(format!("{}/udp", elsewhere.address).as_str()), "{told}");
}

#[test]
fn of_an_account_with_several_users_each_is_told_its_own_refusals_and_root_all() {
    let elsewhere = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let below = host.cgroup().path().strip_prefix(cgroup::mount()).unwrap().display().to_string();
    let pool = format!("[service-account.pool]\nowner = \"o@example.com\"\nmatch = {{ cgroup = \"/{below}\" }}\n");
    host.configure(&Config::new().file("service-accounts.d/pool.toml", &pool));
    host.run_daemon();
    let stranger = user::ensure(user::STRANGER);
    host.attempt_as(&stranger, "udp-judge", &[elsewhere.address]).assert_failed("EACCES");
    host.settled();
    let told = |user: &nix::unistd::User| {
        let told = host.writ_as(user, &["why", "--json"]);
        let told: Value = serde_json::from_slice(&told.stdout).expect("it is JSON");
        let pool = told["accounts"].as_array().into_iter().flatten().find(|account| account["account"] == "pool");
        pool.and_then(|pool| pool["denials"].as_array().map(Vec::len))
    };
    let root = nix::unistd::User::from_uid(0.into()).unwrap().expect("there is root");
    assert_eq!([told(&stranger), told(host.service_user()), told(&root)], [Some(1), Some(0), Some(1)]);
}

#[test]
fn a_doctor_is_for_who_may_ask_and_a_reader_that_goes_away_is_no_defect() {
    let host = Host::start(&Config::new());
    let asked = host.writ_as(&user::ensure(user::STRANGER), &["doctor"]);
    assert_eq!(asked.status.code(), Some(77), "{asked:?}");
    for arguments in ["check --json", "check", "tail", "account list"] {
        let script = format!("trap '' PIPE; \"$0\" --config-dir \"$1\" {arguments} | true; exit ${{PIPESTATUS[0]}}");
        let program = host.writ(&[]).get_program().to_owned();
        let mut command = Command::new("bash");
        let output = command.args(["-c", &script]).arg(program).arg(host.config_directory()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments}: {output:?}");
    }
}

#[test]
fn what_an_approval_let_through_has_it_as_its_grant() {
    let peer = UdpPeer::new();
    let ask = "@id(\"ask\") @owner(\"dba\") @reason(\"a person decides\") @decision(\"escalate\")\nforbid (principal, action == \
               Action::\"connect\", resource in Destination::\"db\");\n";
    let config = Config::new().destination("db", peer.address).permit("to-db", "db").file("policies.d/ask.cedar", ask);
    let host = Host::start(&config);
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let escalation = wait::until("it is escalated", || {
        let open = host.writ_json(&["escalation", "list", "--json"]);
        open.pointer("/0/id").and_then(Value::as_str).map(str::to_owned)
    });
    host.writ_json(&["escalation", "approve", &escalation, "--ttl", "5m", "--reason", "release 8", "--json"]);
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    host.settled();
    let judgements = host.judgements();
    let grants: Vec<&str> = judgements.iter().map(|record| record.text("/grant/id")).collect();
    assert_eq!(grants, ["", escalation.as_str()], "{judgements:#?}");
    let allowed = judgements.last().expect("it was let through");
    assert_eq!(allowed.text("/grant/reason"), "release 8");
    // Who approved is named alike wherever it is said, and nobody who logged in is a word of its own.
    let own = std::fs::read_to_string("/proc/self/loginuid").unwrap();
    let own = match own.trim().parse::<u32>() {
        Ok(u32::MAX) | Err(_) => json!("unattributed"),
        Ok(uid) => json!(uid),
    };
    assert_eq!(allowed.0.pointer("/grant/approver/loginuid"), Some(&own));
    let listed = host.writ_json(&["grant", "list", "--json"]);
    assert_eq!(listed.pointer("/0/approver/loginuid"), Some(&own), "{listed}");
}

#[test]
fn who_is_offboarded_is_refused_in_observe_mode_and_under_broken_glass_by_every_door() {
    for mode in ["observe", "enforce"] {
        let peer = UdpPeer::new();
        let mut config = Config::new().destination("db", peer.address);
        config.agent = format!("mode = \"{mode}\"\n");
        if mode == "enforce" {
            config = config.permit("to-db", "db");
        }
        who_is_offboarded_is_refused(&Host::start(&config), &peer);
    }
}

fn who_is_offboarded_is_refused(host: &Host, peer: &UdpPeer) {
    let question = json!({
        "subject": { "type": "service_account", "id": config::ACCOUNT },
        "action": { "name": "connect" },
        "resource": { "type": "Endpoint", "id": format!("{}/udp", peer.address) },
    });
    let asked = || host.request("POST", "/access/v1/evaluation", question.clone()).body;
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    assert_eq!(asked()["decision"], true);
    host.writ_json(&["account", "offboard", config::ACCOUNT, "--reason", "left", "--json"]);
    for glass in [false, true] {
        if glass {
            host.writ_json(&["break-glass", "--all", "--ttl", "1m", "--reason", "a drill", "--json"]);
        }
        host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
        let answer = asked();
        assert_eq!(answer["decision"], false, "{answer}");
        assert_eq!(answer["context"]["effective_mode"], "enforce", "{answer}");
        assert_eq!(host.status()["not_enforced"], json!([]), "glass {glass}");
        let account = host.writ_json(&["account", "show", config::ACCOUNT, "--json"]);
        assert_eq!(account["mode"], "enforce", "{account}");
    }
    let changes = host.records_of("change");
    let modes: Vec<&str> = changes.iter().map(|change| change.text("/after/mode")).collect();
    assert_eq!(modes, ["enforce"], "{changes:#?}");
}

#[test]
fn a_grant_for_what_is_declared_no_more_keeps_no_daemon_from_starting() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&Config::new().destination("db", peer.address));
    host.writ_json(&[
        "grant",
        "create",
        "--account",
        config::ACCOUNT,
        "--to",
        "db",
        "--ttl",
        "1h",
        "--reason",
        "a look",
        "--json",
    ]);
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    // As after a reboot: the pins are gone, and the destination was taken out meanwhile.
    host.kill_daemon();
    assert!(host.writ_output(&["uninstall"]).status.success());
    std::fs::remove_file(host.config_directory().join("destinations.d/db.toml")).unwrap();

    host.run_daemon();

    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    assert_eq!(host.status()["degraded"], json!(["grants-left-out"]));
    // And nothing else from being brought up to date.
    host.configure(&Config::new().destination("other", peer.address).permit("to-other", "other"));
    assert!(host.writ_output(&["reload"]).status.success());
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    assert_eq!(host.status()["degraded"], json!(["grants-left-out"]));
    let id = host.writ_json(&["grant", "list", "--json"])[0]["id"].as_str().expect("it is listed").to_owned();
    host.writ_json(&["grant", "revoke", &id, "--reason", "of no use", "--json"]);
    host.configure(&Config::new());
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(host.status()["degraded"], json!([]));
}

#[test]
fn a_range_of_ports_is_permitted_from_end_to_end_and_nothing_beside_it() {
    let range = "[destination.range]\naddresses = [\"127.0.0.1\"]\nports = [\"5000-5010\", 7000]\n";
    let host = Host::start(&Config::new().file("destinations.d/range.toml", range).permit("to-range", "range"));
    for (port, permitted) in [(4999, false), (5000, true), (5010, true), (5011, false), (6999, false), (7000, true)] {
        let attempt = host.attempt("udp-judge", &[([127, 0, 0, 1], port).into()]);
        if permitted {
            attempt.assert_succeeded();
        } else {
            attempt.assert_failed("EACCES");
        }
    }
}
