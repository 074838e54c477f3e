//! Sockets that cgroup hooks cannot see: refused by the BPF LSM unless policy permits, where the kernel has it; elsewhere a
//! stated residual.

use std::fs;

use writ_tests::{Attempt, Config, Host, UdpPeer, user, wait};

const VSOCK: [i32; 3] = [libc::AF_VSOCK, libc::SOCK_STREAM, 0];
const ALG: [i32; 3] = [libc::AF_ALG, libc::SOCK_SEQPACKET, 0];
const UNIX: [i32; 3] = [libc::AF_UNIX, libc::SOCK_STREAM, 0];

fn opening(id: &str, effect: &str, family: &str) -> String {
    format!(
        "@id(\"{id}\") @owner(\"o\") @reason(\"r\") {effect} (principal == ServiceAccount::\"tested\", action == \
         Action::\"open-socket\", resource) when {{ context.family == \"{family}\" }};\n"
    )
}

/// Has the account under test open a socket: address family, type and protocol as numbers.
#[track_caller]
fn open(host: &Host, socket: [i32; 3]) -> Attempt {
    let output = host.command(host.probe()).arg("open").args(socket.map(|number| number.to_string())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Attempt::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Whether this kernel calls BPF LSM programs: then what writ does with them is asked for.
fn kernel_has_lsm() -> bool {
    let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    active.trim().split(',').any(|module| module == "bpf")
}

/// Whether the second line is there. That it is not, on a kernel that has what it needs, is a failure.
#[track_caller]
fn second_line(host: &Host) -> bool {
    let status = host.status();
    let covered = status["coverage"].as_array().unwrap().iter().any(|name| name == "lsm");
    let why = status["missing"]["lsm"].as_str().unwrap_or_default();
    assert_eq!(covered, kernel_has_lsm(), "{why}");
    assert_eq!(covered, why.is_empty(), "what is missing has a reason");
    covered
}

/// No errno of a refusal: the kernel may not have such sockets at all.
#[track_caller]
fn assert_not_refused(attempt: &Attempt) {
    assert!(!matches!(attempt.errno.as_deref(), Some("EACCES" | "EPERM")), "{attempt:?}");
}

#[test]
fn families_that_cgroup_hooks_cannot_see_are_refused_unless_policy_permits() {
    let host = Host::start(&Config::new().file("policies.d/alg.cedar", &opening("alg", "permit", "alg")));

    if second_line(&host) {
        open(&host, VSOCK).assert_failed("EACCES");
        assert_not_refused(&open(&host, ALG));
        open(&host, UNIX).assert_succeeded();
        let records = host.expect_judgements(&["deny open-socket vsock EACCES", "allow open-socket alg by alg"]);
        assert!(records.iter().all(|record| record.text("/kernel/hook") == "lsm/socket_create"), "{records:?}");
        host.settled();
    } else {
        // The residual, as SECURITY.md states it.
        assert_not_refused(&open(&host, VSOCK));
    }
    // IP sockets that are neither TCP nor UDP are refused everywhere, where the kernel still has the protocol.
    let before = host.settled().recorded;
    let udplite = open(&host, [libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE]);
    if udplite.errno.as_deref() != Some("EPROTONOSUPPORT") {
        udplite.assert_failed("EACCES");
        assert_eq!(host.settled().recorded, before + 1, "one attempt, one record");
    }
}

#[test]
fn local_sockets_are_judged_only_where_policy_names_them() {
    let host = Host::start(&Config::new().file("policies.d/local.cedar", &opening("local", "forbid", "unix")));

    if second_line(&host) {
        open(&host, UNIX).assert_failed("EACCES");
        open(&host, [libc::AF_NETLINK, libc::SOCK_RAW, 0]).assert_succeeded();
        host.expect_judgements(&["deny open-socket unix EACCES by local"]);
    }
}

#[test]
fn a_raw_socket_that_was_handed_over_is_judged_when_it_is_used() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    let handed = |operation: &str| {
        let root = user::numbered(0);
        let uid = host.service_user().uid.to_string();
        let mut command = host.command_as(&root, host.probe());
        let output = command.args(["handed", "0", &uid, operation, &peer.address.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let answer = handed("raw");
    if second_line(&host) {
        assert!(answer.contains("EACCES"), "{answer}");
        let records = host.expect_judgements(&["deny open-socket raw EACCES"]);
        assert_eq!(records[0].text("/kernel/hook"), "lsm/socket_sendmsg");
    } else {
        assert!(!answer.contains("EACCES"), "a residual without the LSM: {answer}");
    }
}

#[test]
fn a_socket_from_outside_the_judged_cgroup_is_judged_where_it_is_used() {
    let peer = UdpPeer::new();
    let mut config = Config::new();
    config.confined = true;
    let host = Host::start(&config);
    let uid = host.service_user().uid.to_string();
    let handed = |operation: &str| {
        let mut command = host.command_as(&user::numbered(0), host.probe());
        let from = format!("0@{}", writ_tests::cgroup::mount().display());
        let output = command.args(["handed", &from, &uid, operation, &peer.address.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let answers = [handed("udp-judge"), handed("udp-send")];
    if second_line(&host) {
        assert!(answers.iter().all(|answer| answer.contains("EACCES")), "{answers:?}");
        let denied = format!("deny udp {} EACCES", peer.address);
        let records = host.expect_judgements(&[&denied, &denied]);
        assert_eq!(records[0].text("/kernel/hook"), "lsm/socket_connect");
        assert_eq!(records[1].text("/kernel/hook"), "lsm/socket_sendmsg");
    }
}

#[test]
fn what_is_required_and_missing_refuses_to_run() {
    let mut host = Host::start(&Config::new());
    let covered = second_line(&host);
    host.stop_daemon();
    host.writ_output(&["uninstall"]);
    let mut config = Config::new();
    config.agent = "kernel = { require = [\"lsm\"] }".into();
    host.configure(&config);

    if covered {
        host.run_daemon();
        assert_eq!(host.writ_output(&["doctor"]).status.code(), Some(0));
        return;
    }
    let output = host.writ_output(&["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`[kernel] require` asks for `lsm`, which this kernel does not give"), "{said}");
    assert!(!host.pins().exists(), "nothing stays attached");
}

#[test]
fn the_second_line_outlives_the_daemon_and_goes_with_uninstall() {
    let mut host = Host::start(&Config::new());
    if !second_line(&host) {
        return;
    }
    host.kill_daemon();
    open(&host, VSOCK).assert_failed("EACCES");
    // Adopted: the new programs are pinned before the old ones go.
    host.run_daemon();
    assert!(second_line(&host));
    open(&host, VSOCK).assert_failed("EACCES");
    host.expect_judgements(&["deny open-socket vsock EACCES"; 2]);
    host.stop_daemon();
    assert!(host.writ_output(&["uninstall"]).status.success());
    // The last pin of a program's link is gone; the kernel takes the link itself away a moment later.
    wait::until("the second line is gone", || (open(&host, VSOCK).errno.as_deref() != Some("EACCES")).then_some(()));
}
