//! Enforcement that somebody takes away under the daemon: found within seconds, recorded, attached again, and shown.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use writ_tests::{Config, Host, KeepingPeer, TcpPeer, UdpPeer, wait};

/// As `bpftool link detach pinned PATH` does.
const DETACH: &str = "import ctypes,struct,sys\n\
    bpf=lambda command,attribute:ctypes.CDLL(None).syscall(321,command,attribute,len(attribute))\n\
    path=ctypes.create_string_buffer(sys.argv[1].encode())\n\
    link=bpf(7,struct.pack('<QII',ctypes.addressof(path),0,0))\n\
    assert link>=0 and bpf(34,struct.pack('<I',link))==0\n";

#[track_caller]
fn detached(host: &Host) -> Value {
    let record = wait::until("it is recorded", || {
        let found = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "detached");
        // What is recorded has been attached again.
        found.filter(|_| host.status().pointer("/detachment/times").is_some())
    });
    assert_eq!(record.0.get("failed"), None, "{record:?}");
    record.0.get("programs").cloned().unwrap_or_default()
}

#[test]
fn a_link_whose_pin_is_removed_is_attached_again_and_what_was_connected_meanwhile_is_found() {
    let (wanted, other) = (TcpPeer::new(), KeepingPeer::new());
    let mut config = Config::new().destination("wanted", wanted.address).permit("to-wanted", "wanted");
    config.agent = "[sessions]\nat-start = \"cut\"\n".to_owned();
    let host = Host::start(&config);
    let links = fs::read_dir(host.pins()).expect("the pins can be read").flatten().next().expect("one ABI");
    host.signal_daemon(nix::sys::signal::Signal::SIGSTOP);
    fs::remove_file(links.path().join("links/connect4")).expect("the pin can be removed");
    // Nobody refuses it any more, once the link is gone.
    wait::until("the link is gone", || host.attempt("tcp", &[other.address]).errno.is_none().then_some(()));
    let mut held = host.hold(1, "tcp", other.address);
    host.signal_daemon(nix::sys::signal::Signal::SIGCONT);

    assert_eq!(detached(&host), json!(["connect4"]));

    wait::until("what was connected meanwhile is cut", || (host.records_of("cut").len() == 1).then_some(()));
    assert_eq!(held.send().succeeded, 0);
    host.attempt("tcp", &[other.address]).assert_failed("EACCES");
    host.attempt("tcp", &[wanted.address]).assert_succeeded();
    assert_eq!(host.status().get("degraded"), Some(&json!([])));
}

#[test]
fn a_link_that_is_detached_under_its_pin_is_attached_again() {
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let host = Host::start(&Config::new());
    let links = fs::read_dir(host.pins()).expect("the pins can be read").flatten().next().expect("one ABI");
    let detach = Command::new("python3").args(["-c", DETACH]).arg(links.path().join("links/connect4")).status();
    assert!(detach.expect("python3 can be run").success());

    assert_eq!(detached(&host), json!(["connect4"]));

    host.attempt("tcp", &[elsewhere]).assert_failed("EACCES");
}

#[test]
fn a_link_that_was_detached_while_no_daemon_ran_is_attached_at_the_next_start() {
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut host = Host::start(&Config::new());
    let links = fs::read_dir(host.pins()).expect("the pins can be read").flatten().next().expect("one ABI");
    host.kill_daemon();
    let detach = Command::new("python3").args(["-c", DETACH]).arg(links.path().join("links/connect4")).status();
    assert!(detach.expect("python3 can be run").success());
    assert_ne!(host.attempt("tcp", &[elsewhere]).errno.as_deref(), Some("EACCES"), "nothing judges");

    host.run_daemon();

    host.attempt("tcp", &[elsewhere]).assert_failed("EACCES");
}

#[test]
fn pins_that_were_taken_away_whole_are_not_called_enforcement() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let pins = host.pins().join(format!("v{}", writ_abi::ABI_VERSION));
    for part in ["links", "maps"] {
        fs::remove_dir_all(pins.join(part)).unwrap();
    }

    let status = wait::until("it is noticed", || {
        let status = host.status();
        status["degraded"].to_string().contains("detached").then_some(status)
    });
    assert_eq!((&status["mode"], &status["effective_mode"]), (&json!("enforce"), &json!("observe")));
    assert_eq!(status["not_enforced"], json!([writ_tests::config::ACCOUNT]));
    let reload = host.writ_output(&["reload"]);
    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    assert!(String::from_utf8_lossy(&reload.stderr).contains("programs are not attached"), "{reload:?}");
}

#[test]
fn a_daemon_tests_by_itself_that_its_hooks_fire() {
    let host = Host::prepare(&Config::new());
    let mut daemon = host.writ(&["run"]).env("WRIT_SELF_TEST_EVERY", "1").stderr(Stdio::null()).spawn().unwrap();
    let records = wait::within(wait::PATIENCE, || {
        let begun = host.log_directory().join("records").is_dir();
        let tested = if begun { host.records_of("lifecycle") } else { Vec::new() };
        let tested: Vec<_> = tested.into_iter().filter(|record| record.text("/event") == "self-test").collect();
        (tested.len() > 1).then_some(tested)
    });
    // Ended first: a claim that fails leaves nothing running.
    daemon.kill().and_then(|()| daemon.wait()).unwrap();
    let records = records.expect("it is tested again and again");
    assert!(records.iter().all(|record| record.0["passed"] == json!(true)), "{records:?}");
}
