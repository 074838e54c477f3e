//! A change says what it opened and what it closed; what changes nothing for an account is no change of it.

use serde_json::{Value, json};
use writ_tests::{Config, Host, Record, TcpPeer, config};

const MALWARE: &str = "[signal.\"edr.malware\"]\nrisk = 90\nttl = \"1h\"\nflag = true\nfrom = [\"root\"]\n";
const FORBID: &str = "@id(\"not-at-risk\") @owner(\"o\") @reason(\"r\")\nforbid (principal, action == Action::\"connect\", \
                      resource in Destination::\"db\") when { context.risk >= 80 };\n";

fn changes(host: &Host) -> Vec<Record> {
    host.records_of("change")
}

fn named(record: &Record, list: &str) -> Vec<Value> {
    record.0[list].as_array().expect("it is a list").clone()
}

#[test]
fn a_change_lists_what_it_opened_and_closed() {
    let (db, web) = (TcpPeer::new(), TcpPeer::new());
    let config = Config::new().destination("db", db.address).destination("web", web.address);
    let config = config.permit("to-db", "db").permit("to-web", "web");
    let config = config.file("signals.d/edr.toml", MALWARE).file("policies.d/risk.cedar", FORBID);
    let host = Host::start(&config);
    let of_db = json!([{ "action": "connect", "destination": "db", "protocols": ["tcp", "udp"] }]);

    let send = ["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.malware"];
    let sent = host.writ_json(&send);
    let id = sent.pointer("/outcome/signal/id").and_then(Value::as_str).expect("the signal has an id").to_owned();
    host.attempt("tcp", &[db.address]).assert_failed("EACCES");
    host.attempt("tcp", &[web.address]).assert_succeeded();
    let all = changes(&host);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!((json!(named(&all[0], "closed")), named(&all[0], "opened").len()), (of_db.clone(), 0), "{}", all[0].0);

    host.writ_json(&["signal", "clear", &id, "--reason", "false alarm"]);
    let all = changes(&host);
    assert_eq!((json!(named(&all[1], "opened")), named(&all[1], "closed").len()), (of_db, 0), "{}", all[1].0);
    assert_eq!(all[0].text("/before/stance_digest"), all[1].text("/after/stance_digest"));

    // A grant opens what nothing permitted, and names it as it was given.
    let grant = ["grant", "create", "--account", config::ACCOUNT, "--to", "192.0.2.7:8443/tcp", "--ttl", "5m"];
    host.writ_json(&[&grant[..], &["--reason", "x"]].concat());
    let all = changes(&host);
    let opened = named(&all[2], "opened");
    assert_eq!(
        json!(opened),
        json!([{ "action": "connect", "addresses": ["192.0.2.7/32"], "ports": ["8443"], "protocols": ["tcp"] }])
    );

    host.writ_json(&["account", "offboard", config::ACCOUNT, "--reason", "gone"]);
    let closed = named(&changes(&host)[3], "closed");
    let names: Vec<_> = closed.iter().map(|entry| entry["destination"].as_str().unwrap_or("elsewhere")).collect();
    assert_eq!(names, ["elsewhere", "db", "web"]);
}

#[test]
fn a_reload_that_changes_what_others_may_do_is_a_change_of_theirs_alone() {
    let (db, other) = (TcpPeer::new(), TcpPeer::new());
    let nobody = "[service-account.nobody]\nowner = \"o\"\nmatch = { user = \"nobody\" }\n";
    let config = Config::new().destination("db", db.address).permit("to-db", "db");
    let config = config.file("service-accounts.d/nobody.toml", nobody);
    let host = Host::start(&config);
    // Addresses, ports and an executable that no class told apart: every row is laid out anew.
    let policy = "@id(\"wide\") @owner(\"o\") @reason(\"r\")\npermit (principal == ServiceAccount::\"nobody\", action == \
                  Action::\"connect\", resource in Destination::\"wide\") when { context.port < 9000 && \
                  context.executable == \"/usr/bin/curl\" };\n";
    let wide = "[destination.wide]\naddresses = [\"127.0.0.0/9\", \"::1/128\"]\nports = [1, \"5000-6000\"]\n";
    let config = config.file("destinations.d/wide.toml", wide).file("policies.d/wide.cedar", policy);
    let config = config.destination("other", other.address);
    host.configure(&config);
    assert!(host.writ_output(&["reload"]).status.success());

    let all = changes(&host);
    let accounts: Vec<&str> = all.iter().map(|record| record.text("/account")).collect();
    assert_eq!(accounts, ["nobody"], "{all:#?}");
    let opened = named(&all[0], "opened");
    assert_eq!(opened[0]["destination"], "wide", "{opened:?}");
    assert_eq!(opened[0]["executables"], json!(["/usr/bin/curl"]), "{opened:?}");
    assert_eq!(all[0].text("/cause"), "policy");
}
