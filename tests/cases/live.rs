//! Live state: what is known changes, and access changes within the call that says so, or when its time comes.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use writ_tests::{Config, Host, Record, TcpPeer, config, user, wait};

const TIGHT: &str = "@id(\"quiet-only\")\n@owner(\"security\")\n@reason(\"a risky account reaches nothing\")\nforbid \
                     (principal, action == Action::\"connect\", resource) when { context.risk >= 80 };\n";
const MALWARE: &str = "[signal.\"edr.malware\"]\nrisk = 90\nttl = \"1h\"\n";

/// A `writ` command that must succeed; its JSON.
#[track_caller]
fn done(host: &Host, arguments: &[&str]) -> Value {
    host.writ_json(arguments)
}

/// What a `writ` command of a user in the cgroup ends with and says.
fn code_as(host: &Host, user: &nix::unistd::User, arguments: &[&str]) -> (Option<i32>, String) {
    let output = host.writ_as(user, arguments);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn id(value: &Value) -> String {
    value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[track_caller]
fn succeeds_soon(host: &Host, peer: &TcpPeer) {
    wait::until("the connection is allowed again", || {
        host.attempt("tcp", &[peer.address]).errno.is_none().then_some(())
    });
}

#[track_caller]
fn fails_soon(host: &Host, peer: &TcpPeer) {
    wait::until("the connection is refused", || {
        (host.attempt("tcp", &[peer.address]).errno.as_deref() == Some("EACCES")).then_some(())
    });
}

/// Waits until the changes on record have exactly these causes: what time changes is recorded a moment after it holds.
#[track_caller]
fn expect_causes(host: &Host, expected: &[&str]) {
    let mut last = Vec::new();
    let found = wait::within(wait::PATIENCE, || {
        last = of_type(host, "change").iter().map(|change| change.text("/cause").to_owned()).collect();
        (last == expected).then_some(())
    });
    assert!(found.is_some(), "expected {expected:?}, recorded was {last:?}");
}

fn of_type(host: &Host, kind: &str) -> Vec<Record> {
    host.records().into_iter().filter(|record| record.text("/type") == kind).collect()
}

#[test]
fn a_signal_closes_access_before_its_call_returns_and_its_clearing_opens_it() {
    let peer = TcpPeer::new();
    let config = Config::new()
        .destination("web", peer.address)
        .permit("to-web", "web")
        .file("policies.d/tight.cedar", TIGHT)
        .file("signals.d/edr.toml", MALWARE);
    let mut host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_succeeded();

    let sent =
        done(&host, &["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.malware", "--evidence", "x"]);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let listed = done(&host, &["signal", "list", "--account", config::ACCOUNT]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");

    // Signals outlive the daemon, however it ends.
    host.kill_daemon();
    host.run_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let signal = id(sent.pointer("/outcome/signal").expect("the signal is named"));
    done(&host, &["signal", "clear", &signal, "--reason", "false alarm"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();

    let changes = of_type(&host, "change");
    let causes: Vec<&str> = changes.iter().map(|change| change.text("/cause")).collect();
    assert_eq!(causes, ["signal", "signal-cleared"]);
    assert_eq!((changes[0].number("/before/risk"), changes[0].number("/after/risk")), (Some(0), Some(90)));
    assert_eq!(changes[0].text("/before/stance_digest"), changes[1].text("/after/stance_digest"));
    host.expect_judgements(&[
        format!("allow tcp {} by to-web", peer.address),
        format!("deny tcp {} EACCES by quiet-only", peer.address),
        format!("deny tcp {} EACCES by quiet-only", peer.address),
        format!("allow tcp {} by to-web", peer.address),
    ]);
}

#[test]
fn what_a_signal_closed_opens_by_itself_when_it_ends() {
    let peer = TcpPeer::new();
    let config = Config::new()
        .destination("web", peer.address)
        .permit("to-web", "web")
        .file("policies.d/tight.cedar", TIGHT)
        .file("signals.d/edr.toml", MALWARE);
    let host = Host::start(&config);

    done(&host, &["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.malware", "--ttl", "6s"]);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    succeeds_soon(&host, &peer);

    expect_causes(&host, &["signal", "signal-expired"]);
}

#[test]
fn a_grant_opens_at_once_and_ends_in_the_kernel_while_the_daemon_is_stopped() {
    let (peer, other) = (TcpPeer::new(), TcpPeer::new());
    let host = Host::start(&Config::new().destination("web", peer.address).destination("other", other.address));
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let grant = done(
        &host,
        &["grant", "create", "--account", config::ACCOUNT, "--to", "web", "--ttl", "8s", "--reason", "incident 7"],
    );
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    host.attempt("tcp", &[other.address]).assert_failed("EACCES");

    host.signal_daemon(Signal::SIGSTOP);
    fails_soon(&host, &peer);
    host.signal_daemon(Signal::SIGCONT);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let grant = id(&grant);
    let allowed = wait::until("the allow is recorded", || {
        host.judgements().into_iter().find(|record| record.text("/verdict") == "allow")
    });
    assert_eq!(allowed.text("/grant/id"), grant);
    let states: Vec<String> = wait::until("the grant's end is recorded", || {
        let states: Vec<String> =
            of_type(&host, "grant").iter().map(|record| record.text("/state").to_owned()).collect();
        (states.len() == 2).then_some(states)
    });
    assert_eq!(states, ["created", "expired"]);
}

#[test]
fn a_grant_that_is_revoked_is_closed_before_the_call_returns() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new());
    let to = format!("{}", peer.address);
    let grant = done(
        &host,
        &["grant", "create", "--account", config::ACCOUNT, "--to", &to, "--ttl", "10m", "--reason", "incident 8"],
    );
    host.attempt("tcp", &[peer.address]).assert_succeeded();

    done(&host, &["grant", "revoke", &id(&grant)]);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    assert_eq!(done(&host, &["grant", "list"]), Value::Array(Vec::new()));
    assert_eq!(host.writ_output(&["grant", "revoke", &id(&grant)]).status.code(), Some(1), "it has ended already");
}

#[test]
fn another_executable_ends_the_grant_for_good() {
    let peer = TcpPeer::new();
    let config = Config::new().destination("web", peer.address);
    let host = Host::prepare(&config);
    let mut config = config.permit("to-web", "web").file("policies.d/to-web.cedar", "");
    config.account = format!("executables = [\"{}\"]", host.probe().display());
    host.configure(&config);
    let mut host = host;
    host.run_daemon();
    let create = ["grant", "create", "--account", config::ACCOUNT, "--to", "web", "--ttl", "10m", "--reason", "deploy"];
    done(&host, &create);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    assert_eq!(done(&host, &["signal", "list"]), Value::Array(Vec::new()), "what is listed raises nothing");

    let shell = host.command("/bin/sh").args(["-c", "exit 0"]).status().expect("there is a shell");
    assert!(shell.success());

    fails_soon(&host, &peer);
    let signals = done(&host, &["signal", "list"]);
    assert_eq!(signals.pointer("/0/kind").and_then(Value::as_str), Some("workload.unexpected-executable"), "{signals}");
    let signal = signals.pointer("/0/id").and_then(Value::as_str).expect("it has an id").to_owned();
    done(&host, &["signal", "clear", &signal, "--reason", "looked at"]);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let ended = of_type(&host, "grant");
    assert_eq!(ended.last().map(|record| record.text("/state")), Some("revoked"), "{ended:?}");
    assert_eq!(ended.last().map(|record| record.text("/signal")), Some(signal.as_str()));
}

#[test]
fn a_closed_window_blocks_an_agent_and_time_moves_it() {
    // Policies know minutes and instants; this one ends within the test, and begins when the daemon runs.
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new());
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(10);
    let window = format!(
        "@id(\"window\")\n@owner(\"dba\")\n@reason(\"maintenance ends\")\npermit (principal, action == \
         Action::\"connect\", resource in Destination::\"db\") when {{ context.now < \
         datetime(\"{}\") }};\n",
        until.strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    let later = until + jiff::SignedDuration::from_secs(4);
    let opens = format!(
        "@id(\"reopens\")\n@owner(\"dba\")\n@reason(\"maintenance is over\")\npermit (principal, action == \
         Action::\"connect\", resource in Destination::\"db\") when {{ context.now >= \
         datetime(\"{}\") }};\n",
        later.strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    let config = Config::new()
        .destination("db", peer.address)
        .file("policies.d/window.cedar", &window)
        .file("policies.d/opens.cedar", &opens);
    host.configure(&config);
    assert!(host.writ_output(&["reload"]).status.success());
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    fails_soon(&host, &peer);
    succeeds_soon(&host, &peer);

    expect_causes(&host, &["policy", "time", "time"]);
}

#[test]
fn a_stale_signal_is_a_reason_to_refuse() {
    let peer = TcpPeer::new();
    let mut config = Config::new()
        .destination("web", peer.address)
        .permit("to-web", "web")
        .file("signals.d/edr.toml", "[signal.\"edr.heartbeat\"]\nttl = \"5s\"\nfreshness = true\n");
    config.account = "requires-fresh = [\"edr.heartbeat\"]".into();
    let host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    done(&host, &["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.heartbeat"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    // Without a daemon to count the time: the kernel does.
    host.signal_daemon(Signal::SIGSTOP);
    fails_soon(&host, &peer);
    host.signal_daemon(Signal::SIGCONT);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    done(&host, &["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.heartbeat"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
}

#[test]
fn an_offboarded_account_reaches_nothing_in_any_mode_until_it_is_reinstated() {
    let peer = TcpPeer::new();
    let mut config = Config::new().destination("web", peer.address).permit("to-web", "web");
    config.account = "mode = \"observe\"".into();
    let mut host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_succeeded();

    done(&host, &["account", "offboard", config::ACCOUNT, "--reason", "the project ended"]);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    let grant = ["grant", "create", "--account", config::ACCOUNT, "--to", "web", "--ttl", "1m", "--reason", "please"];
    assert_eq!(host.writ_output(&grant).status.code(), Some(1));
    assert!(host.writ_output(&["reload"]).status.success());
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.kill_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.run_daemon();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    done(&host, &["account", "reinstate", config::ACCOUNT, "--reason", "it did not"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    expect_causes(&host, &["offboard", "reinstate"]);
}

#[test]
fn broken_glass_observes_and_mends_by_itself() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new());
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    done(&host, &["break-glass", "--account", config::ACCOUNT, "--ttl", "6s", "--reason", "outage"]);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    let not_enforced = || host.writ_json(&["status", "--json"]).pointer("/not_enforced").cloned();
    assert_eq!(not_enforced(), Some(json!([config::ACCOUNT])));
    host.signal_daemon(Signal::SIGSTOP);
    fails_soon(&host, &peer);
    host.signal_daemon(Signal::SIGCONT);

    let lifecycle = of_type(&host, "lifecycle");
    assert!(lifecycle.iter().any(|record| record.text("/event") == "break-glass"), "{lifecycle:?}");
    // What was judged while the daemon stood still is in the ring when it goes on.
    let expected = format!("observed deny tcp {}", peer.address);
    wait::until("the observation is recorded", || {
        host.judgements().iter().any(|record| record.to_string() == expected).then_some(())
    });
    wait::until("its end is recorded", || {
        of_type(&host, "change").iter().any(|change| change.text("/cause") == "break-glass-ended").then_some(())
    });
    assert_eq!(not_enforced(), Some(json!([])));
}

#[test]
fn what_a_person_approved_succeeds_on_retry_and_nothing_else_does() {
    let (peer, other) = (TcpPeer::new(), TcpPeer::new());
    let ask = "@id(\"ask\")\n@owner(\"dba\")\n@reason(\"a person decides\")\n@decision(\"escalate\")\nforbid (principal, \
               action == Action::\"connect\", resource in Destination::\"db\");\n";
    let both = format!(
        "[destination.db]\naddresses = [\"{}/32\"]\nports = [{}, {}]\n",
        peer.address.ip(),
        peer.address.port(),
        other.address.port()
    );
    let config =
        Config::new().file("destinations.d/db.toml", &both).permit("to-db", "db").file("policies.d/ask.cedar", ask);
    let mut host = Host::start(&config);
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let open = wait::until("one escalation with two attempts is open", || {
        let open = done(&host, &["escalation", "list"]);
        (open.pointer("/0/count").and_then(Value::as_u64) == Some(2)).then_some(open)
    });
    assert_eq!(open.as_array().map(Vec::len), Some(1), "{open}");
    let escalation = id(&open[0]);

    // The account learns what it waits for, and cannot answer itself.
    let (code, said) = code_as(&host, host.service_user(), &["why"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&escalation) && said.contains("a person decides") && said.contains("pending"), "{said}");
    let approve = ["escalation", "approve", &escalation, "--ttl", "5m", "--reason", "go"];
    let (code, said) = code_as(&host, host.service_user(), &approve);
    assert_eq!(code, Some(77), "{said}");
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    done(&host, &approve);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    host.attempt("tcp", &[other.address]).assert_failed("EACCES");
    let mut curl = host.command("/usr/bin/curl");
    curl.args(["--silent", "--noproxy", "*", "--max-time", "20"]).arg(format!("http://{}/", peer.address));
    assert_eq!(curl.status().expect("curl is installed").code(), Some(7), "another executable still escalates");

    host.kill_daemon();
    host.run_daemon();
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    // It is a grant like any other, for whoever looks what is open.
    let grant = done(&host, &["grant", "list"])[0].take();
    assert_eq!((id(&grant), &grant["destination"]), (escalation.clone(), &json!(format!("{}/tcp", peer.address))));
    done(&host, &["grant", "revoke", &escalation, "--reason", "enough"]);
    assert_eq!(done(&host, &["grant", "list"]), json!([]));
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
}

#[test]
fn a_program_has_one_name_however_it_is_started_and_its_escalation_names_who_answers_for_the_policy() {
    let peer = TcpPeer::new();
    let ask = "@id(\"ask\")\n@owner(\"dba\")\n@reason(\"a person decides\")\n@decision(\"escalate\")\nforbid (principal, \
               action == Action::\"connect\", resource in Destination::\"db\");\n";
    let config = Config::new().destination("db", peer.address).permit("to-db", "db").file("policies.d/ask.cedar", ask);
    let host = Host::start(&config);
    // Short-lived processes: the daemon often reads of them when they are gone, and only has the path they were given.
    let link = host.probe().with_file_name("link-to-probe");
    std::os::unix::fs::symlink(host.probe(), &link).unwrap();
    for program in [&link, &host.probe()].into_iter().cycle().take(20) {
        let mut attempt = host.command(program);
        attempt.args(["tcp", &peer.address.to_string()]);
        assert!(attempt.output().expect("the probe runs").status.success());
    }
    let open = wait::until("twenty attempts are one escalation", || {
        let open = done(&host, &["escalation", "list"]);
        (open.pointer("/0/count").and_then(Value::as_u64) == Some(20)).then_some(open)
    });
    assert_eq!(open.as_array().map(Vec::len), Some(1), "{open}");
    let own = host.probe().canonicalize().unwrap();
    for record in host.judgements() {
        assert_eq!(record.text("/process/executable"), own.to_str().unwrap());
    }
    let opened = of_type(&host, "escalation");
    assert_eq!(opened.len(), 1);
    assert_eq!(
        (opened[0].text("/policies/0/owner"), opened[0].text("/policies/0/reason")),
        ("dba", "a person decides")
    );
}

#[test]
fn a_workload_cannot_speak_for_itself_and_what_it_tried_is_recorded() {
    let host = Host::start(&Config::new().file("signals.d/edr.toml", MALWARE));
    let service = host.service_user().clone();
    let stranger = user::ensure(user::STRANGER);
    let undeclared =
        ["signal", "send", "--account", config::ACCOUNT, "--kind", "made.up", "--risk", "1", "--ttl", "1m"];
    let grant =
        ["grant", "create", "--account", config::ACCOUNT, "--to", "127.0.0.1:80", "--ttl", "1m", "--reason", "x"];
    for (user, arguments) in [
        (&service, ["signal", "send", "--account", config::ACCOUNT, "--kind", "edr.malware"].as_slice()),
        (&service, &undeclared),
        (&stranger, &undeclared),
        (&service, &grant),
        (&stranger, &grant),
        (&service, &["account", "reinstate", config::ACCOUNT, "--reason", "x"]),
        (&stranger, &["break-glass", "--all", "--ttl", "1m", "--reason", "x"]),
        (&stranger, &["account", "offboard", config::ACCOUNT, "--reason", "x"]),
    ] {
        let (code, said) = code_as(&host, user, arguments);
        assert_eq!(code, Some(77), "{arguments:?}: {said}");
    }
    let refused: Vec<String> = of_type(&host, "lifecycle")
        .iter()
        .filter(|record| record.text("/event") == "refused")
        .map(|record| record.text("/operation").to_owned())
        .collect();
    assert_eq!(
        refused,
        [
            "signal",
            "signal",
            "signal",
            "grant create",
            "grant create",
            "account reinstate",
            "break-glass",
            "account offboard"
        ]
    );
    // Nothing about anybody else is told, and to a stranger nothing at all.
    let (code, said) = code_as(&host, &stranger, &["why"]);
    assert_eq!((code, said.trim()), (Some(0), "{\"accounts\":[]}"));
    assert_eq!(code_as(&host, &service, &["account", "list"]).0, Some(77));
}

#[test]
fn what_a_workload_starts_as_root_is_still_the_workload_and_approves_nothing() {
    use std::os::unix::fs::PermissionsExt as _;

    let host = Host::start(&Config::new());
    // As sudo: set-user-id root, and root in every uid before it starts anything.
    let sudo = host.probe().with_file_name("as-root");
    std::fs::copy(std::fs::canonicalize("/usr/bin/python3").unwrap(), &sudo).unwrap();
    std::fs::set_permissions(&sudo, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let become_root = "import os, subprocess, sys; os.setresgid(0, 0, 0); os.setresuid(0, 0, 0); \
                       sys.exit(subprocess.run(sys.argv[1:]).returncode)";
    let through_a_shell = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)";
    let account = config::ACCOUNT;
    let said_for = |arguments: &[&str], ancestor: bool| {
        let writ = host.writ(arguments);
        let mut command = if ancestor {
            let mut shell = host.command("/usr/bin/python3");
            shell.args(["-c", through_a_shell]).arg(&sudo);
            shell
        } else {
            host.command(&sudo)
        };
        command.args(["-c", become_root]).arg(writ.get_program()).args(writ.get_args());
        let output = command.output().expect("python3 is installed");
        (output.status.code(), [output.stdout, output.stderr].concat())
    };
    for arguments in [
        ["grant", "create", "--account", account, "--to", "127.0.0.1:80", "--ttl", "1m", "--reason", "x"].as_slice(),
        &["account", "offboard", account, "--reason", "x"],
        &["break-glass", "--all", "--ttl", "1m", "--reason", "x"],
        &["signal", "send", "--account", account, "--kind", "made.up", "--risk", "1", "--ttl", "1m"],
        &["reload"],
        &["uninstall"],
    ] {
        for ancestor in [false, true] {
            let (code, said) = said_for(arguments, ancestor);
            assert_eq!(code, Some(77), "{arguments:?}: {}", String::from_utf8_lossy(&said));
        }
    }
    // Of what it descends from it is told nothing: it is not the one that was refused.
    let (code, said) = said_for(&["why"], true);
    assert_eq!((code, String::from_utf8_lossy(&said).trim()), (Some(0), "{\"accounts\":[]}"));
    assert_eq!(done(&host, &["grant", "list"]), json!([]), "root that is nobody's child may still ask");
}

#[test]
fn a_daemon_that_is_stopped_is_said_to_be_silent_after_five_seconds() {
    let host = Host::start(&Config::new());
    host.signal_daemon(Signal::SIGSTOP);
    let began = std::time::Instant::now();
    let create =
        ["grant", "create", "--account", config::ACCOUNT, "--to", "127.0.0.1:80", "--ttl", "1m", "--reason", "x"];
    assert_eq!(host.writ_output(&create).status.code(), Some(69));
    assert!(began.elapsed().as_secs() >= 4, "it was given its time");
    host.signal_daemon(Signal::SIGCONT);
}

#[test]
fn lines_are_taken_in_one_by_one_and_the_bad_ones_are_named() {
    let host = Host::start(&Config::new().file("signals.d/edr.toml", MALWARE));
    let mut command = host.writ(&["signal", "ingest"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("cannot run `writ`");
    let lines = format!(
        "{{\"account\":\"{0}\",\"kind\":\"edr.malware\",\"id\":\"a\"}}\nnot json\n{{\"specversion\":\"1.0\",\"id\":\"b\",\
         \"source\":\"x\",\"type\":\"made.up\",\"subject\":\"{0}\",\"data\":{{\"risk\":7,\"ttl\":\"1m\"}}}}\n",
        config::ACCOUNT
    );
    use std::io::Write as _;
    child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 2"), "{output:?}");
    let listed = done(&host, &["signal", "list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}
