//! Ways around, each by itself: rings older than a uid, namespaces, images without a name, interpreters, addresses that
//! mean another. What the catalogue tries in one run is held here to who is named and by which view, with the record.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use nix::unistd::User;
use writ_techniques::{Answer, Image, Order, Scene};
use writ_tests::host::writ_program;
use writ_tests::{Config, Host, Record, TcpPeer, UdpPeer, config, user};

fn scene(host: &Host, to: SocketAddr) -> Scene {
    Scene {
        uid: host.service_user().uid.as_raw(),
        stranger: user::ensure(user::STRANGER).uid.as_raw(),
        forbidden: Ipv4Addr::LOCALHOST,
        forbidden_v6: Ipv6Addr::LOCALHOST,
        port: to.port(),
        permitted: SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port()),
        marker: format!("paths-{}", std::process::id()),
        directory: host.directory().to_owned(),
        tool: writ_program(),
        inside: host.cgroup().path().to_owned(),
        elsewhere: host.cgroup().path().to_owned(),
        others: Default::default(),
    }
}

#[track_caller]
fn tell(command: &mut Command, order: &Order) -> Answer {
    let output = command.args(["attempt", &order.to_json()]).output().unwrap();
    let answer = Answer::from_json(&String::from_utf8_lossy(&output.stdout));
    let answer = answer.unwrap_or_else(|why| panic!("{why}: {output:?}"));
    assert_eq!(answer.broken, None, "it could not be tried");
    answer
}

/// Tries a technique that starts as root and becomes this uid.
#[track_caller]
fn as_root(host: &Host, technique: &str, scene: &Scene) -> Answer {
    let mut command = host.command_as(&user::numbered(0), writ_program());
    tell(&mut command, &Order::new(technique, scene))
}

fn identified_by(record: &Record) -> Vec<&str> {
    record.0["identified_by"].as_array().unwrap().iter().filter_map(|view| view.as_str()).collect()
}

/// Each of these is refused to the account, recorded as its own by this view, and let through for a user of none.
#[track_caller]
fn each_is_refused(techniques: &[&str], view: &str) -> Vec<Record> {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    let scene = scene(&host, peer.address);
    let stranger = Scene { uid: scene.stranger, ..scene.clone() };
    for technique in techniques {
        let answer = as_root(&host, technique, &stranger);
        assert!(answer.went_through(), "{technique} says nothing unless it works: {answer:?}");
        let answer = as_root(&host, technique, &scene);
        assert_eq!(answer.errno.as_deref(), Some("EACCES"), "{technique}: {answer:?}");
    }
    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&vec![denied; techniques.len()]);
    for (record, technique) in records.iter().zip(techniques) {
        assert_eq!(record.text("/account"), config::ACCOUNT, "{technique}");
        assert!(identified_by(record).contains(&view), "{technique}: {record:?}");
    }
    host.settled();
    records
}

#[test]
fn a_ring_from_before_the_uid_changed_is_the_process_s_all_the_same() {
    // A polling thread keeps root's identity; whose thread it is does not change.
    let mut records = each_is_refused(&["uring-before-setuid"], "leader");
    // A registered personality is what a request acts as, and not what the process is.
    records.extend(each_is_refused(&["uring-personality"], "real-cred"));
    assert!(
        records.iter().all(|record| record.number("/process/uid") == Some(0)),
        "root's identity was used: {records:?}"
    );
}

#[test]
fn namespaces_of_one_s_own_shed_no_uid() {
    let records = each_is_refused(&["user-namespace", "pid-mount-namespaces"], "user-namespace");
    // In its own namespace the second is process 1 or 2; on record is who it is here.
    assert!(records.iter().all(|record| record.number("/process/pid").is_some_and(|pid| pid > 2)), "{records:?}");
}

#[test]
fn a_network_namespace_of_one_s_own_is_judged_and_told_apart() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    let scene = scene(&host, peer.address);
    assert_eq!(as_root(&host, "network-namespace", &scene).errno.as_deref(), Some("EACCES"));
    host.attempt("udp-judge", &[peer.address]).assert_failed("EACCES");
    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&[&denied, &denied]);
    assert!(identified_by(&records[0]).contains(&"user-namespace"), "{records:?}");
    let namespace = |record: &Record| record.number("/kernel/netns_cookie");
    assert!(namespace(&records[0]).is_some() && namespace(&records[0]) != namespace(&records[1]), "{records:?}");
}

/// A host with an account that is matched by this program, put where every user can run it.
fn host_with_program(program: &Path) -> (Host, std::path::PathBuf, User) {
    let mut host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy(program, &agent).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let account =
        format!("[service-account.agent]\nowner = \"o\"\nmatch = {{ executable = \"{}\" }}\n", agent.display());
    host.configure(&Config::new().file("service-accounts.d/agent.toml", &account));
    host.run_daemon();
    (host, agent, user::ensure(user::STRANGER))
}

#[test]
fn a_program_that_became_an_image_in_memory_is_what_it_was() {
    let peer = UdpPeer::new();
    let (host, agent, stranger) = host_with_program(&writ_program());
    let order = Order { as_is: true, image: Image::Memory, ..Order::new("udp-sendto", &scene(&host, peer.address)) };

    let answer = tell(&mut host.command_as(&stranger, &agent), &order);
    assert_eq!(answer.errno.as_deref(), Some("EACCES"), "{answer:?}");
    let records = host.expect_judgements(&[format!("deny udp {} EACCES", peer.address)]);
    assert_eq!((records[0].text("/account"), identified_by(&records[0])), ("agent", vec!["lineage"]));
    assert!(records[0].text("/process/device").starts_with("0:"), "it runs from memory: {records:?}");
    // The same image made by the same bytes in another file is nobody's.
    let other = tell(&mut host.command_as(&stranger, writ_program()), &order);
    assert!(other.went_through(), "{other:?}");
}

#[test]
fn a_script_is_whoever_its_interpreter_is() {
    let peer = UdpPeer::new();
    let (host, agent, stranger) = host_with_program(Path::new("/bin/sh"));
    let script = |name: &str, interpreter: &Path, line: &str| {
        let path = host.directory().join(name);
        fs::write(
            &path,
            format!("#!{}\n{line} {} udp-judge {}\n", interpreter.display(), host.probe().display(), peer.address),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let output = host.command_as(&stranger, &path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    // What the script starts, and what it becomes.
    for (name, line) in [("starts", "true;"), ("becomes", "exec")] {
        assert!(script(name, &agent, line).contains("EACCES"), "{name}");
        assert!(script(&format!("other-{name}"), Path::new("/bin/sh"), line).contains("null"), "{name}");
    }
    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&[&denied, &denied]);
    assert!(records.iter().all(|record| record.text("/account") == "agent"), "{records:?}");
    assert!(records.iter().all(|record| identified_by(record) == ["lineage"]), "{records:?}");
}

#[test]
fn an_account_that_is_matched_by_a_script_is_shown_as_matched_by_nothing() {
    let host = Host::prepare(&Config::new());
    let script = host.directory().join("script");
    fs::write(&script, "#!/bin/sh\ntrue\n").unwrap();
    let (mut host, account) = (
        host,
        format!("[service-account.agent]\nowner = \"o\"\nmatch = {{ executable = \"{}\" }}\n", script.display()),
    );
    host.configure(&Config::new().file("service-accounts.d/agent.toml", &account));
    let said = host.writ_output(&["check"]);
    assert!(String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).contains("script-executable"));
    host.run_daemon();
    let status = host.status();
    let agent = status["accounts"].as_array().unwrap().iter().find(|account| account["name"] == "agent").unwrap();
    assert_eq!(agent["unmatched"].as_array().map(Vec::len), Some(1), "{agent}");
}

#[test]
fn a_program_in_a_mount_namespace_of_its_own_is_the_same_file_by_any_name() {
    let peer = UdpPeer::new();
    let (host, agent, _) = host_with_program(&writ_tests::probe::program());
    let elsewhere = host.directory().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    let mut command = host.command_as(&user::numbered(0), "/usr/bin/unshare");
    let script =
        format!("mount --bind {} {1} && exec {1} udp-judge {2}", agent.display(), elsewhere.display(), peer.address);
    let output = command.args(["--mount", "/bin/sh", "-c", &script]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("EACCES"), "{output:?}");
    let records = host.expect_judgements(&[format!("deny udp {} EACCES", peer.address)]);
    assert!(identified_by(&records[0]).contains(&"executable"), "{records:?}");
}

#[test]
fn an_unspecified_address_is_this_host() {
    let peer = TcpPeer::new();
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, peer.address.port())).unwrap();
    let here_v6 = v6.local_addr().unwrap();
    let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, peer.address.port()).into();
    let any_v6: SocketAddr = (Ipv6Addr::UNSPECIFIED, peer.address.port()).into();

    // Where nothing is permitted, and where exactly what it means is.
    let host = Host::start(&Config::new());
    host.attempt("tcp", &[any]).assert_failed("EACCES");
    host.attempt("tcp", &[any_v6]).assert_failed("EACCES");
    host.attempt("udp-send", &[any]).assert_failed("EACCES");
    let records = host.expect_judgements(&[
        format!("deny tcp {} EACCES", peer.address),
        format!("deny tcp ::1:{} EACCES", any.port()),
        format!("deny udp {} EACCES", peer.address),
    ]);
    let given: Vec<&str> = records.iter().map(|record| record.text("/given_address")).collect();
    assert_eq!(given, ["0.0.0.0", "::", "0.0.0.0"]);
    drop(host);

    let config = Config::new().destination("here", peer.address).destination("here6", here_v6);
    let host = Host::start(&config.permit("to-here", "here").permit("to-here6", "here6"));
    host.attempt("tcp", &[any]).assert_succeeded();
    host.attempt("tcp", &[any_v6]).assert_succeeded();
    host.expect_judgements(&[
        format!("allow tcp {} by to-here", peer.address),
        format!("allow tcp ::1:{} by to-here6", any.port()),
    ]);
}

#[test]
fn below_a_nat64_prefix_lies_ipv4() {
    let web: SocketAddr = "198.51.100.7:443".parse().unwrap();
    let through = |prefix: &str, address: &str| -> SocketAddr { format!("[{prefix}{address}]:443").parse().unwrap() };
    let mut config = Config::new().destination("web", web).permit("to-web", "web");
    config.agent = "nat64 = [\"64:ff9b::/96\", \"2001:db8:64::/96\"]".into();
    let host = Host::start(&config);
    let mut batch = host.batch();

    // No packet leads anywhere from there: what is let through fails in another way, after the decision.
    for prefix in ["64:ff9b::", "2001:db8:64::"] {
        let allowed = batch.attempt("udp-judge", through(prefix, "198.51.100.7"));
        assert_ne!(allowed.errno.as_deref(), Some("EACCES"), "{prefix}");
        batch.attempt("udp-judge", through(prefix, "198.51.100.8")).assert_failed("EACCES");
    }
    // A prefix that is not configured is an address like any other.
    let other = through("64:ff9c::", "198.51.100.7");
    batch.attempt("udp-judge", other).assert_failed("EACCES");

    let (allowed, denied) = (format!("allow udp {web} by to-web"), "deny udp 198.51.100.8:443 EACCES".to_owned());
    let last = format!("deny udp {}:443 EACCES", other.ip());
    let records = host.expect_judgements(&[&allowed, &denied, &allowed, &denied, &last]);
    let given: Vec<&str> = records.iter().map(|record| record.text("/given_address")).collect();
    let expected =
        [through("64:ff9b::", "198.51.100.7"), through("64:ff9b::", "198.51.100.8")].map(|at| at.ip().to_string());
    assert_eq!(given.get(..2), Some([expected[0].as_str(), expected[1].as_str()].as_slice()));
    assert_eq!(given[4], "", "it was judged as it was given");
}
