//! The sample configuration of the contract, key by key.

use std::collections::BTreeMap;
use std::time::Duration;

use writ_abi::Protocol;

use super::{check_files, config};
use crate::config::{
    Account, Agent, Destination, Fsync, Kernel, LogSettings, Match, Mode, OnRecordLoss, Paths, Sessions, SignalKind,
};
use crate::diagnostic::Location;

const WRIT: &str = r#"# writ.toml
mode = "enforce"                                 # or "observe"
approvers = ["root", "%security"]                # who may approve, grant, offboard
escalation-ttl = "1h"
grant-max-ttl = "8h"
[paths]
state = "/var/lib/writ"
log = "/var/log/writ"
socket = "/run/writ/writ.sock"
pins = "/sys/fs/bpf/writ"
cgroup = "/sys/fs/cgroup/demo"
[kernel]
require = []                                     # e.g. ["lsm"]
ring-size = "16MiB"
"#;

const BILLING: &str = r#"# service-accounts.d/billing.toml
[service-account.billing]
owner = "payments@example.com"
team = ["payments"]                              # Team entities
match = { user = "svc-billing" }                 # unit, cgroup, executable too
executables = ["/usr/bin/python3.11"]            # approved
requires-fresh = ["edr.heartbeat"]
on-record-loss = "deny"                          # default "allow" (counted)
errno = "EACCES"                                 # default
mode = "enforce"
learning = "7d"
revoke-grants-on = ["workload.*"]                # default
"#;

/// Without `names`, which the sample shows as refused.
const DATABASES: &str = r#"# destinations.d/databases.toml
[destination.prod-db]
addresses = ["10.20.0.0/16", "fd00:20::/48"]
ports = [5432]                                   # and "5000-5010"; absent: any
protocols = ["tcp"]
in = ["prod"]                                    # parents; flattened
"#;

const EDR: &str = r#"# signals.d/edr.toml
[signal."edr.malware"]
risk = 90
ttl = "1h"
flag = true                                      # appears in context.signals
from = ["root", "edr-agent"]                     # who may send it
freshness = false
[signal."edr.heartbeat"]
ttl = "5m"
freshness = true
"#;

const FILES: [(&str, &str); 5] = [
    ("writ.toml", WRIT),
    ("service-accounts.d/billing.toml", BILLING),
    ("destinations.d/databases.toml", DATABASES),
    ("signals.d/edr.toml", EDR),
    ("policies.d/base.cedar", "permit(principal, action, resource);"),
];

fn at(file: usize, text: &str) -> Location {
    let (name, source) = FILES[file];
    Location::of(name, source, source.find(text).unwrap(), text.len())
}

#[test]
fn the_sample_configuration_is_exactly_this_model() {
    let config = config(&FILES);
    let agent = Agent {
        mode: Mode::Enforce,
        label: None,
        approvers: vec!["root".into(), "%security".into()],
        operators: vec!["root".into()],
        escalation_ttl: Duration::from_secs(3_600),
        grant_max_ttl: Duration::from_secs(8 * 3_600),
        on_escalation: Vec::new(),
        risk: Default::default(),
        time_zone: "UTC".into(),
        nat64: vec![],
        paths: Paths {
            state: "/var/lib/writ".into(),
            log: "/var/log/writ".into(),
            socket: "/run/writ/writ.sock".into(),
            drop: None,
            pins: "/sys/fs/bpf/writ".into(),
            cgroup: Some("/sys/fs/cgroup/demo".into()),
        },
        kernel: Kernel { require: vec![], ring_size: 16 << 20 },
        log: LogSettings { fsync: Fsync::Checkpoint, segment_size: 64 << 20, ..LogSettings::default() },
        sessions: Sessions::default(),
        sinks: BTreeMap::new(),
        ssf: BTreeMap::new(),
        https: None,
    };
    assert_eq!(config.agent, agent);

    let billing = Account {
        name: "billing".into(),
        owner: Some("payments@example.com".into()),
        teams: vec!["payments".into()],
        matches: vec![Match { user: Some("svc-billing".into()), ..Match::default() }],
        executables: vec!["/usr/bin/python3.11".into()],
        requires_fresh: vec!["edr.heartbeat".into()],
        on_record_loss: OnRecordLoss::Deny,
        errno: 13,
        mode: Some(Mode::Enforce),
        learning: Some(Duration::from_secs(7 * 86_400)),
        revoke_grants_on: vec!["workload.*".into()],
        attributes: BTreeMap::new(),
        at: Location { length: "billing".len(), ..at(1, "billing]") },
    };
    assert_eq!(config.accounts, [("billing".to_owned(), billing)].into());

    let database = Destination {
        name: "prod-db".into(),
        addresses: vec!["10.20.0.0/16".parse().unwrap(), "fd00:20::/48".parse().unwrap()],
        names: vec![],
        ports: vec![(5432, 5432)],
        protocols: vec![Protocol::Tcp],
        parents: vec!["prod".into()],
        at: Some(at(2, "prod-db")),
    };
    let group = Destination {
        name: "prod".into(),
        addresses: vec![],
        names: vec![],
        ports: vec![],
        protocols: vec![],
        parents: vec![],
        at: Some(at(2, "\"prod\"")),
    };
    assert_eq!(config.destinations["prod-db"], database);
    assert_eq!(config.destinations["prod"], group);
    let names: Vec<&str> = config.destinations.keys().map(String::as_str).collect();
    assert_eq!(names, ["host-resolvers", "loopback", "prod", "prod-db"]);

    let malware = SignalKind {
        kind: "edr.malware".into(),
        risk: 90,
        ttl: Duration::from_secs(3_600),
        flag: true,
        from: vec!["root".into(), "edr-agent".into()],
        freshness: false,
        ends_sessions: false,
        at: Some(at(3, "\"edr.malware\"")),
    };
    let heartbeat = SignalKind {
        kind: "edr.heartbeat".into(),
        risk: 0,
        ttl: Duration::from_secs(300),
        flag: false,
        from: vec![],
        freshness: true,
        ends_sessions: false,
        at: Some(at(3, "\"edr.heartbeat\"")),
    };
    assert_eq!(config.signals, [("edr.heartbeat".to_owned(), heartbeat), ("edr.malware".to_owned(), malware)].into());
    assert_eq!(config.policies.len(), 1);
    assert!(config.schemas.is_empty());
}

#[test]
fn the_sample_as_printed_is_refused_for_its_names_alone() {
    let databases = DATABASES.replace("ports =", "names = [\"db.example.internal\"]\nports =");
    let mut files = FILES;
    files[2].1 = &databases;
    check_files(
        &files,
        &[
            "destinations.d/databases.toml:4:9: error[names-not-implemented]: names are not implemented yet: ignoring one would open forbids; write the addresses of the names in `addresses`",
        ],
    );
}
