//! The situations that writ is for, from end to end, with the programs that would be there.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use writ_tests::{Config, Host, KeepingPeer, Postgres, Psql, TcpPeer, postgres, wait};

fn permit(id: &str, destination: &str, when: &str) -> (String, String) {
    let text = format!(
        "@id(\"{id}\")\n@owner(\"dba\")\n@reason(\"the situation\")\npermit (principal, action == Action::\"connect\", \
         resource in Destination::\"{destination}\") when {{ {when} }};\n"
    );
    (format!("policies.d/{id}.cedar"), text)
}

fn curl(host: &Host, to: SocketAddr) -> Option<i32> {
    let mut command = host.command("curl");
    command.args(["--silent", "--noproxy", "*", "--max-time", "20", &format!("http://{to}/")]);
    command.stdout(Stdio::null()).stdin(Stdio::null()).status().expect("curl is installed").code()
}

/// curl's "could not connect".
const REFUSED: Option<i32> = Some(7);

#[test]
fn situation_1_an_agent_reaches_the_database_in_its_window_and_never_an_unusual_address() {
    let (usual, unusual) = (TcpPeer::new(), TcpPeer::new());
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(25);
    let until = until.strftime("%Y-%m-%dT%H:%M:%SZ");
    let (file, window) = permit("window", "db", &format!("context.now < datetime(\"{until}\")"));
    let (other, known) = permit("known-only", "elsewhere", "!context.new_destination");
    let host = Host::start(
        &Config::new()
            .destination("db", usual.address)
            .destination("elsewhere", unusual.address)
            .file(&file, &window)
            .file(&other, &known),
    );

    // The peer accepts and says nothing: to curl that is anything but a refusal.
    assert_ne!(curl_briefly(&host, usual.address), REFUSED, "inside the window");
    wait::until("the window closes", || (curl_briefly(&host, usual.address) == REFUSED).then_some(()));

    // By address both are 127.0.0.1, which the account has been to; another host it has not.
    let new = SocketAddr::from(([127, 0, 0, 9], unusual.address.port()));
    host.configure(&Config::new().destination("elsewhere", new).file(&other, &known).destination("db", usual.address));
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(curl(&host, new), REFUSED, "an address it has never been to");
    let last = wait::until("it is on record", || {
        host.judgements().pop().filter(|record| record.text("/destination/address") == new.ip().to_string())
    });
    assert_eq!(last.0.pointer("/request/context/new_destination"), Some(&json!(true)));
    assert_eq!((last.text("/verdict"), last.text("/type")), ("deny", "decision"));
}

fn curl_briefly(host: &Host, to: SocketAddr) -> Option<i32> {
    let mut command = host.command("curl");
    command.args(["--silent", "--noproxy", "*", "--max-time", "1", &format!("http://{to}/")]);
    command.stdout(Stdio::null()).stdin(Stdio::null()).status().expect("curl is installed").code()
}

#[test]
fn situation_2_a_grant_is_revoked_and_psql_cut_when_the_workload_runs_something_else() {
    let Some(programs) = postgres::programs() else {
        eprintln!("left out: PostgreSQL is not installed here");
        return;
    };
    let server = Postgres::start(&programs);
    let mut config = Config::new().destination("db", server.address);
    let psql = fs::canonicalize(programs.join("psql")).expect("psql is installed");
    config.account = format!("executables = [\"{}\", \"{}\"]", psql.display(), programs.join("psql").display());
    let host = Host::start(&config);
    let create = ["grant", "create", "--account", "tested", "--to", "db", "--ttl", "10m", "--reason", "a migration"];
    host.writ_json(&create);
    let mut psql = Psql::begin(&host, &programs, server.address);
    assert_eq!(psql.query("select 1;").as_deref(), Some("1"));

    let shell = host.command("/bin/sh").args(["-c", "exit 0"]).status().expect("there is a shell");
    assert!(shell.success());

    wait::until("the session is cut", || (host.records_of("cut").len() == 1).then_some(()));
    assert_eq!(psql.query("select 2;"), None);
    let grant = host.records_of("grant").pop().expect("the grant's end is on record");
    assert_eq!(
        (grant.text("/state"), grant.text("/ended_because")),
        ("revoked", "drift: workload.unexpected-executable")
    );
    // For good: the end of the signal gives nothing back.
    let signal =
        host.writ_json(&["signal", "list"]).pointer("/0/id").and_then(Value::as_str).unwrap_or_default().to_owned();
    host.writ_json(&["signal", "clear", &signal, "--reason", "looked at"]);
    host.attempt("tcp", &[server.address]).assert_failed("EACCES");
}

#[test]
fn situation_4_a_session_lives_only_while_its_signals_are_fresh() {
    let peer = KeepingPeer::new();
    let mut config = Config::new()
        .destination("gateway", peer.address)
        .permit("to-gateway", "gateway")
        .file("signals.d/edr.toml", "[signal.\"edr.heartbeat\"]\nttl = \"10s\"\nfreshness = true\n");
    config.account = "requires-fresh = [\"edr.heartbeat\"]".into();
    let host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let beat = ["signal", "send", "--account", "tested", "--kind", "edr.heartbeat"];
    host.writ_json(&beat);
    let mut held = host.hold(1, "tcp", peer.address);
    assert_eq!(held.send().succeeded, 1);

    // Nobody sends another.
    wait::until("the session is cut", || (held.send().succeeded == 0).then_some(()));

    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let decision =
        wait::until("it is on record", || host.judgements().pop().filter(|record| record.text("/verdict") == "deny"));
    assert!(decision.policies().iter().any(|id| id.starts_with("requires-fresh:")), "{decision:?}");
    let cut = wait::until("the cut is on record", || host.records_of("cut").pop());
    assert!(!cut.text("/change").is_empty(), "{cut:?}");
}

#[test]
fn situation_5_a_rotated_credential_ends_what_was_opened_with_the_old_one_and_offboarding_ends_everything() {
    let peer = KeepingPeer::new();
    let mut host = Host::start(&Config::new().destination("db", peer.address).permit("to-db", "db"));
    let mut old = host.hold(2, "tcp", peer.address);
    let rotate =
        ["signal", "send", "--account", "tested", "--kind", "credential-rotated", "--risk", "0", "--ttl", "1h"];
    host.writ_json(&rotate);
    let mut new = host.hold(1, "tcp", peer.address);
    assert_eq!((old.send().succeeded, new.send().succeeded), (0, 1));
    let cuts = host.records_of("cut");
    assert_eq!(cuts.len(), 2);
    assert!(cuts.iter().all(|cut| cut.text("/reason").starts_with("opened before `credential-rotated`")), "{cuts:#?}");
    let mut signals = host.records_of("lifecycle").into_iter().filter(|record| record.text("/event") == "signal");
    let signal = signals.next_back().expect("the signal is on record");
    assert!(cuts.iter().all(|cut| cut.text("/change") == signal.text("/id")));

    // What it may do, what it did, and where it is now.
    let shown = host.writ_json(&["account", "show", "tested"]);
    for member in
        ["stance_digest", "risk_explained", "sessions", "live_grants", "policies", "destinations_seen", "epoch"]
    {
        assert!(shown.get(member).is_some(), "`{member}` is missing in {shown}");
    }
    assert_eq!(shown.pointer("/sessions").and_then(Value::as_array).map(Vec::len), Some(1));
    assert_eq!(shown.pointer("/destinations_seen/0"), Some(&json!("127.0.0.1")));

    host.writ_json(&["account", "offboard", "tested", "--reason", "it left"]);
    assert_eq!(new.send().succeeded, 0);
    let grant = ["grant", "create", "--account", "tested", "--to", "db", "--ttl", "1m", "--reason", "r"];
    assert_eq!(host.writ_output(&grant).status.code(), Some(1));
    host.kill_daemon();
    host.run_daemon();
    assert!(host.writ_output(&["reload"]).status.success());
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.writ_json(&["account", "reinstate", "tested", "--reason", "it came back"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
}
