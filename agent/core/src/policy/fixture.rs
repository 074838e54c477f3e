//! Configurations for tests: accounts, destinations and policies as an operator would write them.

use std::collections::BTreeMap;
use std::time::Duration;

use writ_abi::Protocol;

use crate::config::{
    Account, Agent, Config, Destination, Fsync, Kernel, LogSettings, Match, Mode, OnRecordLoss, Paths, Sessions,
    SignalKind, SourceFile,
};
use crate::diagnostic::{Diagnostic, Location};
use crate::policy::{AccountState, Bundle};

pub(crate) fn here() -> Location {
    Location { file: "service-accounts.d/test.toml".into(), line: 1, column: 1, offset: 0, length: 1 }
}

pub(crate) fn account(name: &str, teams: &[&str]) -> Account {
    Account {
        name: name.into(),
        owner: Some("owner@example.com".into()),
        teams: teams.iter().map(|team| (*team).into()).collect(),
        matches: vec![Match { user: Some(format!("svc-{name}")), ..Match::default() }],
        executables: Vec::new(),
        requires_fresh: Vec::new(),
        on_record_loss: OnRecordLoss::Allow,
        errno: 13,
        mode: None,
        learning: None,
        revoke_grants_on: Vec::new(),
        attributes: BTreeMap::new(),
        at: here(),
    }
}

pub(crate) fn destination(name: &str, addresses: &[&str], ports: &[(u16, u16)], parents: &[&str]) -> Destination {
    Destination {
        name: name.into(),
        addresses: addresses.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        names: Vec::new(),
        ports: ports.to_vec(),
        protocols: Vec::new(),
        parents: parents.iter().map(|parent| (*parent).into()).collect(),
        at: None,
    }
}

/// A configuration with the destinations of `egress.cedar`, and these accounts and policies.
pub(crate) fn config(accounts: Vec<Account>, policies: &str) -> Config {
    let destinations = [
        destination("prod", &[], &[], &[]),
        destination("prod-db", &["10.20.0.0/16", "fd00:20::/48"], &[(5432, 5432)], &["prod"]),
        destination("warehouse", &["10.30.0.0/16"], &[(5000, 5010), (5432, 5432)], &["prod"]),
        Destination { protocols: vec![Protocol::Tcp], ..destination("corp-internal", &["10.0.0.0/8"], &[], &[]) },
        destination("loopback", &["127.0.0.0/8", "::1/128"], &[], &[]),
        destination("host-resolvers", &[], &[(53, 53)], &[]),
    ];
    Config {
        agent: Agent {
            mode: Mode::Enforce,
            label: None,
            approvers: vec!["root".into()],
            operators: Vec::new(),
            escalation_ttl: Duration::from_secs(3600),
            grant_max_ttl: Duration::from_secs(8 * 3600),
            on_escalation: Vec::new(),
            risk: Default::default(),
            time_zone: "UTC".into(),
            nat64: Vec::new(),
            paths: Paths {
                state: "/var/lib/writ".into(),
                log: "/var/log/writ".into(),
                socket: "/run/writ/writ.sock".into(),
                drop: None,
                pins: "/sys/fs/bpf/writ".into(),
                cgroup: None,
            },
            kernel: Kernel { require: Vec::new(), ring_size: 1 << 24 },
            log: LogSettings { fsync: Fsync::Never, segment_size: 1 << 26, ..LogSettings::default() },
            sessions: Sessions::default(),
            sinks: BTreeMap::new(),
            ssf: BTreeMap::new(),
            https: None,
        },
        accounts: accounts.into_iter().map(|account| (account.name.clone(), account)).collect(),
        destinations: destinations.into_iter().map(|found| (found.name.clone(), found)).collect(),
        signals: BTreeMap::<String, SignalKind>::new(),
        policies: [policies]
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(|text| SourceFile { name: "policies.d/test.cedar".into(), text: text.into() })
            .collect(),
        schemas: Vec::new(),
    }
}

pub(crate) fn state(risk: u8, now: &str) -> AccountState {
    AccountState { risk, ..AccountState::quiet(now.parse().unwrap()) }
}

/// The bundle of a configuration without errors.
pub(crate) fn bundle(config: &Config) -> Bundle {
    let (bundle, findings) = Bundle::compile(config);
    bundle.unwrap_or_else(|| panic!("refused: {findings:#?}"))
}

/// The errors of a configuration with one account, `report`, and these policies.
pub(crate) fn errors(policies: &str) -> Vec<Diagnostic> {
    let (bundle, findings) = Bundle::compile(&config(vec![account("report", &["platform"])], policies));
    let errors: Vec<_> =
        findings.into_iter().filter(|finding| finding.severity == crate::diagnostic::Severity::Error).collect();
    assert_eq!(bundle.is_none(), !errors.is_empty(), "a bundle comes if and only if there is no error");
    errors
}

/// The policies of DESIGN's examples.
pub(crate) const EGRESS: &str = r#"
@id("payments-to-prod-db") @owner("o") @reason("r")
permit (principal == ServiceAccount::"payments", action == Action::"connect", resource in Destination::"prod-db");

@id("platform-internal-tls") @owner("o") @reason("r")
permit (principal in Team::"platform", action == Action::"connect", resource in Destination::"corp-internal")
when { context.protocol == "tcp" && [443, 8443].contains(context.port) };

@id("report-business-hours") @owner("o") @reason("r")
permit (principal == ServiceAccount::"report", action == Action::"connect", resource in Destination::"warehouse")
when { context.hour >= 7 && context.hour < 19 && context.weekday <= 5 };

@id("high-risk-block-prod") @owner("o") @reason("r")
forbid (principal, action == Action::"connect", resource in Destination::"prod")
when { context.risk >= 80 };

@id("medium-risk-new-destination") @owner("o") @reason("r")
@decision("escalate")
forbid (principal, action == Action::"connect", resource)
when { context.risk >= 50 && context.new_destination };

@id("watch-nonstandard-tls") @owner("o") @reason("r")
@mode("observe")
forbid (principal, action == Action::"connect", resource in Destination::"corp-internal")
when { context.port == 8443 };
"#;
