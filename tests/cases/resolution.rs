//! What the configuration names is found on the host as it appears, and stays found while it is replaced.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::User;
use writ_tests::{Config, Host, UdpPeer, user, wait};

/// A user that is made in the middle of a test.
struct Late(String);

impl Late {
    fn make(&self) -> User {
        let made = Command::new("useradd").args(["--system", "--no-create-home", &self.0]).output();
        assert!(made.as_ref().is_ok_and(|made| made.status.success()), "{made:?}");
        User::from_name(&self.0).expect("the user database is readable").expect("the user was made")
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let _ = Command::new("userdel").arg(&self.0).output();
    }
}

fn account(matched: &str) -> String {
    format!("[service-account.late]\nowner = \"o\"\nmatch = {{ {matched} }}\n")
}

fn unmatched(host: &Host) -> String {
    let status = host.status();
    let accounts = status["accounts"].as_array().expect("accounts are a list").clone();
    let late = accounts.iter().find(|account| account["name"] == "late").expect("the account is declared");
    late["unmatched"].to_string()
}

/// Waits until a look at the host is on record.
fn resolved(host: &Host, part: &str, what: &str) {
    wait::until("what changed on the host is found", || {
        host.records_of("lifecycle")
            .iter()
            .any(|record| record.text("/event") == "resolved" && record.0[part].to_string().contains(what))
            .then_some(())
    });
}

#[test]
fn a_user_that_does_not_exist_yet_is_resolved_when_it_appears() {
    let peer = UdpPeer::new();
    let late = Late(format!("writ-late-{}", std::process::id()));
    let text = account(&format!("user = \"{}\"", late.0));
    let host = Host::start(&Config::new().file("service-accounts.d/late.toml", &text));
    assert!(unmatched(&host).contains(&late.0), "{}", unmatched(&host));

    let user = late.make();
    resolved(&host, "found", &late.0);
    assert_eq!(unmatched(&host), "[]");
    host.attempt_as(&user, "udp-judge", &[peer.address]).assert_failed("EACCES");
}

#[test]
fn an_executable_that_is_replaced_is_judged_before_and_after_and_by_the_process_that_still_runs_it() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy(host.probe(), &agent).unwrap();
    let text = account(&format!("executable = \"{}\"", agent.display()));
    host.configure(&Config::new().file("service-accounts.d/late.toml", &text));
    host.run_daemon();
    let stranger = user::ensure(user::STRANGER);
    let mut running = host.batch_as(&stranger, &agent);
    running.attempt("udp-judge", peer.address).assert_failed("EACCES");

    replace(&host, &agent);
    resolved(&host, "replaced", "agent");
    running.attempt("udp-judge", peer.address).assert_failed("EACCES");
    let mut anew = host.batch_as(&stranger, &agent);
    anew.attempt("udp-judge", peer.address).assert_failed("EACCES");
    // Also for a daemon that was not there when it happened.
    host.kill_daemon();
    host.run_daemon();
    running.attempt("udp-judge", peer.address).assert_failed("EACCES");
    anew.attempt("udp-judge", peer.address).assert_failed("EACCES");
}

/// As a package manager does it: a new file is moved over the old one.
fn replace(host: &Host, agent: &Path) {
    let new = agent.with_extension("new");
    fs::copy(host.probe(), &new).unwrap();
    fs::rename(&new, agent).unwrap();
}
