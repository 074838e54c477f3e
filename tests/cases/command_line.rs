//! The command line: what a mistake is answered with, by exit code and words, and that a hung daemon is not an absent one.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;
use writ_tests::{Config, Host, config, wait};

fn ends(host: &Host, arguments: &[&str]) -> (Option<i32>, String) {
    let output = host.writ_output(arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mistake_ends_with_the_code_that_says_whose_it_is() {
    let host = Host::start(&Config::new());
    let account = config::ACCOUNT;
    let cases: [(&[&str], i32, &str); 15] = [
        (&["bogus"], 64, "unrecognized subcommand"),
        (&["tail", "--since", "yesterday-ish"], 64, "neither a time"),
        (&["tail", "--type", "bogus"], 64, "possible values"),
        (&["simulate", "--account", account, "--to", "no port"], 64, "HOST:PORT"),
        (&["signal", "send", "--account", account, "--kind", "made.up"], 64, "--risk N --ttl D"),
        (&["signal", "send", "--account", "nobody-here", "--kind", "made.up"], 1, "no service account"),
        (&["explain", "01M8A8KQJNV9Z0008000000009"], 1, "no record"),
        (&["prove", "nonsense"], 1, "no record"),
        (&["signal", "clear", "S-0"], 64, "--reason"),
        (&["account", "offboard", config::ACCOUNT, "--reason", " "], 64, "it is blank"),
        (&["simulate", "--account", account, "--to", "127.0.0.1:80", "--protocol", "icmp"], 64, "possible values"),
        (&["simulate", "--account", "nobody-here", "--to", "127.0.0.1:80"], 1, "no service account"),
        (&["verify", "--key", "no-key"], 64, "is no key"),
        (&["verify", "/nonexistent"], 64, "there is no log here"),
        (&["replay", "/nonexistent"], 64, "there is no log here"),
    ];
    for (arguments, code, words) in cases {
        let (ended, said) = ends(&host, arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn a_hung_daemon_is_reported_as_silent_and_an_absent_one_as_not_running() {
    let mut host = Host::start(&Config::new());
    host.signal_daemon(Signal::SIGSTOP);
    for arguments in [&["status"], &["reload"]] {
        let (ended, said) = ends(&host, arguments);
        assert_eq!(ended, Some(69), "{arguments:?}: {said}");
        assert!(said.contains("silent"), "{said}");
    }
    host.signal_daemon(Signal::SIGCONT);
    assert_eq!(ends(&host, &["status"]).0, Some(0));
    host.kill_daemon();
    assert_eq!(ends(&host, &["status"]).0, Some(3));
    assert_eq!(ends(&host, &["reload"]).0, Some(69));
}

#[test]
fn a_daemon_that_holds_its_log_and_does_not_listen_yet_is_starting() {
    let mut host = Host::start(&Config::new());
    host.kill_daemon();
    assert_eq!(ends(&host, &["status"]).0, Some(3));
    let mut holder = Command::new("flock");
    holder.arg("--verbose").arg(host.log_directory().join("lock")).args(["sleep", "60"]);
    let mut holder = holder.stdout(Stdio::null()).process_group(0).spawn().expect("flock is part of Debian");
    wait::until("a log that is being written is that of a daemon on its way", || {
        (ends(&host, &["status"]).0 == Some(4)).then_some(())
    });
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(holder.id().cast_signed()), Signal::SIGKILL).unwrap();
    holder.wait().unwrap();
    // `sleep` has the lock too, until it has died of it.
    wait::until("nobody writes the log", || (ends(&host, &["status"]).0 == Some(3)).then_some(()));
}

#[test]
fn a_user_who_may_not_read_the_log_is_told_so() {
    let host = Host::start(&Config::new());
    for command in ["tail", "verify", "replay", "report"] {
        let output = host.writ_as(host.service_user(), &[command]);
        assert_eq!(output.status.code(), Some(77), "{command}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.matches("Permission denied").count(), 1, "{command} says it once: {said}");
    }
}

#[test]
fn a_simulation_without_a_daemon_ends_with_the_same_codes() {
    let host = Host::prepare(&Config::new());
    let to = ["--to", "127.0.0.1:80"];
    for (account, code) in [(config::ACCOUNT, 2), ("nobody-here", 1)] {
        let (ended, said) = ends(&host, &[&["simulate", "--account", account], to.as_slice()].concat());
        assert_eq!(ended, Some(code), "{said}");
    }
    host.configure(&Config::new().file("policies.d/bad.cedar", "not a policy"));
    let (ended, said) = ends(&host, &[&["simulate", "--account", config::ACCOUNT], to.as_slice()].concat());
    assert_eq!(ended, Some(1), "{said}");
    assert!(said.contains("writ check"), "{said}");
}

#[test]
fn every_error_of_the_api_has_a_code_a_message_and_a_hint() {
    let host = Host::start(&Config::new());
    let grant = json!({ "account": config::ACCOUNT, "to": "127.0.0.1:80", "ttl": "100d", "reason": "x" });
    for (method, path, body, status) in [
        ("GET", "/v1/nothing", json!(null), 404),
        ("GET", "/v1/accounts/nobody-here", json!(null), 404),
        ("DELETE", "/v1/grants", json!(null), 405),
        ("POST", "/v1/grants", json!({}), 400),
        ("POST", "/v1/grants", grant, 422),
        // A name left out is not taken for everybody.
        ("POST", "/v1/break-glass", json!({ "ttl": "1m", "reason": "x" }), 400),
        (
            "POST",
            "/v1/break-glass",
            json!({ "account": config::ACCOUNT, "all": true, "ttl": "1m", "reason": "x" }),
            400,
        ),
    ] {
        let answer = host.request(method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        for member in ["code", "message", "hint"] {
            let text = answer.body["error"][member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{method} {path} has no `{member}`: {}", answer.body);
        }
    }
    assert_eq!(host.status()["not_enforced"], json!([]), "nobody is only observed");
}

#[test]
fn a_terminal_that_does_not_say_how_wide_it_is_gets_a_table_all_the_same() {
    let host = Host::start(&Config::new());
    let command = host.writ(&["account", "list"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let listed = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let output = Command::new("script").args(["-qec", &listed, "/dev/null"]).stdin(Stdio::null()).output();
    let output = output.expect("script is part of Debian");
    let said = String::from_utf8_lossy(&output.stdout);
    let row = said.lines().find(|line| line.contains(config::ACCOUNT)).unwrap_or_else(|| panic!("no row: {said}"));
    assert!(row.contains("enforce"), "one account is one line: {said}");
    assert!(said.contains('\u{1b}'), "a terminal gets colour: {said:?}");
}
