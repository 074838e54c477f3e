//! No gap: whatever happens to the daemon, not one forbidden connect succeeds and not one allowed connect fails.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::json;
use writ_tests::probe::Counts;
use writ_tests::{Config, Host, Prober, Scale, UdpPeer};

/// Swaps of every table.
const RELOADS: Scale = Scale { native: 200, emulated: 12 };
/// Deaths and returns of the daemon.
const RESTARTS: Scale = Scale { native: 3, emulated: 2 };
/// Attempts of each prober that a state must outlast.
const ATTEMPTS: u64 = 300;

/// The same verdicts by other tables: every class, port class, row and policy has another number.
fn variant(open: &UdpPeer, closed: &UdpPeer, number: usize) -> Config {
    let mut config = Config::new().destination("open", open.address).destination("closed", closed.address);
    if number.is_multiple_of(2) {
        config = config.permit("to-open", "open");
    } else {
        let many = "[destination.aa]\naddresses = [\"127.0.0.0/16\", \"10.0.0.0/8\"]\nports = [1, \"5-900\"]\n\
                    [destination.bb]\naddresses = [\"127.0.0.1/32\", \"::1/128\"]\nprotocols = [\"tcp\"]\n";
        let policies = "@id(\"a-first\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", \
                        resource in Destination::\"aa\") when { context.port < 2 };\n@id(\"b-to-open\") @owner(\"o\") \
                        @reason(\"r\") permit (principal, action == Action::\"connect\", resource in \
                        Destination::\"open\");\n@id(\"c-not-closed\") @owner(\"o\") @reason(\"r\") forbid (principal, \
                        action == Action::\"connect\", resource in Destination::\"closed\");\n";
        config = config.file("destinations.d/many.toml", many).file("policies.d/many.cedar", policies);
    }
    config
}

fn both_go_on(allowed: &Prober, forbidden: &Prober) {
    allowed.wait_for_more(ATTEMPTS);
    forbidden.wait_for_more(ATTEMPTS);
}

fn assert_no_gap(allowed: Prober, forbidden: Prober) -> u64 {
    let (allowed, forbidden) = (allowed.stop(), forbidden.stop());
    println!("{} allowed, {} forbidden attempts", allowed.attempts(), forbidden.attempts());
    assert_eq!(allowed.failed, BTreeMap::new(), "allowed traffic must not notice");
    let refusals = BTreeMap::from([("EACCES".to_owned(), forbidden.attempts())]);
    let attempts = allowed.attempts() + forbidden.attempts();
    assert_eq!(forbidden, Counts { succeeded: 0, failed: refusals }, "forbidden traffic must not get through");
    attempts
}

#[test]
fn no_reload_opens_or_closes_anything() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let host = Host::start(&variant(&open, &closed, 0));
    let (allowed, forbidden) =
        (host.paced(1000, "udp-judge", open.address), host.paced(1000, "udp-judge", closed.address));
    both_go_on(&allowed, &forbidden);

    let mut api = host.api();
    for number in 1..=RELOADS.here() {
        host.configure(&variant(&open, &closed, number));
        let (status, answer) = api.post("/v1/reload", &json!({}));
        assert_eq!(status, 200, "{answer}");
    }

    both_go_on(&allowed, &forbidden);
    assert_no_gap(allowed, forbidden);
}

#[test]
fn no_death_stop_or_return_of_the_daemon_opens_or_closes_anything() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let mut host = Host::start(&variant(&open, &closed, 0));
    // So many that the ring has room for what a daemon that is away does not read.
    let (allowed, forbidden) =
        (host.paced(1500, "udp-judge", open.address), host.paced(1500, "udp-judge", closed.address));

    for number in 0..RESTARTS.here() {
        both_go_on(&allowed, &forbidden);
        host.signal_daemon(Signal::SIGSTOP);
        both_go_on(&allowed, &forbidden);
        host.signal_daemon(Signal::SIGCONT);
        both_go_on(&allowed, &forbidden);
        if number.is_multiple_of(2) {
            host.kill_daemon();
        } else {
            assert_eq!(host.stop_daemon(), Some(0));
        }
        both_go_on(&allowed, &forbidden);
        // Adopted with other tables than those in force.
        host.configure(&variant(&open, &closed, number + 1));
        host.run_daemon();
    }

    both_go_on(&allowed, &forbidden);
    let attempts = assert_no_gap(allowed, forbidden);
    // What a killed daemon had read and not written is lost, and counted.
    let counted = host.settled_by_the_log(attempts);
    println!("{counted:?}");
    host.assert_verified(counted);
}
