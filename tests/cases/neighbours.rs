//! Noisy neighbours: what one account does without measure costs another neither records nor verdicts.

use nix::sys::signal::Signal;
use writ_tests::{Config, Host, UdpPeer, user};

/// Far more than the smallest ring holds.
const FLOOD: u64 = 1_000;
/// Fewer than the quiet account's share of the smallest ring.
const QUIET: u64 = 20;

/// Two accounts that may both reach `open`; the second is the quiet one.
fn two_accounts(open: &UdpPeer, on_record_loss: &str) -> Config {
    let account = format!(
        "[service-account.quiet]\nowner = \"tests@example.com\"\nmatch = {{ user = \"{}\" }}\non-record-loss = \
         \"{on_record_loss}\"\n",
        user::STRANGER
    );
    let policy = "@id(\"quiet-to-open\")\n@owner(\"tests\")\n@reason(\"the test needs it\")\npermit (principal == \
                  ServiceAccount::\"quiet\", action == Action::\"connect\", resource in Destination::\"open\");\n";
    let mut config = Config::new()
        .destination("open", open.address)
        .permit("to-open", "open")
        .file("service-accounts.d/quiet.toml", &account)
        .file("policies.d/quiet.cedar", policy);
    config.agent = "[kernel]\nring-size = \"64KiB\"".to_owned();
    config.account = format!("on-record-loss = \"{on_record_loss}\"");
    config
}

#[test]
fn a_flood_takes_no_place_in_the_ring_from_another_account() {
    let open = UdpPeer::new();
    let host = Host::start(&two_accounts(&open, "allow"));
    let (mut flood, mut quiet) = (host.batch(), host.batch_as(&user::ensure(user::STRANGER), host.probe()));

    host.signal_daemon(Signal::SIGSTOP);
    for _ in 0..FLOOD {
        assert_ne!(flood.attempt("udp-judge", open.address).errno.as_deref(), Some("EACCES"));
    }
    for _ in 0..QUIET {
        assert_ne!(quiet.attempt("udp-judge", open.address).errno.as_deref(), Some("EACCES"));
    }
    host.signal_daemon(Signal::SIGCONT);

    let counted = host.settled();
    assert_eq!(counted.seen, FLOOD + QUIET);
    let recorded = |account: &str| {
        let judged = host.judgements();
        judged.iter().filter(|record| record.text("/account") == account).count() as u64
    };
    assert_eq!(recorded("quiet"), QUIET, "every attempt of the quiet account has its record");
    assert_eq!(recorded("tested"), FLOOD - counted.lost);
    assert!(counted.lost > 0);
    let losses = host.records_of("loss");
    let of_flood: u64 = losses.iter().filter_map(|loss| loss.number("/accounts/tested")).sum();
    assert_eq!(of_flood, counted.lost, "whose they are is on record: {losses:#?}");
    assert!(losses.iter().all(|loss| loss.0.pointer("/accounts/quiet").is_none()));
    let budget =
        |loss: &writ_tests::Record| loss.text("/reason") == "budget" || loss.number("/reasons/budget").is_some();
    assert!(losses.iter().any(budget), "{losses:#?}");
    host.assert_verified(counted);
}

#[test]
fn where_no_record_means_no_access_only_the_flooder_is_refused() {
    let open = UdpPeer::new();
    let mut host = Host::start(&two_accounts(&open, "deny"));
    let (mut flood, mut quiet) = (host.batch(), host.batch_as(&user::ensure(user::STRANGER), host.probe()));

    // No daemon at all: the shares are the kernel's own affair.
    host.kill_daemon();
    let refused = (0..FLOOD).filter(|_| flood.attempt("udp-judge", open.address).errno.as_deref() == Some("EACCES"));
    assert!(refused.count() > 0);
    for _ in 0..QUIET {
        assert_ne!(quiet.attempt("udp-judge", open.address).errno.as_deref(), Some("EACCES"));
    }

    // Whoever comes after takes them up, and gives room back as it reads.
    host.run_daemon();
    let counted = host.settled();
    host.assert_verified(counted);
    for probe in [&mut flood, &mut quiet] {
        assert_ne!(probe.attempt("udp-judge", open.address).errno.as_deref(), Some("EACCES"));
    }
}

/// Opens as many connections as it is told, says how many were answered 429, and keeps them until its input ends.
const GREEDY: &str = "\
import select, socket, sys
path, wanted, refused = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
open_ones = []
for _ in range(wanted):
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    open_ones.append(one)
answered = []
while len(answered) < refused:
    answered = select.select(open_ones, [], [], 5)[0]
print(sum(b' 429 ' in one.recv(64) for one in answered), flush=True)
sys.stdin.read()
";

#[test]
fn a_user_with_too_many_connections_keeps_nobody_else_out() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    let host = Host::start(&Config::new());
    let mut greedy = host.command_as(&user::ensure(user::STRANGER), "python3");
    greedy.args(["-c", GREEDY, &host.socket().display().to_string(), "40", "8"]);
    let mut greedy = greedy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cannot run python3");
    let mut line = String::new();
    BufReader::new(greedy.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "8", "those beyond 32 were told so");

    assert!(host.writ_as(host.service_user(), &["why", "--json"]).status.success(), "another user is not concerned");
    assert!(host.writ_output(&["status", "--json"]).status.success(), "nor is root");
    drop(greedy.stdin.take());
    assert!(greedy.wait().unwrap().success());
}

#[test]
fn an_account_emptied_by_mistake_is_said_loudly() {
    let open = UdpPeer::new();
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);
    host.configure(&config.clone().file("service-accounts.d/tested.toml", "# nothing left\n"));

    let reloaded = host.writ_output(&["reload", "--json"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    let said = String::from_utf8_lossy(&reloaded.stderr).into_owned();
    assert!(said.contains("`tested` is no longer declared"), "{said}");
    let answer: serde_json::Value = serde_json::from_slice(&reloaded.stdout).unwrap();
    assert_eq!(answer.pointer("/undeclared/0").and_then(serde_json::Value::as_str), Some("tested"));
    assert_eq!(host.status().pointer("/undeclared/0").and_then(serde_json::Value::as_str), Some("tested"));
    let on_record = |record: &writ_tests::Record| record.text("/undeclared/0") == "tested";
    assert!(host.records().iter().any(on_record));

    host.configure(&config);
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(host.status().pointer("/undeclared").and_then(serde_json::Value::as_array).map(Vec::len), Some(0));
}
