//! What this kernel gives: told truthfully, and what is essential and missing refused by name.

use std::io::Write as _;

use serde_json::{Value, json};
use writ_tests::{Config, Host, UdpPeer};

/// Below this there are no fetching atomics.
const OLDEST: (u32, u32) = (5, 12);

fn release() -> (u32, u32) {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// One line that `cargo xtask vm` makes KERNELS.md of. Written past the test harness, which would keep it.
#[expect(clippy::explicit_write, reason = "what is printed plainly is captured by the test harness")]
fn report(what: &Value) {
    writeln!(std::io::stdout(), "\nwrit-kernel: {what}").unwrap();
}

#[test]
fn what_this_kernel_gives_is_told_and_what_is_essential_and_missing_is_refused() {
    let peer = UdpPeer::new();
    if release() < OLDEST {
        let host = Host::prepare(&Config::new());
        let output = host.writ_output(&["run"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("no fetching atomics in BPF (Linux 5.12)"), "{said}");
        assert!(!host.pins().exists(), "nothing was attached");
        report(&json!({ "refused": "no fetching atomics in BPF (Linux 5.12)" }));
        return;
    }
    let host = Host::start(&Config::new());
    let findings = host.writ_output(&["doctor", "--json"]);
    let findings: Value = serde_json::from_slice(&findings.stdout).unwrap();
    assert_eq!(findings["weaker_than_configured"], false, "{findings}");
    let status = host.status();
    for finding in findings["findings"].as_array().unwrap() {
        let (name, state) = (finding["name"].as_str().unwrap(), finding["state"].as_str().unwrap());
        assert!(["ok", "partial", "missing", "unknown"].contains(&state), "{finding}");
        if name == "lsm" {
            assert_eq!(state == "missing", status["missing"]["lsm"].is_string(), "{finding}");
        }
    }
    // The errno configured is the errno returned, or it is said that it cannot be.
    let errno = if status["missing"]["set-retval"].is_string() { "EPERM" } else { "EACCES" };
    host.attempt("udp-judge", &[peer.address]).assert_failed(errno);
    host.expect_judgements(&[format!("deny udp {} {errno}", peer.address)]);
    report(&json!({ "coverage": status["coverage"], "missing": status["missing"] }));
}
