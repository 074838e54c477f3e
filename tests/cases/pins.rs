//! What is pinned and not understood is left alone, with a named error, and enforcement stays as it was.

use std::fs;
use std::process::{Command, Stdio};

use writ_abi::ABI_VERSION;
use writ_tests::{Config, Host, UdpPeer, wait};

fn open_and_closed() -> (UdpPeer, UdpPeer, Config) {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    (open, closed, config)
}

fn assert_enforced(host: &Host, open: &UdpPeer, closed: &UdpPeer) {
    host.attempt("udp-judge", &[open.address]).assert_succeeded();
    host.attempt("udp-judge", &[closed.address]).assert_failed("EACCES");
}

/// What `writ run` says when it cannot run.
fn refused_start(host: &Host) -> String {
    let output = host.writ_output(&["run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn foreign_pins_are_named_and_enforcement_stays() {
    let (open, closed, config) = open_and_closed();
    let mut host = Host::start(&config);
    host.kill_daemon();
    let maps = host.pins().join(format!("v{ABI_VERSION}/maps"));
    let swap = || {
        for (from, to) in [("ACTIVE", "aside"), ("COUNTS", "ACTIVE"), ("aside", "COUNTS")] {
            fs::rename(maps.join(from), maps.join(to)).unwrap();
        }
    };

    swap();
    let said = refused_start(&host);
    assert!(said.contains("maps/ACTIVE` is not what writ pins there"), "{said}");
    assert_enforced(&host, &open, &closed);
    swap();

    fs::rename(maps.join("SLOTS"), host.pins().join("SLOTS")).unwrap();
    let said = refused_start(&host);
    assert!(said.contains(" maps, though programs are attached"), "{said}");
    assert_enforced(&host, &open, &closed);
    fs::rename(host.pins().join("SLOTS"), maps.join("SLOTS")).unwrap();

    let newer = host.pins().join(format!("v{}", ABI_VERSION + 1));
    fs::create_dir(&newer).unwrap();
    let said = refused_start(&host);
    assert!(said.contains("a newer writ made them, and they stay in force"), "{said}");
    assert_enforced(&host, &open, &closed);
    fs::remove_dir(&newer).unwrap();

    host.run_daemon();
    assert_enforced(&host, &open, &closed);
    host.settled();
}

#[test]
fn a_second_daemon_is_refused() {
    let (open, closed, config) = open_and_closed();
    let host = Host::start(&config);

    let said = refused_start(&host);

    assert!(said.contains("log:"), "{said}");
    assert_enforced(&host, &open, &closed);
    // The first one goes on recording.
    wait::until("both attempts are on record", || (host.judgements().len() == 2).then_some(()));
}

#[test]
fn a_second_daemon_with_a_log_of_its_own_gets_no_hold_of_the_same_pins() {
    let (open, closed, config) = open_and_closed();
    let host = Host::start(&config);
    let other = tempfile::tempdir().unwrap();
    let etc = other.path().join("etc");
    fs::create_dir(&etc).unwrap();
    let written = fs::read_to_string(host.config_directory().join("writ.toml")).unwrap();
    let own = |line: &str| match line.split_once(" = ") {
        Some((part @ ("state" | "log" | "socket"), _)) => {
            format!("{part} = \"{}\"\n", other.path().join(part).display())
        }
        _ => format!("{line}\n"),
    };
    fs::write(etc.join("writ.toml"), written.lines().map(own).collect::<String>()).unwrap();
    let mut second = Command::new(writ_tests::host::writ_program());
    let output = second.arg("--config-dir").arg(&etc).arg("run").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();

    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another writ holds the pins"), "{said}");
    assert_enforced(&host, &open, &closed);
}

#[test]
fn a_daemon_whose_enforcement_was_taken_away_ends_with_a_status_of_its_own() {
    let (open, closed, config) = open_and_closed();
    let mut host = Host::start(&config);
    assert!(host.writ_output(&["uninstall"]).status.success());
    // The unit names it, so that the service manager does not put everything back.
    assert_eq!(host.daemon_ends(), Some(6));
    let unit = include_str!("../../systemd/writ.service");
    assert!(unit.contains("RestartPreventExitStatus=6\n"));
    for peer in [&open, &closed] {
        host.attempt("udp-judge", &[peer.address]).assert_succeeded();
    }
}

#[test]
fn a_daemon_killed_while_it_starts_leaves_nothing_that_stops_the_next() {
    let (open, closed, config) = open_and_closed();
    let mut host = Host::prepare(&config);
    let pins = host.pins().join(format!("v{ABI_VERSION}"));
    let count = |part: &str| fs::read_dir(pins.join(part)).map_or(0, |entries| entries.flatten().count());

    // Killed once so many maps, and then so many links, are pinned.
    for (part, enough) in [("maps", 1), ("maps", 12), ("maps", 24), ("links", 1), ("links", 6), ("links", 10)] {
        let mut command: Command = host.writ(&["run"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let reached = wait::within(wait::PATIENCE, || {
            assert!(child.try_wait().unwrap().is_none(), "`writ run` ended at {enough} {part}");
            (count(part) >= enough).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reached.is_some(), "{enough} {part} are pinned");
    }

    host.run_daemon();
    assert_enforced(&host, &open, &closed);
    host.settled();
}

#[test]
fn garbage_in_the_configuration_leaves_the_last_good_one_in_force() {
    let (open, closed, config) = open_and_closed();
    let mut host = Host::start(&config);
    for (name, text) in [
        ("policies.d/to-open.cedar", "permit (((("),
        ("policies.d/to-open.cedar", "\0\u{fffd}\u{202e}"),
        ("destinations.d/open.toml", "[destination.open\naddresses = 7"),
        ("service-accounts.d/tested.toml", "[service-account.tested]\nmatch = 7"),
    ] {
        host.configure(&config.clone().file(name, text));
        let reload = host.writ_output(&["reload"]);
        assert_eq!(reload.status.code(), Some(1), "{name}: {reload:?}");
        assert_enforced(&host, &open, &closed);
    }

    host.kill_daemon();
    host.configure(&config.clone().file("policies.d/to-open.cedar", "permit (((("));
    host.run_daemon();
    assert_eq!(host.status()["degraded"].to_string(), "[\"config-rejected\"]");
    assert_enforced(&host, &open, &closed);

    let fresh = Host::prepare(&config.file("policies.d/to-open.cedar", "permit (((("));
    let said = refused_start(&fresh);
    assert!(said.contains("to-open.cedar") && said.contains("no earlier one to fall back to"), "{said}");
}

#[test]
fn what_an_older_version_pinned_enforces_until_the_new_policy_does_and_is_then_taken_away() {
    let (open, closed, config) = open_and_closed();
    let mut host = Host::start(&config);
    host.attempt("udp-judge", &[closed.address]).assert_failed("EACCES");
    host.settled();
    host.kill_daemon();
    let older = host.pins().join(format!("v{}", ABI_VERSION - 1));
    fs::rename(host.pins().join(format!("v{ABI_VERSION}")), &older).unwrap();
    // Judged by the older programs, whose ring nobody reads any more.
    host.attempt("udp-judge", &[closed.address]).assert_failed("EACCES");

    host.run_daemon();
    assert!(!older.exists(), "the older version's pins are gone");
    assert_enforced(&host, &open, &closed);
    // What the older programs judged last is known to be missing as soon as its CPU gives the next number.
    let lost = wait::until("the loss is on record", || {
        host.attempt("udp-judge", &[closed.address]).assert_failed("EACCES");
        let lost: u64 = host.records_of("loss").iter().filter_map(|loss| loss.number("/count")).sum();
        (lost > 0).then_some(lost)
    });
    assert_eq!(lost, 1);
}
