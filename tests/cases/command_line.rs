//! The command line: what a mistake is answered with, by exit code and words, and that a hung daemon is not an absent one.

use nix::sys::signal::Signal;
use writ_tests::{Config, Host, config};

fn ends(host: &Host, arguments: &[&str]) -> (Option<i32>, String) {
    let output = host.writ_output(arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mistake_ends_with_the_code_that_says_whose_it_is() {
    let host = Host::start(&Config::new());
    let account = config::ACCOUNT;
    let cases: [(&[&str], i32, &str); 9] = [
        (&["bogus"], 64, "unrecognized subcommand"),
        (&["tail", "--since", "yesterday-ish"], 64, "neither a time"),
        (&["tail", "--type", "bogus"], 64, "possible values"),
        (&["simulate", "--account", account, "--to", "no port"], 64, "HOST:PORT"),
        (&["signal", "send", "--account", account, "--kind", "made.up"], 64, "--risk N --ttl D"),
        (&["signal", "send", "--account", "nobody-here", "--kind", "made.up"], 1, "no service account"),
        (&["explain", "01M8A8KQJNV9Z0008000000009"], 1, "no record"),
        (&["prove", "nonsense"], 1, "no record"),
        (&["signal", "clear", "S-0"], 64, "--reason"),
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
fn a_user_who_may_not_read_the_log_is_told_so() {
    let host = Host::start(&Config::new());
    let output = host.writ_as(host.service_user(), &["tail"]);
    assert_eq!(output.status.code(), Some(77), "{output:?}");
}
