//! Who is connecting: whichever view of a process leads to an account, that account's policy holds.

use std::fs;
use std::net::SocketAddr;

use nix::unistd::{Gid, Uid, User};
use writ_tests::{Config, Host, UdpPeer, cgroup, config, user, wait};

/// A uid of an account that `Config` does not declare by itself.
const OTHER: u32 = 61_003;

fn root() -> User {
    User { uid: Uid::from_raw(0), gid: Gid::from_raw(0), ..user::numbered(0) }
}

fn account(name: &str, matches: &str) -> String {
    format!("[service-account.{name}]\nowner = \"o\"\nmatch = {matches}\n")
}

fn permit(account: &str, destination: &str) -> String {
    format!(
        "@id(\"{account}-to-{destination}\") @owner(\"o\") @reason(\"r\") permit (principal == \
         ServiceAccount::\"{account}\", action == Action::\"connect\", resource in Destination::\"{destination}\");\n"
    )
}

/// Makes an attempt as root that takes on an identity.
fn via(host: &Host, what: &str, to: SocketAddr) -> String {
    let mut command = host.command_as(&root(), host.probe());
    let output = command.args(["via", what, "udp-judge", &to.to_string()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_uid_cannot_be_shed() {
    let peer = UdpPeer::new();
    let host = Host::start(&Config::new());
    let uid = host.service_user().uid;

    for what in ["euid", "thread", "namespace"] {
        let answer = via(&host, &format!("{what}:{uid}"), peer.address);
        assert!(answer.contains("EACCES"), "by {what}: {answer}");
    }
    // The same ways to a uid that no account has.
    let stranger = user::ensure(user::STRANGER).uid;
    for what in ["euid", "thread", "namespace"] {
        let answer = via(&host, &format!("{what}:{stranger}"), peer.address);
        assert!(answer.contains("null"), "by {what}: {answer}");
    }

    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&[&denied, &denied, &denied]);
    let identified: Vec<String> = records.iter().map(|record| record.0["identified_by"].to_string()).collect();
    assert!(identified[0].contains("euid") && identified[1].contains("uid"), "{identified:?}");
    assert_eq!(records[0].number("/process/uid"), Some(0));
    assert!(records.iter().all(|record| record.text("/account") == config::ACCOUNT));
}

#[test]
fn an_executable_leads_to_its_account_whoever_runs_it_and_whatever_it_becomes() {
    let peer = UdpPeer::new();
    let host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy(host.probe(), &agent).unwrap();
    let mut host = host;
    host.configure(&Config::new().file(
        "service-accounts.d/agent.toml",
        &account("agent", &format!("{{ executable = \"{}\" }}", agent.display())),
    ));
    host.run_daemon();
    let stranger = user::ensure(user::STRANGER);
    let run = |program: &std::path::Path| {
        let mut command = host.command_as(&stranger, program);
        let output = command.args(["udp-judge", &peer.address.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    assert!(run(&agent).contains("EACCES"));
    assert!(run(&host.probe()).contains("null"), "the same bytes in another file are another executable");
    let records = host.expect_judgements(&[format!("deny udp {} EACCES", peer.address)]);
    assert_eq!(records[0].text("/account"), "agent");
    assert_eq!(records[0].text("/process/executable"), agent.display().to_string());
}

#[test]
fn a_cgroup_made_later_and_its_children_lead_to_the_account() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let below = host.cgroup().path().strip_prefix(cgroup::mount()).unwrap().display().to_string();
    let service = format!("[{{ cgroup = \"/{below}/jobs\" }}, {{ unit = \"writ-made-later.service\" }}]");
    host.configure(&Config::new().file("service-accounts.d/jobs.toml", &account("jobs", &service)));
    host.run_daemon();
    let stranger = user::ensure(user::STRANGER);
    let within = |part: &str| {
        let path = host.cgroup().path().join(part);
        fs::create_dir_all(&path).unwrap();
        let mut command = host.command_as(&stranger, "/bin/sh");
        // As root the shell could move itself; here the directory is opened to the stranger for a moment.
        nix::unistd::chown(&path.join("cgroup.procs"), Some(stranger.uid), None).unwrap();
        nix::unistd::chown(&host.cgroup().path().join("cgroup.procs"), Some(stranger.uid), None).unwrap();
        let script = format!(
            "echo 0 > {}/cgroup.procs && exec {} udp-judge {}",
            path.display(),
            host.probe().display(),
            peer.address
        );
        let output = command.args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::remove_dir(&path).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    assert!(within("others").contains("null"));
    for part in
        ["jobs", "jobs/nested", "jobs/nested/deeper", "writ-made-later.service", "writ-made-later.service/child"]
    {
        // Made, entered and left at once, twice: each time it is another cgroup with another id.
        for _ in 0..2 {
            assert!(within(part).contains("EACCES"), "in {part}");
        }
    }
    for part in ["jobs/nested", "jobs", "writ-made-later.service"] {
        let _ = fs::remove_dir(host.cgroup().path().join(part));
    }
    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&[&denied; 10]);
    assert!(records.iter().all(|record| record.text("/account") == "jobs"));
}

#[test]
fn keys_of_one_match_are_all_asked_for_and_several_matches_each_suffice() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let copy = host.directory().join("both");
    fs::copy(host.probe(), &copy).unwrap();
    let stranger = user::ensure(user::STRANGER);
    let matches =
        format!("[{{ user = \"{}\", executable = \"{}\" }}, {{ user = \"{OTHER}\" }}]", user::STRANGER, copy.display());
    host.configure(&Config::new().file("service-accounts.d/both.toml", &account("both", &matches)));
    host.run_daemon();
    let run = |who: &User, program: &std::path::Path| {
        let mut command = host.command_as(who, program);
        let output = command.args(["udp-judge", &peer.address.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("EACCES")
    };

    assert!(run(&stranger, &copy), "user and executable");
    assert!(!run(&stranger, &host.probe()), "the user alone");
    assert!(!run(&root(), &copy), "the executable alone");
    assert!(run(&user::numbered(OTHER), &host.probe()), "the other match");
}

#[test]
fn of_several_accounts_the_strictest_decides() {
    let (both, one) = (UdpPeer::new(), UdpPeer::new());
    let mut host = Host::prepare(&Config::new());
    let config = Config::new().destination("both", both.address).destination("one", one.address);
    let second = account("second", &format!("{{ executable = \"{}\" }}", host.probe().display()));
    let policies = [permit("tested", "both"), permit("tested", "one"), permit("second", "both")].concat();
    host.configure(
        &config.file("service-accounts.d/second.toml", &second).file("policies.d/policies.cedar", &policies),
    );
    host.run_daemon();

    host.attempt("udp-judge", &[both.address]).assert_succeeded();
    host.attempt("udp-judge", &[one.address]).assert_failed("EACCES");

    let judgements = host.expect_judgements(&[
        format!("allow udp {} by {}", both.address, "tested-to-both"),
        format!("deny udp {} EACCES", one.address),
    ]);
    assert_eq!(judgements[1].text("/account"), "second", "the one that refused is named");
    assert_eq!(judgements[1].0["also_matched"].to_string(), "[\"tested\"]");
}

/// Has one uid open a socket (in this cgroup, if one is named) and another use it; the answer.
fn handed(host: &Host, from: &str, to: u32, operation: &str, at: SocketAddr) -> String {
    let mut command = host.command_as(&root(), host.probe());
    let output = command.args(["handed", from, &to.to_string(), operation, &at.to_string()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_socket_leads_to_the_account_that_made_it_whoever_uses_it() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let jobs = host.cgroup().path().join("jobs");
    let below = jobs.strip_prefix(cgroup::mount()).unwrap().display().to_string();
    let by_cgroup = account("jobs", &format!("{{ cgroup = \"/{below}\" }}"));
    host.configure(&Config::new().file("service-accounts.d/jobs.toml", &by_cgroup));
    host.run_daemon();
    let (service, stranger) = (host.service_user().uid.as_raw(), user::ensure(user::STRANGER).uid.as_raw());

    for operation in ["udp-judge", "udp-send", "tcp"] {
        let answer = handed(&host, &service.to_string(), stranger, operation, peer.address);
        assert!(answer.contains("EACCES"), "{operation}: {answer}");
    }
    fs::create_dir(&jobs).unwrap();
    let answer = handed(&host, &format!("0@{}", jobs.display()), stranger, "udp-judge", peer.address);
    // What ended in it leaves it a moment later.
    wait::until("the cgroup to be empty", || fs::remove_dir(&jobs).ok());
    assert!(answer.contains("EACCES"), "{answer}");
    // And one that nobody has a claim on.
    assert!(handed(&host, "0", stranger, "udp-judge", peer.address).contains("null"));

    let (udp, tcp) = (format!("deny udp {} EACCES", peer.address), format!("deny tcp {} EACCES", peer.address));
    let records = host.expect_judgements(&[&udp, &udp, &tcp, &udp]);
    let by = |record: &writ_tests::Record| (record.text("/account").to_owned(), record.0["identified_by"].to_string());
    assert_eq!(by(&records[0]), ("tested".to_owned(), "[\"socket-uid\"]".to_owned()));
    assert_eq!(by(&records[3]), ("jobs".to_owned(), "[\"socket-cgroup\"]".to_owned()));
    assert_eq!(records[0].number("/process/uid"), Some(u64::from(stranger)));
}

#[test]
fn a_unit_restarted_a_thousand_times_has_no_open_moment_and_no_closed_one() {
    const RESTARTS: u32 = 1_000;
    let (closed, open) = (UdpPeer::new(), UdpPeer::new());
    let mut host = Host::prepare(&Config::new());
    let unit = account("unit", "{ unit = \"writ-restarted.service\" }");
    host.configure(
        &Config::new()
            .destination("open", open.address)
            .file("service-accounts.d/unit.toml", &unit)
            .file("policies.d/unit.cedar", &permit("unit", "open")),
    );
    host.run_daemon();
    // As DynamicUser= has it: a uid that no user has.
    let mut command = host.command_as(&root(), host.probe());
    let cgroup = host.cgroup().path().join("writ-restarted.service");
    command.args(["restarts", &RESTARTS.to_string(), "61184"]).arg(&cgroup);
    let output = command.args([closed.address.to_string(), open.address.to_string()]).output().unwrap();

    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "{\"reached\":0,\"refused\":0}");
    let settled = host.settled();
    assert_eq!(settled.seen, u64::from(RESTARTS) * 2);
}

#[test]
fn a_link_to_an_executable_and_one_that_was_deleted_are_the_executable() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let (agent, link) = (host.directory().join("agent"), host.directory().join("link"));
    fs::copy(host.probe(), &agent).unwrap();
    std::os::unix::fs::symlink(&agent, &link).unwrap();
    let by_executable = account("agent", &format!("{{ executable = \"{}\" }}", agent.display()));
    host.configure(&Config::new().file("service-accounts.d/agent.toml", &by_executable));
    host.run_daemon();
    let stranger = user::ensure(user::STRANGER);

    let mut command = host.command_as(&stranger, &link);
    let output = command.args(["udp-judge", &peer.address.to_string()]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("EACCES"));
    let mut running = host.batch_as(&stranger, &agent);
    running.attempt("udp-judge", peer.address).assert_failed("EACCES");
    fs::remove_file(&agent).unwrap();
    running.attempt("udp-judge", peer.address).assert_failed("EACCES");

    host.expect_judgements(&[format!("deny udp {} EACCES", peer.address).as_str(); 3]);
}

/// A row of `/etc/subuid`, taken out again in the end.
struct Row(String);

impl Row {
    fn add(row: String) -> Self {
        let before = fs::read_to_string(SUBUID).unwrap_or_default();
        fs::write(SUBUID, format!("{before}{row}\n")).unwrap();
        Self(row)
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        let kept: Vec<String> = fs::read_to_string(SUBUID)
            .unwrap_or_default()
            .lines()
            .filter(|line| *line != self.0)
            .map(str::to_owned)
            .collect();
        let _ = fs::write(SUBUID, kept.iter().map(|line| format!("{line}\n")).collect::<String>());
    }
}

const SUBUID: &str = "/etc/subuid";

/// What a setuid file leaves a process as, that the account made in a user namespace with its subordinate uids.
#[test]
fn a_subordinate_uid_of_an_accounts_user_is_the_accounts() {
    const FIRST: u32 = 1_700_000_000;
    let peer = UdpPeer::new();
    let service = user::ensure(user::SERVICE);
    let _row = Row::add(format!("{}:{FIRST}:65536", service.name));
    let host = Host::start(&Config::new());

    for uid in [FIRST, FIRST + 65_535] {
        host.attempt_as(&user::numbered(uid), "udp-judge", &[peer.address]).assert_failed("EACCES");
    }
    for uid in [FIRST - 1, FIRST + 65_536] {
        host.attempt_as(&user::numbered(uid), "udp-judge", &[peer.address]).assert_succeeded();
    }

    let denied = format!("deny udp {} EACCES", peer.address);
    let records = host.expect_judgements(&[&denied, &denied]);
    assert!(records.iter().all(|record| record.text("/account") == config::ACCOUNT));
    assert_eq!(records[0].number("/process/uid"), Some(FIRST.into()), "the record says which uid it was");
}

#[test]
fn a_uid_that_is_an_accounts_own_stays_its_own_though_it_is_anothers_subordinate() {
    const OWN: u32 = 1_700_100_005;
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let service = user::ensure(user::SERVICE);
    let _row = Row::add(format!("{}:1700100000:65536", service.name));
    let config = Config::new().destination("open", open.address).destination("closed", closed.address);
    let both = permit("owned", "open") + &permit(config::ACCOUNT, "open") + &permit(config::ACCOUNT, "closed");
    let host = Host::start(
        &config
            .file("service-accounts.d/owned.toml", &account("owned", &format!("{{ user = \"{OWN}\" }}")))
            .file("policies.d/both.cedar", &both),
    );

    // What only the other may reach is refused: of both, the strictest decides.
    host.attempt_as(&user::numbered(OWN), "udp-judge", &[open.address]).assert_succeeded();
    host.attempt_as(&user::numbered(OWN), "udp-judge", &[closed.address]).assert_failed("EACCES");
    host.expect_judgements(&[
        format!("allow udp {} by owned-to-open", open.address),
        format!("deny udp {} EACCES", closed.address),
    ]);
}
