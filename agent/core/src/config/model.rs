//! The configuration as the rest of writ sees it: parsed once into final types, defaults filled in.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};
use writ_abi::Protocol;

use super::fault::nearest;
use crate::diagnostic::Location;
use crate::signal::RiskRule;

/// One configuration file as read: its name as the operator knows it, and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceFile {
    /// Path below the configuration directory, with `/`.
    pub name: String,
    /// Contents.
    pub text: String,
}

/// Everything below `/etc/writ`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `writ.toml`
    pub agent: Agent,
    /// `service-accounts.d/*.toml`, by name.
    pub accounts: BTreeMap<String, Account>,
    /// `destinations.d/*.toml` by name, `loopback` and `host-resolvers` included.
    pub destinations: BTreeMap<String, Destination>,
    /// `signals.d/*.toml`, by kind.
    pub signals: BTreeMap<String, SignalKind>,
    /// `policies.d/*.cedar`, in name order.
    pub policies: Vec<SourceFile>,
    /// `schema.d/*.cedarschema`, in name order.
    pub schemas: Vec<SourceFile>,
}

impl Config {
    /// That no account has this name, and which one may have been meant. For those who may know which there are.
    pub fn no_such_account(&self, name: &str) -> String {
        no_such("service account", name, self.accounts.keys())
    }

    /// The same of a destination.
    pub fn no_such_destination(&self, name: &str) -> String {
        no_such("destination", name, self.destinations.keys())
    }
}

fn no_such<'a>(kind: &str, name: &str, names: impl Iterator<Item = &'a String>) -> String {
    match nearest(name, names.map(String::as_str)) {
        Some(near) => format!("no {kind} `{name}` is declared; did you mean `{near}`?"),
        None => format!("no {kind} `{name}` is declared"),
    }
}

/// Whether verdicts are enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A refusal refuses.
    #[default]
    Enforce,
    /// A refusal is only reported.
    Observe,
}

/// `writ.toml`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// The mode of accounts that set none.
    pub mode: Mode,
    /// What `status` shows this configuration as.
    pub label: Option<String>,
    /// Who may approve, grant, offboard: user names, or `%group`.
    pub approvers: Vec<String>,
    /// Who may send signals and reload: user names, or `%group`.
    pub operators: Vec<String>,
    /// How long an escalation waits for an answer.
    pub escalation_ttl: Duration,
    /// The longest grant that can be made.
    pub grant_max_ttl: Duration,
    /// What is run for each new escalation, program first; empty: nothing.
    pub on_escalation: Vec<String>,
    /// How the risks of live signals add up.
    pub risk: RiskRule,
    /// IANA zone of `hour`, `minute` and `weekday`; `UTC` unless configured.
    pub time_zone: String,
    /// NAT64 prefixes (/96) whose addresses are judged as IPv4.
    pub nat64: Vec<Ipv6Net>,
    /// Where things lie.
    pub paths: Paths,
    /// What is asked of the kernel.
    pub kernel: Kernel,
    /// How the log is kept.
    pub log: LogSettings,
    /// What happens to connections that are open already.
    pub sessions: Sessions,
    /// Where records are sent besides the log, by name.
    pub sinks: BTreeMap<String, Sink>,
    /// Who may push security event tokens, by issuer.
    pub ssf: BTreeMap<String, Transmitter>,
    /// The decision point for other hosts; `None`: on the socket only.
    pub https: Option<Https>,
}

/// `[https]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Https {
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// The file with its certificate chain (PEM).
    pub certificate: String,
    /// The file with its private key (PEM).
    pub key: String,
    /// The file with the authorities of clients' certificates (PEM).
    pub client_ca: Option<String>,
    /// The file with names of callers and hashes of their tokens.
    pub tokens: Option<String>,
    /// What callers call it by, in its metadata: `https://HOST[:PORT]`.
    pub origin: String,
    /// Who may call, by name.
    pub callers: BTreeMap<String, HttpsCaller>,
}

/// `[https.callers.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpsCaller {
    /// The service account as which it asks.
    pub account: String,
    /// Its certificate: a DNS name in it, or `sha256-HEX` over all of it.
    pub certificate: Option<String>,
}

/// `[ssf."ISSUER"]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmitter {
    /// Its public keys: a file, or an https URL (http to this host only).
    pub jwks: String,
    /// The file of authorities that its servers' certificates are verified with.
    pub ca: String,
    /// The audience its tokens are for.
    pub audience: String,
    /// Accounts by subject, as `docs/signals.md` writes subjects.
    pub subjects: BTreeMap<String, String>,
    /// Signal kinds by event type, where the default is not wanted.
    pub events: BTreeMap<String, String>,
    /// Members of complex subjects that must be understood, or the event is dropped.
    pub critical: Vec<String>,
    /// The kind of signal that every account of `subjects` gets when the stream was verified: its freshness.
    pub heartbeat: Option<String>,
    /// How the stream is verified.
    pub verification: Option<Verification>,
}

/// What the kinds begin with that events are without `events` saying so.
const DEFAULT_KINDS: [&str; 3] = ["caep.", "risc.", "ssf."];

impl Transmitter {
    /// Whether some event of it is a signal of this kind: as `events` maps, as types map by themselves, or its heartbeat.
    pub fn sends(&self, kind: &str) -> bool {
        self.events.values().chain(&self.heartbeat).any(|mapped| mapped == kind)
            || DEFAULT_KINDS.iter().any(|prefix| kind.starts_with(prefix))
    }
}

/// How a transmitter is asked for verification events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verification {
    /// Its verification endpoint.
    pub endpoint: String,
    /// The stream's id.
    pub stream: String,
    /// The file with the `Authorization` header it wants.
    pub authorization: Option<String>,
    /// How often.
    pub every: Duration,
}

/// `[sink.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sink {
    /// What it is.
    pub kind: SinkKind,
    /// The types of record it is sent; empty: all.
    pub types: Vec<String>,
}

/// What a sink is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SinkKind {
    /// OCSF events, one a line.
    OcsfFile {
        /// The file.
        path: String,
        /// It is closed and renamed at this size in bytes.
        rotate_size: u64,
        /// How many files so renamed are kept.
        keep: u32,
    },
    /// The systemd journal.
    Journald {
        /// Its socket for native messages.
        socket: String,
    },
}

/// `[paths]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// State that outlives the daemon.
    pub state: String,
    /// The log directory.
    pub log: String,
    /// The API's socket.
    pub socket: String,
    /// Where files become signals; `None`: nowhere.
    pub drop: Option<String>,
    /// Pinned maps and links, on a bpf file system.
    pub pins: String,
    /// The cgroup whose processes are judged; `None`: the root of the cgroup2 mount.
    pub cgroup: Option<String>,
}

/// `[kernel]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// Coverage without which writ refuses to run, e.g. `lsm`.
    pub require: Vec<String>,
    /// Bytes of the decision ring; a power of two and a multiple of the page size.
    pub ring_size: u32,
}

/// `[log]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// When lines are forced to the disk.
    pub fsync: Fsync,
    /// A segment is closed at this size in bytes.
    pub segment_size: u64,
    /// A segment that was begun longer ago is closed, whatever its size.
    pub segment_age: Duration,
    /// Closed segments older than this may be removed; `None` keeps them.
    pub retention: Option<Duration>,
    /// The file with the log's private key; `None`: a credential of the service, or one made at the first start.
    pub key: Option<String>,
}

/// `[sessions]`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sessions {
    /// What becomes of a connection that was open before writ judged, where policy refuses it.
    pub at_start: AtStart,
}

/// What becomes of a refused connection that was open already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtStart {
    /// It is recorded, and goes on until its account's access is tightened.
    #[default]
    Observe,
    /// It is recorded, and cut.
    Cut,
}

/// When written lines are forced to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fsync {
    /// With every batch of lines.
    Always,
    /// With every checkpoint (each second, each 512 records, on stop).
    #[default]
    Checkpoint,
    /// Never by writ.
    Never,
}

/// What happens to an account's connect when its record cannot be handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRecordLoss {
    /// The verdict stands and the loss is counted.
    #[default]
    Allow,
    /// No record means no access.
    Deny,
}

/// `[service-account.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Its teams.
    pub teams: Vec<String>,
    /// How its processes are found: any of these.
    pub matches: Vec<Match>,
    /// Approved executables; empty: any.
    pub executables: Vec<String>,
    /// Signal kinds that must be fresh.
    pub requires_fresh: Vec<String>,
    /// What a lost record means.
    pub on_record_loss: OnRecordLoss,
    /// The errno of a refusal, by number.
    pub errno: u16,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// How long its baseline is learnt.
    pub learning: Option<Duration>,
    /// Signal kinds (with `*`) that end its grants for good.
    pub revoke_grants_on: Vec<String>,
    /// Free attributes for policies (`[service-account.NAME.attributes]`).
    pub attributes: BTreeMap<String, Attribute>,
    /// Where it is declared.
    pub at: Location,
}

impl Account {
    /// The mode in force for the account.
    pub fn effective_mode(&self, global: Mode) -> Mode {
        self.mode.unwrap_or(global)
    }
}

/// A free attribute of an account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    /// `Bool`
    Bool(bool),
    /// `Long`
    Long(i64),
    /// `String`
    Text(String),
}

/// One way to recognise an account's processes: all keys that are set must match.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Match {
    /// User name, or a uid in digits.
    pub user: Option<String>,
    /// systemd system unit.
    pub unit: Option<String>,
    /// cgroup path below the cgroup2 mount, starting with `/`.
    pub cgroup: Option<String>,
    /// Absolute path of the executable.
    pub executable: Option<String>,
}

/// `[destination.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Its name.
    pub name: String,
    /// Prefixes, truncated to their network; IPv4-mapped ones as IPv4.
    pub addresses: Vec<IpNet>,
    /// Host names; refused until they are implemented.
    pub names: Vec<String>,
    /// Inclusive port ranges; empty: any.
    pub ports: Vec<(u16, u16)>,
    /// Protocols; empty: any.
    pub protocols: Vec<Protocol>,
    /// Parents, as declared (not flattened).
    pub parents: Vec<String>,
    /// Where it is declared; `None` for built-in destinations.
    pub at: Option<Location>,
}

/// `[signal.KIND]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignalKind {
    /// The kind.
    pub kind: String,
    /// Risk contribution, 0–100.
    pub risk: u8,
    /// Time to live where the sender gives none, and the longest it can give.
    pub ttl: Duration,
    /// Whether it appears in `context.signals`.
    pub flag: bool,
    /// Who may send it: user names, or `%group`; empty: root and operators.
    pub from: Vec<String>,
    /// Whether its presence is what `requires-fresh` asks for.
    pub freshness: bool,
    /// Whether it ends the account's sessions that were opened before it was observed.
    pub ends_sessions: bool,
    /// Where it is declared; `None` for built-in kinds.
    pub at: Option<Location>,
}
