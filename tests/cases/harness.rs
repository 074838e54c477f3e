//! The harness itself: if a process were not where and who it should be, every other test would prove nothing.

use std::fs;

use writ_tests::{Config, Host, TcpPeer, UdpPeer, cgroup, host, user};

#[test]
fn the_binary_under_test_is_there() {
    assert!(host::writ_program().is_file(), "`{}` is missing", host::writ_program().display());
}

#[test]
fn a_command_runs_in_the_cgroup_as_the_user_with_no_other_group() {
    let host = Host::prepare(&Config::new());
    let stranger = user::ensure(user::STRANGER);
    for user in [host.service_user(), &stranger] {
        let mut command = host.command_as(user, "/bin/cat");
        let output = command.args(["/proc/self/cgroup", "/proc/self/status"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();

        let path = host.cgroup().path().strip_prefix(cgroup::mount()).unwrap();
        assert!(text.contains(&format!("0::/{}\n", path.display())), "{text}");
        let (uid, gid) = (user.uid, user.gid);
        assert!(text.contains(&format!("\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{text}");
        assert!(text.contains(&format!("\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n")), "{text}");
        assert!(text.contains("\nGroups:\t \n"), "{text}");
    }
}

#[test]
fn every_operation_of_the_probe_succeeds_without_policy() {
    let host = Host::prepare(&Config::new());
    let (tcp, udp) = (TcpPeer::new(), UdpPeer::new());
    for operation in ["tcp", "tfo", "mapped"] {
        host.attempt(operation, &[tcp.address]).assert_succeeded();
    }
    for operation in ["udp-connect", "udp-send", "mapped-udp"] {
        host.attempt(operation, &[udp.address]).assert_succeeded();
        udp.expect_datagram();
    }
    let attempt = host.attempt("sendmmsg", &[udp.address, udp.address]);
    assert_eq!((attempt.errno.as_deref(), attempt.sent), (None, Some(2)));
    udp.expect_datagram();
    udp.expect_datagram();
    assert!(!udp.receive());
}

#[test]
fn the_probe_names_the_error() {
    let host = Host::prepare(&Config::new());
    let peer = TcpPeer::new();
    let nobody = peer.address;
    drop(peer);
    host.attempt("tcp", &[nobody]).assert_failed("ECONNREFUSED");
}

#[test]
fn a_prober_counts_until_it_is_stopped() {
    let host = Host::prepare(&Config::new());
    let peer = TcpPeer::new();
    for prober in [host.prober("tcp", peer.address), host.flood("tcp", peer.address)] {
        prober.wait_for_more(100);
        let counts = prober.stop();
        assert!(counts.succeeded >= 100, "{counts:?}");
        assert_eq!(counts.attempts(), counts.succeeded, "{counts:?}");
    }
}

#[test]
fn a_dropped_host_leaves_nothing_behind() {
    let host = Host::prepare(&Config::new());
    let (group, directory) = (host.cgroup().path().to_path_buf(), host.config_directory());
    let mut left = host.command("/bin/sleep").arg("600").spawn().unwrap();
    assert!(fs::read_to_string(group.join("cgroup.procs")).unwrap().contains(&left.id().to_string()));
    // Nobody waits for the process yet, so the cgroup must not depend on that.
    drop(host);
    assert!(!group.exists());
    assert!(!directory.exists());
    left.wait().unwrap();
}
