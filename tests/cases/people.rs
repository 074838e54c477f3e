//! Persons who are not root: who is an operator or an approver by name or by group may do that and nothing else; and what
//! an operator does without the command line, a hangup.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;
use writ_tests::{Config, Host, UdpPeer, config, user, wait};

/// The code that a command of the stranger's ends with.
#[track_caller]
fn code(host: &Host, arguments: &[&str]) -> i32 {
    let output = host.writ_as(&user::ensure(user::STRANGER), arguments);
    output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {output:?}"))
}

const GRANT: [&str; 10] =
    ["grant", "create", "--account", config::ACCOUNT, "--to", "db", "--ttl", "5m", "--reason", "a look"];
const SIGNAL: [&str; 10] =
    ["signal", "send", "--account", config::ACCOUNT, "--kind", "seen.by-hand", "--risk", "1", "--ttl", "5m"];
const REFUSED: i32 = 77;

#[test]
fn an_operator_by_name_operates_and_does_not_approve() {
    let peer = UdpPeer::new();
    let mut config = Config::new().destination("db", peer.address);
    let host = Host::start(&config);
    for refused in [&SIGNAL[..], &["reload"], &["status"], &GRANT] {
        assert_eq!(code(&host, refused), REFUSED, "{refused:?}: nobody yet");
    }
    config.agent = format!("operators = [\"root\", \"{}\"]\n", user::STRANGER);
    host.configure(&config);
    host.writ_json(&["reload", "--json"]);
    for permitted in [&SIGNAL[..], &["reload"], &["status"], &["account", "list"]] {
        assert_eq!(code(&host, permitted), 0, "{permitted:?}");
    }
    assert_eq!(code(&host, &GRANT), REFUSED);
    let sent = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "signal");
    let sent = sent.expect("the signal is on record");
    assert_eq!(sent.text("/by/user"), user::STRANGER, "{sent:#?}");
}

#[test]
fn a_slip_of_a_name_is_answered_with_the_name_to_those_who_may_know_it_and_to_nobody_else() {
    let host = Host::start(&Config::new());
    let about = |name: &'static str| {
        let mut signal = SIGNAL;
        signal[3] = name;
        signal
    };
    let slip = about("testde");
    let told = host.writ_output(&slip);
    assert!(String::from_utf8_lossy(&told.stderr).contains("did you mean `tested`?"), "{told:?}");
    let stranger = host.writ_as(&user::ensure(user::STRANGER), &slip);
    assert_eq!(stranger.status.code(), Some(REFUSED), "{stranger:?}");
    assert!(!String::from_utf8_lossy(&stranger.stderr).contains("tested`"), "{stranger:?}");
    for arguments in [
        &["account", "show", "testde"][..],
        &["account", "offboard", "testde", "--reason", "r"],
        &["signal", "list", "--account", "testde"],
        &["break-glass", "--account", "testde", "--ttl", "1m", "--reason", "r"],
        &["simulate", "--account", "testde", "--to", "127.0.0.1:9"],
        &["grant", "create", "--account", "testde", "--to", "db", "--ttl", "1m", "--reason", "r"],
    ] {
        let told = host.writ_output(arguments);
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        assert!(String::from_utf8_lossy(&told.stderr).contains("did you mean `tested`?"), "{told:?}");
    }
}

#[test]
fn an_approver_by_group_approves_until_the_group_is_taken_out() {
    let peer = UdpPeer::new();
    let mut config = Config::new().destination("db", peer.address);
    config.agent = format!("approvers = [\"root\", \"%{}\"]\n", user::STRANGER);
    user::ensure(user::STRANGER);
    let host = Host::start(&config);
    assert_eq!(code(&host, &GRANT), 0);
    // Taken back without a reason, as on the command line, and made again.
    let listed = host.writ_json(&["grant", "list", "--json"]);
    let id = listed.pointer("/0/id").and_then(Value::as_str).expect("the grant is listed");
    assert_eq!(host.request("POST", &format!("/v1/grants/{id}/revoke"), Value::Null).status, 200);
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    assert_eq!(code(&host, &GRANT), 0);
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    assert_eq!(code(&host, &SIGNAL), REFUSED);
    // The account itself is no approver, whatever group it is in.
    assert_eq!(host.writ_as(host.service_user(), &GRANT).status.code(), Some(REFUSED));
    config.agent.clear();
    host.configure(&config);
    host.writ_json(&["reload", "--json"]);
    assert_eq!(code(&host, &GRANT), REFUSED);
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    let granted = host.judgements().pop().expect("it was let through");
    assert_eq!(granted.text("/grant/approver/user"), user::STRANGER, "what was approved then holds: {granted:#?}");
}

#[test]
fn a_hangup_is_a_reload_and_one_that_is_refused_changes_nothing() {
    let peer = UdpPeer::new();
    let mut config = Config::new().destination("db", peer.address);
    let host = Host::start(&config);
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    config = config.permit("to-db", "db");
    host.configure(&config);
    host.signal_daemon(Signal::SIGHUP);
    let reloads = || host.records_of("lifecycle").iter().filter(|record| record.text("/event") == "reload").count();
    wait::until("the reload is on record", || (reloads() == 1).then_some(()));
    let reloaded = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "reload");
    let reloaded = reloaded.expect("it is on record");
    assert_eq!(reloaded.number("/by/pid"), Some(u64::from(std::process::id())), "{reloaded:#?}");
    assert_eq!(reloaded.number("/by/uid"), Some(0));
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    let digest = host.status()["configuration_digest"].clone();
    let broken = host.config_directory().join("policies.d/broken.cedar");
    fs::write(&broken, "permit (principal, action").unwrap();
    host.signal_daemon(Signal::SIGHUP);
    let output = || fs::read_to_string(host.directory().join("writ.output")).unwrap_or_default();
    wait::until("the refusal is said", || output().contains("broken.cedar").then_some(()));
    assert_eq!(host.status()["configuration_digest"], digest);
    host.attempt("udp-judge", &[peer.address]).assert_succeeded();
}

#[test]
fn init_writes_a_configuration_that_checks_clean_and_overwrites_nothing() {
    let host = Host::start(&Config::new());
    let directory = host.directory().join("new");
    let of_new = |arguments: &[&str]| {
        let mut command = std::process::Command::new(host.writ(&[]).get_program());
        command.arg("--config-dir").arg(&directory).args(arguments).output().unwrap()
    };
    let made = of_new(&["init"]);
    assert!(made.status.success(), "{made:?}");
    let checked = of_new(&["check", "--json"]);
    assert!(checked.status.success(), "{checked:?}");
    let found: Value = serde_json::from_slice(&checked.stdout).expect("it is JSON");
    let found = found.as_array().expect("findings are a list");
    assert!(found.iter().all(|finding| finding["severity"] == "warning"), "{found:?}");
    let before = fs::read_to_string(directory.join("writ.toml")).unwrap();
    fs::write(directory.join("writ.toml"), format!("{before}# mine\n")).unwrap();
    let _ = of_new(&["init"]);
    assert!(fs::read_to_string(directory.join("writ.toml")).unwrap().ends_with("# mine\n"), "it was overwritten");
}
