//! What becomes of identities and sessions when the kernel's tables are full: nobody gets away with it, and nobody else pays.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::unistd::User;
use writ_tests::bpf::Table;
use writ_tests::{Config, Host, TcpPeer, UdpPeer, user, wait};

fn account(name: &str, matches: &str) -> String {
    format!("[service-account.{name}]\nowner = \"o\"\nmatch = {matches}\n")
}

fn counter(host: &Host, name: &str) -> u64 {
    host.status()["counters"][name].as_u64().unwrap()
}

fn table(host: &Host, name: &str) -> Table {
    Table::pinned(host.pins(), name).unwrap()
}

/// A shell that an account is matched by, run by a user of no account; it does as it is told.
struct Shell(Child, BufReader<std::process::ChildStdout>);

impl Shell {
    fn start(host: &Host, program: &Path) -> Self {
        let mut command = host.command_as(&user::ensure(user::STRANGER), program);
        let mut child = command.arg0("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Self(child, answers);
        // It runs, and is known: an answer of its own.
        assert_eq!(shell.told("echo ready"), "ready");
        shell
    }

    /// The first line that comes of it.
    fn told(&mut self, line: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.1.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers that no process has: beyond those the kernel gives out.
fn no_processes() -> impl Iterator<Item = u32> {
    0x8000_0000..0x8800_0000
}

#[test]
fn a_lineage_that_finds_no_room_is_refused_and_nobody_else() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy("/bin/sh", &agent).unwrap();
    host.configure(&Config::new().file(
        "service-accounts.d/agent.toml",
        &account("agent", &format!("{{ executable = \"{}\" }}", agent.display())),
    ));
    host.run_daemon();
    let probe = format!("{} udp-judge {}", host.probe().display(), peer.address);
    let lineage = table(&host, "LINEAGE");

    let mut before = Shell::start(&host, &agent);
    assert!(before.told(&probe).contains("EACCES"), "while there is room its child is the account's");
    // That child has ended, and left its place: it is taken with all others.
    assert_eq!(before.told("echo done").trim(), "done");
    let full = lineage.fill(no_processes(), 0);
    assert!(full > 60_000, "{full}");

    // Its lineage is known, that of its child cannot be; and the child's child is no better off.
    assert!(before.told(&probe).contains("EPERM"));
    assert!(before.told(&format!("(({probe}); true); true")).contains("EPERM"));
    // Started now, it is the account's itself, and what it becomes is not forgotten.
    let mut after = Shell::start(&host, &agent);
    assert!(after.told(&format!("exec {probe}")).contains("EPERM"));
    // Whoever never was the account's is nobody's business.
    let stranger = user::ensure(user::STRANGER);
    host.attempt_as(&stranger, "udp-judge", &[peer.address]).assert_succeeded();

    let status = host.status();
    assert!(status["counters"]["lineage-full"].as_u64().unwrap() >= 4, "{status}");
    assert!(status["degraded"].to_string().contains("lineage-full"), "{status}");
    let judgements = host.judgements();
    let unknown = judgements.iter().filter(|record| record.text("/reason_code") == "identity-unknown");
    assert_eq!(unknown.count(), 3, "{judgements:#?}");

    // With room, whoever comes is known as before.
    for process in no_processes().take(full) {
        lineage.remove(process).unwrap();
    }
    assert!(Shell::start(&host, &agent).told(&probe).contains("EACCES"));
    host.settled();
}

#[test]
fn an_account_with_all_its_sessions_is_refused_more_and_another_is_not() {
    let peer = TcpPeer::new();
    let permit = "@id(\"all\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource in \
                  Destination::\"open\");\n";
    let other = account("other", &format!("{{ user = \"{}\" }}", user::STRANGER));
    let config = Config::new()
        .destination("open", peer.address)
        .file("service-accounts.d/other.toml", &other)
        .file("policies.d/all.cedar", permit);
    let host = Host::start(&config);
    let (used, shares) = (table(&host, "SESSIONS_USED"), table(&host, "SESSIONS_SHARE"));
    // One row for each account there can be, one for whoever is none, one for what is beyond their shares.
    let rows = 0u32..4097;
    let all = 4097u32;
    let share = shares.number(0u32).unwrap();
    assert_eq!(share, 262_144 / 2 / 3, "half of the list for two accounts and everybody else");

    // What is counted is what is open.
    const OPEN: u64 = 5;
    let held = host.hold(OPEN as usize, "tcp", peer.address);
    let own = rows.clone().find(|row| used.number(*row).unwrap() != 0).expect("its sessions are counted");
    assert_eq!(used.number(own).unwrap(), OPEN);
    drop(held);
    wait::until("closed sessions are not counted", || (used.number(own).unwrap() == 0).then_some(()));

    // All of its share, and all there is beyond.
    used.set(own, share).unwrap();
    used.set(all, 262_144 / 4).unwrap();
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    assert_eq!((used.number(own).unwrap(), used.number(all).unwrap()), (share, 262_144 / 4), "a refusal takes nothing");
    let stranger = user::ensure(user::STRANGER);
    host.attempt_as(&stranger, "tcp", &[peer.address]).assert_succeeded();
    assert_eq!(counter(&host, "session-quota"), 1);
    let records = host.expect_judgements(
        &(0..OPEN)
            .map(|_| format!("allow tcp {} by all", peer.address))
            .chain([format!("deny tcp {} EACCES", peer.address), format!("allow tcp {} by all", peer.address)])
            .collect::<Vec<_>>(),
    );
    assert_eq!(records[5].text("/reason_code"), "session-untracked");
    assert_eq!(records[6].text("/account"), "other");

    // One fewer of anybody's, and it is served out of what is there for all.
    used.set(all, 262_144 / 4 - 1).unwrap();
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    wait::until("what was there for all is given back", || {
        (used.number(all).unwrap() == 262_144 / 4 - 1).then_some(())
    });
    assert_eq!(used.number(own).unwrap(), share);
    host.settled();
}

#[test]
fn a_socket_that_connects_again_is_one_session() {
    let (first, second) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new()
        .destination("first", first.address)
        .destination("second", second.address)
        .permit("to-first", "first")
        .permit("to-second", "second");
    let host = Host::start(&config);
    let used = table(&host, "SESSIONS_USED");
    host.attempt("udp-reconnect", &[first.address, second.address]).assert_succeeded();
    let counted = || (0u32..4098).map(|row| used.number(row).unwrap()).sum::<u64>();
    host.expect_judgements(&[
        format!("allow udp {} by to-first", first.address),
        format!("allow udp {} by to-second", second.address),
    ]);
    wait::until("its end takes it off once", || (counted() == 0).then_some(()));
    host.settled();
}

/// What a user's process that enters this cgroup sees.
fn within(host: &Host, user: &User, part: &str, to: SocketAddr) -> String {
    let path = host.cgroup().path().join(part);
    fs::create_dir_all(&path).unwrap();
    let mut command = host.command_as(user, "/bin/sh");
    // As root the shell could move itself; here the directory is opened to the user for a moment.
    nix::unistd::chown(&path.join("cgroup.procs"), Some(user.uid), None).unwrap();
    nix::unistd::chown(&host.cgroup().path().join("cgroup.procs"), Some(user.uid), None).unwrap();
    let script = format!("echo 0 > {}/cgroup.procs && exec {} udp-judge {to}", path.display(), host.probe().display());
    let output = command.args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_dir(&path).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cgroups_made_without_number_hide_no_unit() {
    let peer = UdpPeer::new();
    let named = account("named", "{ unit = \"writ-named.service\" }");
    let config = Config::new().file("service-accounts.d/named.toml", &named);
    let host = Host::start(&config);
    let stranger = user::ensure(user::STRANGER);
    let within = |part: &str| within(&host, &stranger, part, peer.address);
    // No cgroup has such an id. As whoever may make cgroups would fill the memo: 65,536 of each generation.
    let nowhere = || u64::MAX - 100_000..u64::MAX;

    assert!(within("writ-named.service").contains("EACCES"));
    for side in 0..2 {
        if let Ok(memo) = table(&host, "CGROUPS").inner(side) {
            assert!(memo.fill(nowhere(), 0) > 60_000);
        }
    }
    assert!(within("writ-named.service").contains("EACCES"), "made anew, and not forgotten");
    assert!(within("writ-named.service/below").contains("EACCES"));
    fs::remove_dir(host.cgroup().path().join("writ-named.service")).unwrap();
    assert!(within("others").contains("null"));
    assert!(counter(&host, "cgroup-map-full") > 0);

    // Even what is named may find no room: then nobody who cannot be placed gets out, whoever that is.
    for side in 0..2 {
        if let Ok(named) = table(&host, "NAMED_CGROUPS").inner(side) {
            assert!(named.fill(nowhere(), 0) > 16_000);
        }
    }
    assert!(within("writ-named.service").contains("EPERM"));
    assert!(within("others").contains("EPERM"));
    assert!(counter(&host, "cgroup-lost") > 0);
    assert!(host.status()["degraded"].to_string().contains("cgroup-lost"), "{}", host.status());

    // The next generation looks at all cgroups anew.
    host.configure(&config.destination("another", peer.address));
    assert!(host.writ_output(&["reload"]).status.success());
    assert!(within("writ-named.service").contains("EACCES"));
    assert!(within("others").contains("null"));
    assert!(!host.status()["degraded"].to_string().contains("cgroup-lost"), "{}", host.status());
    host.settled();
}

#[test]
fn a_process_that_was_there_before_leads_whatever_it_starts_to_its_account() {
    let peer = UdpPeer::new();
    let mut host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy("/bin/sh", &agent).unwrap();
    let mut shell = Shell::start(&host, &agent);
    assert_eq!(shell.told("echo here").trim(), "here");
    host.configure(&Config::new().file(
        "service-accounts.d/agent.toml",
        &account("agent", &format!("{{ executable = \"{}\" }}", agent.display())),
    ));
    host.run_daemon();
    let probe = format!("{} udp-judge {}", host.probe().display(), peer.address);
    assert!(shell.told(&probe).contains("EACCES"), "its child runs another program");
    assert!(shell.told(&format!("((({probe}); true); true)")).contains("EACCES"));
    host.expect_judgements(&[format!("deny udp {} EACCES", peer.address), format!("deny udp {} EACCES", peer.address)]);
}

#[test]
fn that_there_is_no_room_for_who_was_there_before_is_shown() {
    let mut host = Host::prepare(&Config::new());
    let agent = host.directory().join("agent");
    fs::copy("/bin/sh", &agent).unwrap();
    host.run_daemon();
    let _shell = Shell::start(&host, &agent);
    let lineage = table(&host, "LINEAGE");
    let full = lineage.fill(no_processes(), 0);
    let matched = account("agent", &format!("{{ executable = \"{}\" }}", agent.display()));
    host.configure(&Config::new().file("service-accounts.d/agent.toml", &matched));
    assert!(host.writ_output(&["reload"]).status.success());
    assert!(host.status()["degraded"].to_string().contains("lineage-unknown"));
    for process in no_processes().take(full) {
        lineage.remove(process).unwrap();
    }
    host.configure(&Config::new().file("service-accounts.d/agent.toml", &format!("{matched}mode = \"observe\"\n")));
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(host.status()["degraded"], serde_json::json!([]));
}
