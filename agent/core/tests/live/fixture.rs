//! One small host: its configuration, its callers, and its clock.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use writ_core::config::{
    Account, Agent, Config, Destination, Fsync, Kernel, LogSettings, Match, Mode, OnRecordLoss, Paths, Sessions,
    SignalKind,
};
use writ_core::diagnostic::Location;
use writ_core::signal::{Caller, Incoming, RiskRule};
use writ_core::stance::{AccountLive, GrantRequest, LiveState, Situation};

pub(crate) const POLICY: &str = "sha256-policy";
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Seconds after an ordinary moment.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + second).unwrap()
}

/// Accounts `billing` (user `svc-billing`) and `agent`; destination `prod-db`; kinds by what they are for.
pub(crate) fn config() -> Config {
    let account = |name: &str, user: &str| Account {
        name: name.into(),
        owner: None,
        teams: Vec::new(),
        matches: vec![Match { user: Some(user.into()), ..Match::default() }],
        executables: Vec::new(),
        requires_fresh: vec!["edr.heartbeat".into()],
        on_record_loss: OnRecordLoss::Allow,
        errno: 13,
        mode: None,
        learning: None,
        revoke_grants_on: vec!["workload.*".into()],
        attributes: BTreeMap::new(),
        at: Location::of("service-accounts.d/all.toml", "", 0, 0),
    };
    let kind = |kind: &str, risk: u8, ttl: Duration, flag: bool, freshness: bool, from: &[&str]| SignalKind {
        kind: kind.into(),
        risk,
        ttl,
        flag,
        from: from.iter().map(|&name| name.to_owned()).collect(),
        freshness,
        ends_sessions: false,
        at: None,
    };
    let kinds = [
        kind("edr.malware", 90, HOUR, true, false, &["edr-agent", "%responders"]),
        kind("edr.suspicion", 40, HOUR, false, false, &["edr-agent"]),
        kind("edr.heartbeat", 0, 5 * MINUTE, false, true, &["edr-agent", "svc-self"]),
        kind("self.report", 30, HOUR, false, false, &["svc-billing", "root"]),
        kind("workload.shell", 60, 10 * MINUTE, true, false, &[]),
        kind("maintenance", 0, HOUR, true, false, &["%responders"]),
    ];
    let named = |name: &str| Destination {
        name: name.into(),
        addresses: vec!["10.20.0.0/16".parse().unwrap()],
        names: Vec::new(),
        ports: vec![(5432, 5432)],
        protocols: Vec::new(),
        parents: Vec::new(),
        at: None,
    };
    Config {
        agent: Agent {
            mode: Mode::Enforce,
            label: None,
            approvers: vec!["root".into(), "%security".into()],
            operators: vec!["ops".into()],
            escalation_ttl: HOUR,
            grant_max_ttl: 8 * HOUR,
            on_escalation: Vec::new(),
            risk: Default::default(),
            time_zone: "UTC".into(),
            nat64: Vec::new(),
            paths: Paths {
                state: String::new(),
                log: String::new(),
                socket: String::new(),
                drop: None,
                pins: String::new(),
                cgroup: None,
            },
            kernel: Kernel { require: Vec::new(), ring_size: 1 << 24 },
            log: LogSettings { fsync: Fsync::Checkpoint, segment_size: 1 << 26, ..LogSettings::default() },
            sessions: Sessions::default(),
            sinks: BTreeMap::new(),
            ssf: BTreeMap::new(),
            https: None,
        },
        accounts: [account("billing", "svc-billing"), account("agent", "svc-agent"), account("selfie", "svc-self")]
            .map(|account| (account.name.clone(), account))
            .into(),
        destinations: [("prod-db".to_owned(), named("prod-db"))].into(),
        signals: kinds.map(|kind| (kind.kind.clone(), kind)).into(),
        policies: Vec::new(),
        schemas: Vec::new(),
    }
}

/// A caller by user name and uid, being none of the accounts.
pub(crate) fn user(name: &str, uid: u32) -> Caller {
    Caller { uid, loginuid: Some(uid), name: Some(name.into()), ..Caller::default() }
}

pub(crate) fn root() -> Caller {
    user("root", 0)
}

pub(crate) fn edr() -> Caller {
    user("edr-agent", 900)
}

/// Root, as reached by a process of the account.
pub(crate) fn root_of(account: &str) -> Caller {
    Caller { accounts: vec![account.into()], ..root() }
}

/// A person of the security team.
pub(crate) fn security() -> Caller {
    Caller { groups: vec!["security".into()], ..user("ada", 1000) }
}

/// The user of the account, as its processes run.
pub(crate) fn workload(account: &str) -> Caller {
    let name = if account == "selfie" { "svc-self".to_owned() } else { format!("svc-{account}") };
    Caller { accounts: vec![account.into()], ..user(&name, 500) }
}

pub(crate) fn signal(account: &str, kind: &str) -> Incoming {
    Incoming { account: account.into(), kind: kind.into(), ..Incoming::default() }
}

pub(crate) fn grant(account: &str, to: &str, ttl: Duration) -> GrantRequest {
    GrantRequest {
        account: account.into(),
        destination: to.parse().unwrap(),
        executable: None,
        ttl,
        reason: "incident 7".into(),
        ticket: Some("OPS-7".into()),
    }
}

pub(crate) fn account<'a>(live: &'a LiveState, name: &'a str, now: Timestamp, config: &'a Config) -> AccountLive<'a> {
    live.account(name, now, config, RiskRule::Maximum, POLICY)
}

pub(crate) fn situation(live: &LiveState, name: &str, now: Timestamp, config: &Config) -> Situation {
    account(live, name, now, config).situation(now)
}
