//! `destinations.d/*.toml`.

use writ_abi::Protocol;

use super::{check, check_files, config, files, findings, host};
use crate::config::{Destination, HOST_RESOLVERS, HostFacts, LOOPBACK, parse};

const FILE: &str = "destinations.d/a.toml";

/// The body of `[destination.a]` from line 2 on.
#[track_caller]
fn body(text: &str, expected: &[&str]) {
    check(FILE, &format!("[destination.a]\n{text}\n"), expected);
}

fn nets(written: &[&str]) -> Vec<ipnet::IpNet> {
    written.iter().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn a_destination_is_read_into_networks_ranges_and_protocols() {
    let text = r#"
        [destination.a]
        addresses = ["192.0.2.7", "::ffff:10.0.0.0/104", "fd00:20::/48"]
        ports = [5432, "5000-5010"]
        protocols = ["udp", "tcp"]
    "#;
    let destination = &config(&[(FILE, text)]).destinations["a"];
    assert_eq!(destination.addresses, nets(&["192.0.2.7/32", "10.0.0.0/8", "fd00:20::/48"]));
    assert_eq!(destination.ports, [(5432, 5432), (5000, 5010)]);
    assert_eq!(destination.protocols, [Protocol::Udp, Protocol::Tcp]);
    assert!(destination.parents.is_empty() && destination.names.is_empty());
}

#[test]
fn loopback_and_the_resolvers_are_always_there() {
    let config = config(&[]);
    let blank = Destination {
        name: String::new(),
        addresses: vec![],
        names: vec![],
        ports: vec![],
        protocols: vec![],
        parents: vec![],
        at: None,
    };
    let loopback = Destination { name: LOOPBACK.into(), addresses: nets(&["127.0.0.0/8", "::1/128"]), ..blank.clone() };
    assert_eq!(config.destinations[LOOPBACK], loopback);
    let resolvers = Destination {
        name: HOST_RESOLVERS.into(),
        addresses: nets(&["127.0.0.53/32", "192.0.2.53/32"]),
        ports: vec![(53, 53)],
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        ..blank
    };
    assert_eq!(config.destinations[HOST_RESOLVERS], resolvers);
}

#[test]
fn a_host_without_resolvers_has_a_destination_without_addresses() {
    let parsed = parse(&[], &HostFacts::default());
    assert!(parsed.diagnostics.is_empty());
    assert!(parsed.config.unwrap().destinations[HOST_RESOLVERS].addresses.is_empty());
}

#[test]
fn built_in_destinations_are_nobodys_to_change() {
    check(
        FILE,
        "[destination.loopback]\naddresses = [\"10.0.0.0/8\"]\n",
        &["1:14: error[built-in]: destination `loopback` is built in and cannot be declared; choose another name"],
    );
    body(
        "addresses = [\"10.0.0.1\"]\nin = [\"host-resolvers\"]",
        &[
            "3:7: error[built-in]: `in`: destination `host-resolvers` is built in and cannot be added to; name a destination of your own",
        ],
    );
}

#[test]
fn names_are_refused_until_they_are_implemented() {
    body(
        "addresses = [\"10.0.0.1\"]\nnames = [\"db.example.internal\"]",
        &[
            "3:9: error[names-not-implemented]: names are not implemented yet: ignoring one would open forbids; write the addresses of the names in `addresses`",
        ],
    );
    body("addresses = [\"10.0.0.1\"]\nnames = []", &[]);
}

#[test]
fn set_host_bits_are_cut_off_with_a_warning() {
    body(
        "addresses = [\"10.20.30.40/16\", \"fd00::1/64\"]",
        &[
            "2:14: warning[host-bits]: `addresses`: `10.20.30.40/16` has bits beyond its prefix: read as `10.20.0.0/16`; write \"10.20.0.0/16\"",
            "2:32: warning[host-bits]: `addresses`: `fd00::1/64` has bits beyond its prefix: read as `fd00::/64`; write \"fd00::/64\"",
        ],
    );
    let text = "[destination.a]\naddresses = [\"10.20.30.40/16\"]\n";
    assert_eq!(config(&[(FILE, text)]).destinations["a"].addresses, nets(&["10.20.0.0/16"]));
}

#[test]
fn an_address_that_is_judged_as_another_is_warned_of() {
    body(
        "addresses = [\"0.0.0.0\", \"::\"]",
        &[
            "2:14: warning[never-matches]: `addresses`: `0.0.0.0` is judged as `127.0.0.1`: this matches nothing; write \"127.0.0.1\"",
            "2:25: warning[never-matches]: `addresses`: `::` is judged as `::1`: this matches nothing; write \"::1\"",
        ],
    );
    body("addresses = [\"0.0.0.0/0\", \"::/0\"]", &[]);
}

#[test]
fn an_address_below_a_nat64_prefix_is_warned_of() {
    let files = [
        ("writ.toml", "nat64 = [\"64:ff9b::/96\"]\n"),
        (FILE, "[destination.a]\naddresses = [\"64:ff9b::a00:1\", \"64:ff9b::/64\"]\n"),
    ];
    check_files(
        &files,
        &[
            "destinations.d/a.toml:1:14: warning[never-matches]: destination `a`: `64:ff9b::a00:1/128` is judged as IPv4 (`nat64` `64:ff9b::/96`) and matches nothing; write the IPv4 addresses it stands for",
        ],
    );
}

#[test]
fn a_bad_address_port_or_protocol_is_refused_at_the_value() {
    body(
        "addresses = [\"10.0.0.0/33\", \"db.example\", \"fe80::1%eth0\", 10]",
        &[
            "2:14: error[bad-address]: `addresses`: `10.0.0.0/33` is neither an address nor a prefix; `/33` is not a prefix length from 0 to 32",
            "2:29: error[bad-address]: `addresses`: `db.example` is neither an address nor a prefix; a host name is no address, and `names` are not implemented yet: write its addresses",
            "2:43: error[bad-address]: `addresses`: `fe80::1%eth0` is neither an address nor a prefix; leave the zone (`%…`) out: addresses are judged without it",
            "2:59: error[wrong-type]: `addresses` in `[destination.a]` must be a string, not an integer; write it in quotes: \"10\"",
        ],
    );
    body(
        "addresses = [\"10.0.0.1\"]\nports = [65536, \"5010-5000\", \"http\", true]",
        &[
            "3:10: error[bad-port]: `ports`: `65536` is not a port; ports are 0 to 65535",
            "3:17: error[bad-port]: `ports`: `5010-5000` ends before it starts; write \"5000-5010\"",
            "3:30: error[bad-port]: `ports`: `http` is neither a port nor a range of ports; write e.g. 5432 or \"5000-5010\"; ports are 0 to 65535",
            "3:38: error[wrong-type]: `ports` in `[destination.a]` must be a port or a range of ports, not a boolean",
        ],
    );
    body(
        "addresses = [\"10.0.0.1\"]\nprotocols = [\"icmp\", \"TCP\"]",
        &[
            "3:14: error[bad-protocol]: `protocols`: `icmp` is not judged at connect: a destination has `tcp` and `udp` only; other protocols need a policy for Action::\"open-socket\" (context.family)",
            "3:22: error[bad-protocol]: `protocols`: `TCP` is not a protocol; did you mean `tcp`?",
        ],
    );
    body(
        "addresses = [\"10.0.0.1\"]\nports = []\nprotocols = []",
        &[
            "3:9: error[empty-list]: `ports` is empty, which says neither any nor none; leave `ports` out for any",
            "4:13: error[empty-list]: `protocols` is empty, which says neither any nor none; leave `protocols` out for any",
        ],
    );
    body(
        "adresses = [\"10.0.0.1\"]",
        &["2:1: error[unknown-key]: unknown key `adresses` in `[destination.a]`; did you mean `addresses`?"],
    );
}

#[test]
fn a_destination_that_matches_nothing_is_warned_of() {
    body(
        "ports = [443]",
        &[
            "1:14: warning[matches-nothing]: destination `a` has no addresses and no members: it matches nothing; write `addresses`; for any address: [\"0.0.0.0/0\", \"::/0\"]",
        ],
    );
}

#[test]
fn a_group_needs_no_addresses_but_its_ports_narrow_nothing() {
    let group = |body: &str| {
        format!("[destination.prod]\n{body}\n[destination.db]\naddresses = [\"10.0.0.1\"]\nin = [\"prod\"]\n")
    };
    check(FILE, &group(""), &[]);
    check(
        FILE,
        &group("ports = [5432]"),
        &[
            "1:14: warning[ports-without-addresses]: destination `prod` has ports or protocols but no addresses: they do not narrow its members; write them in the members, or give it `addresses`",
        ],
    );
}

#[test]
fn an_undeclared_parent_is_a_group_of_its_own() {
    let text = "[destination.db]\naddresses = [\"10.0.0.1\"]\nin = [\"prod\"]\n";
    let config = config(&[(FILE, text)]);
    let group = &config.destinations["prod"];
    assert!(group.addresses.is_empty() && group.parents.is_empty());
    assert_eq!(group.at.as_ref().map(|at| (at.line, at.column)), Some((3, 7)));
    assert_eq!(config.destinations["db"].parents, ["prod"]);
}

#[test]
fn an_undeclared_parent_one_letter_off_is_warned_of() {
    let text = "[destination.production]\naddresses = [\"10.0.0.1\"]\n[destination.b]\naddresses = [\"10.0.0.2\"]\nin = [\"prodution\"]\n";
    check(
        FILE,
        text,
        &[
            "5:7: warning[similar-group]: `in`: destination `prodution` is not declared and becomes a group of its own; did you mean `production`?",
        ],
    );
}

#[test]
fn destinations_cannot_be_in_each_other() {
    check_files(
        &[
            (FILE, "[destination.a]\nin = [\"b\"]\n[destination.below]\nin = [\"a\"]\n"),
            ("destinations.d/b.toml", "[destination.b]\nin = [\"c\"]\n[destination.c]\nin = [\"x\", \"a\"]\n"),
        ],
        &[
            "destinations.d/a.toml:2:7: error[cycle]: destinations are in each other: `a` in `b` in `c` in `a`; take one of them out of `in`",
        ],
    );
    body(
        "in = [\"a\"]",
        &["2:7: error[cycle]: destinations are in each other: `a` in `a`; take one of them out of `in`"],
    );
}

#[test]
fn a_diamond_of_groups_is_no_cycle() {
    let text = r#"
        [destination.db]
        addresses = ["10.0.0.1"]
        in = ["left", "right"]
        [destination.left]
        in = ["top"]
        [destination.right]
        in = ["top"]
    "#;
    check(FILE, text, &[]);
}

#[test]
fn two_cycles_are_two_findings() {
    let text = "[destination.a]\nin = [\"b\"]\n[destination.b]\nin = [\"a\"]\n[destination.c]\nin = [\"d\"]\n[destination.d]\nin = [\"c\"]\n";
    let parsed = parse(&files(&[(FILE, text)]), &host());
    assert_eq!(findings(&parsed).iter().filter(|line| line.contains("error[cycle]")).count(), 2);
}

#[test]
fn a_very_long_chain_of_groups_is_followed_to_its_end() {
    let text: String = (0..5_000).map(|at| format!("[destination.d{at}]\nin = [\"d{}\"]\n", at + 1)).collect();
    let parsed = parse(&files(&[(FILE, &text)]), &host());
    assert!(parsed.config.is_some());
}
