//! A compiled configuration: validated policies, indexed by account, with everything needed to ask and to archive them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use cedar_policy::{Authorizer, PolicySet, Schema, ValidationMode, Validator};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use writ_abi::{Address, Family, NAT64_PREFIXES, Nat64Prefix, Protocol, Verdict};

use super::account::{self, AccountPolicy};
use super::classes::{Classes, ancestors};
use super::inputs::Inputs;
use super::judge::Evaluation;
use super::moment::Moment;
use super::parse::{self, Parsed, PolicyInfo};
use super::question::{Names, Question, Subject};
use super::row::{self, Row, StateKey};
use super::state::{AccountState, Approval};
use super::{MOST_CELLS, UNLISTED, finding, schema, source};
use crate::config::{Config, Destination, SourceFile};
use crate::diagnostic::{Diagnostic, Severity};
use crate::table::Identities;

/// One attempt as Cedar is asked about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// `Action::"connect"`
    Connect {
        /// The address; judged in its canonical form.
        ip: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// Whether the account has not been there before.
        new_destination: bool,
        /// Path of the executable, if known.
        executable: Option<String>,
    },
    /// `Action::"open-socket"`
    OpenSocket {
        /// The family.
        family: Family,
    },
}

/// A configuration compiled and found free of errors.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub(crate) authorizer: Authorizer,
    pub(crate) names: Names,
    pub(crate) destinations: BTreeMap<String, Destination>,
    pub(super) accounts: BTreeMap<String, AccountPolicy>,
    policies: BTreeMap<String, PolicyInfo>,
    order: Vec<String>,
    inputs: Inputs,
    executables: BTreeSet<String>,
    classes: Arc<Classes>,
    zone: TimeZone,
    nat64: [Nat64Prefix; NAT64_PREFIXES],
    schema: String,
    entities: String,
    digest: String,
}

/// A digest as files in the archive are named after it.
pub(crate) fn named(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().fold(String::from("sha256-"), |name, byte| format!("{name}{byte:02x}"))
}

impl Bundle {
    /// Compiles a configuration: the bundle, if there is no error, and every finding.
    pub fn compile(config: &Config) -> (Option<Self>, Vec<Diagnostic>) {
        Self::compile_with(config, &[])
    }

    /// Compiles a configuration with further policies: grants, as [`super::Grant::source`] renders them.
    pub fn compile_with(config: &Config, extra: &[SourceFile]) -> (Option<Self>, Vec<Diagnostic>) {
        let mut findings = Vec::new();
        let bundle = compile(config, extra, &mut findings);
        let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
        (bundle.filter(|_| !refused), findings)
    }

    /// Digest over policies, schema, destinations and accounts as evaluated; the name of the archived set.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The policies by id.
    pub fn policies(&self) -> &BTreeMap<String, PolicyInfo> {
        &self.policies
    }

    /// Ids of the policies that can match an account, in file order.
    pub fn policies_of(&self, account: &str) -> &[String] {
        self.accounts.get(account).map_or(&[], |account| &account.shared.policies)
    }

    /// Whether the account is declared.
    pub fn has_account(&self, account: &str) -> bool {
        self.accounts.contains_key(account)
    }

    /// Whether some policy asks for the executable.
    pub fn classes_executables(&self) -> bool {
        self.inputs.classes_executables()
    }

    /// The classes without any approval.
    pub fn classes(&self) -> &Arc<Classes> {
        &self.classes
    }

    /// The classes that tell these approved endpoints apart, by account.
    pub fn classes_with(
        &self,
        mut approvals: BTreeMap<String, BTreeSet<Approval>>,
    ) -> Result<Arc<Classes>, Box<Diagnostic>> {
        approvals.retain(|_, approvals| !approvals.is_empty());
        if approvals.is_empty() {
            return Ok(Arc::clone(&self.classes));
        }
        Classes::build(&self.inputs, &self.destinations, &self.executables, approvals).map(Arc::new)
    }

    /// The text of all policies as evaluated, loadable by the stock `cedar`; its verdict is the would-be one.
    pub fn archived_policies(&self) -> String {
        self.archive(|_| true)
    }

    /// The same without observe-mode policies: `cedar` gives the enforced verdict (a deny may be an escalation).
    pub fn archived_enforced_policies(&self) -> String {
        self.archive(|policy| !policy.observes)
    }

    /// The schema's text.
    pub fn archived_schema(&self) -> &str {
        &self.schema
    }

    /// Destinations and accounts as JSON: what entities are made of.
    pub fn archived_entities(&self) -> &str {
        &self.entities
    }

    /// Ids of the policies whose refusal a person may lift.
    pub fn escalating(&self) -> BTreeSet<&str> {
        self.policies.values().filter(|policy| policy.escalates).map(|policy| policy.id.as_str()).collect()
    }

    /// The first instant after `now` at which time alone may change what an account may do; `None`: never.
    pub fn next_boundary(&self, account: &str, now: Timestamp) -> Option<Timestamp> {
        self.accounts.get(account)?.shared.inputs.times.next_boundary(now, &self.zone)
    }

    /// The destinations an endpoint is in, parents included.
    pub fn groups_of(&self, ip: IpAddr, port: u16, protocol: Protocol) -> BTreeSet<String> {
        let ip = self.canonical(ip);
        self.destinations
            .values()
            .filter(|destination| destination.addresses.iter().any(|prefix| prefix.contains(&ip)))
            .filter(|destination| {
                destination.ports.is_empty()
                    || destination.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
            })
            .filter(|destination| destination.protocols.is_empty() || destination.protocols.contains(&protocol))
            .flat_map(|destination| ancestors(&destination.name, &self.destinations))
            .collect()
    }

    /// The form in which an address is judged: see [`writ_abi::Address::canonical`].
    pub fn canonical(&self, ip: IpAddr) -> IpAddr {
        let address = match ip {
            IpAddr::V4(ip) => Address::from_v4(ip.octets()),
            IpAddr::V6(ip) => Address(ip.octets()),
        }
        .canonical(&self.nat64);
        match address.v4() {
            Some(octets) => IpAddr::from(octets),
            None => IpAddr::V6(Ipv6Addr::from(address.0)),
        }
    }

    /// Asks Cedar about one attempt, without classes: the reference for rows, and what replay and simulate use.
    pub fn evaluate(&self, account: &str, state: &AccountState, attempt: &Attempt) -> Evaluation {
        let asked = self
            .ask(account, state, attempt, |policy, question| policy.evaluate(&self.authorizer, &self.names, question));
        asked.unwrap_or_else(|| Evaluation::plain(Verdict::Deny))
    }

    /// The request in the form that `cedar authorize --request-json` takes; `None` if there is no such account.
    pub fn cedar_request(&self, account: &str, state: &AccountState, attempt: &Attempt) -> Option<Value> {
        self.ask(account, state, attempt, |_, question| question.request_json())
    }

    /// The entities in the form that `cedar authorize --entities` takes; `None` if there is no such account.
    pub fn cedar_entities(&self, account: &str, attempt: &Attempt) -> Option<Value> {
        let state = AccountState::quiet(Timestamp::UNIX_EPOCH);
        self.ask(account, &state, attempt, |_, question| question.entities_json())
    }

    /// The account's row in a state: every class of attempts, asked once each. An unknown account's row denies.
    pub fn row(&self, account: &str, state: &AccountState) -> Row {
        let state = self.canonical_state(state);
        let approvals = BTreeMap::from([(account.to_owned(), state.approvals.iter().cloned().collect())]);
        match self.classes_with(approvals) {
            Ok(classes) => self.row_over(&classes, account, &state, self.moment(&state)),
            Err(finding) => Row::denied(&self.classes, Some(finding.message)),
        }
    }

    /// The same over classes that were built before. The state's approvals must be among those of the classes.
    pub(crate) fn row_over(&self, classes: &Classes, account: &str, state: &AccountState, moment: Moment) -> Row {
        match self.accounts.get(account) {
            Some(policy) => row::row(self, classes, policy, state, moment),
            None => Row::denied(classes, None),
        }
    }

    /// What of a state an account's policies can see; `None` if there is no such account.
    pub(crate) fn state_key(&self, account: &str, state: &AccountState, moment: &Moment) -> Option<StateKey> {
        Some(StateKey::new(self.accounts.get(account)?, state, moment))
    }

    /// The moment of a state.
    pub(crate) fn moment(&self, state: &AccountState) -> Moment {
        Moment::at(state.now, &self.zone)
    }

    /// One moment for each class of moments an account can meet from `from` until `until` (milliseconds).
    pub(crate) fn reachable(
        &self,
        account: &str,
        from: &Moment,
        until: Option<i64>,
        limit: usize,
    ) -> Option<Vec<Moment>> {
        self.accounts.get(account)?.shared.inputs.times.reachable(from, until, limit)
    }

    /// The state with its approved addresses in canonical form.
    pub(crate) fn canonical_state(&self, state: &AccountState) -> AccountState {
        let mut state = state.clone();
        for approval in &mut state.approvals {
            approval.address = self.canonical(approval.address);
        }
        state
    }

    fn archive(&self, keep: impl Fn(&PolicyInfo) -> bool) -> String {
        let kept = self.order.iter().filter_map(|id| self.policies.get(id)).filter(|policy| keep(policy));
        kept.map(|policy| format!("{}\n\n", policy.text)).collect()
    }

    fn ask<T>(
        &self,
        account: &str,
        state: &AccountState,
        attempt: &Attempt,
        answer: impl FnOnce(&AccountPolicy, &Question<'_>) -> T,
    ) -> Option<T> {
        let policy = self.accounts.get(account)?;
        let state = self.canonical_state(state);
        let groups;
        let (subject, executable, approvals) = match attempt {
            Attempt::OpenSocket { family } => (Subject::OpenSocket(*family), UNLISTED, BTreeSet::new()),
            Attempt::Connect { ip, port, protocol, new_destination, executable } => {
                groups = self.groups_of(*ip, *port, *protocol);
                let (ip, port, protocol, new_destination) = (self.canonical(*ip), *port, *protocol, *new_destination);
                let path = executable.as_deref();
                let name = path.filter(|path| self.executables.contains(*path)).unwrap_or(UNLISTED);
                let approvals = state.approved(ip, port, protocol, path);
                (Subject::Connect { ip, port, protocol, new_destination, groups: &groups }, name, approvals)
            }
        };
        let question = Question {
            account: &policy.account,
            subject,
            executable,
            risk: state.risk,
            signals: &state.signals,
            fresh: &state.fresh,
            approvals,
            moment: self.moment(&state),
        };
        Some(answer(policy, &question))
    }
}

fn compile(config: &Config, extra: &[SourceFile], findings: &mut Vec<Diagnostic>) -> Option<Bundle> {
    let zone = zone(config, findings);
    let (schema_text, schema) = match schema::build(config) {
        Ok((text, schema)) => (text, Some(schema)),
        Err(errors) => {
            findings.extend(errors);
            (String::new(), None)
        }
    };
    let known = |name: &str| config.destinations.contains_key(name);
    let mut policies: Vec<Parsed<'_>> = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    for statement in config.policies.iter().chain(extra).flat_map(source::statements) {
        let Some(parsed) = parse::policy(statement, &known, findings) else { continue };
        match ids.get(&parsed.info.id).and_then(|first| policies.get(*first)) {
            Some(first) => findings.push(duplicate(&parsed, first)),
            None => {
                ids.insert(parsed.info.id.clone(), policies.len());
                policies.push(parsed);
            }
        }
    }
    let schema = schema?;
    validate(&policies, schema, findings);
    let names = Names::new()?;
    let accounts = account::index(config, &policies, &names, findings);

    findings.extend(Identities::check(config));

    let mut inputs = Inputs::default();
    for parsed in &policies {
        inputs.merge(&parsed.inputs);
    }
    let executables = executables(config, &inputs);
    let classes = match Classes::build(&inputs, &config.destinations, &executables, BTreeMap::new()) {
        Ok(classes) => Arc::new(classes),
        Err(finding) => {
            findings.push(*finding);
            return None;
        }
    };
    let entities = entities(config);
    let order: Vec<String> = policies.iter().map(|parsed| parsed.info.id.clone()).collect();
    let mut bundle = Bundle {
        authorizer: Authorizer::new(),
        names,
        destinations: config.destinations.clone(),
        accounts,
        policies: policies.into_iter().map(|parsed| (parsed.info.id.clone(), parsed.info)).collect(),
        order,
        inputs,
        executables,
        classes,
        zone: zone?,
        nat64: nat64(config),
        schema: schema_text,
        entities,
        digest: String::new(),
    };
    bundle.digest = digest([&bundle.archived_policies(), &bundle.schema, &bundle.entities]);
    if findings.iter().all(|finding| finding.severity != Severity::Error) {
        check_rows(&bundle, config, findings);
    }
    Some(bundle)
}

fn zone(config: &Config, findings: &mut Vec<Diagnostic>) -> Option<TimeZone> {
    let name = config.agent.time_zone.as_str();
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    let zone = TimeZone::get(name);
    if zone.is_err() {
        findings.push(
            Diagnostic::error("time-zone", format!("time zone `{name}` is not known on this host"))
                .help("write an IANA name as `Europe/Berlin`, and install the zone files (tzdata)"),
        );
    }
    zone.ok()
}

fn nat64(config: &Config) -> [Nat64Prefix; NAT64_PREFIXES] {
    let mut prefixes = [Nat64Prefix::default(); NAT64_PREFIXES];
    for (entry, configured) in prefixes.iter_mut().zip(&config.agent.nat64) {
        let octets = configured.network().octets();
        if let Some(prefix) = octets.first_chunk() {
            *entry = Nat64Prefix { prefix: *prefix, used: 1 };
        }
    }
    prefixes
}

fn duplicate(parsed: &Parsed<'_>, first: &Parsed<'_>) -> Diagnostic {
    let at = parsed.statement.annotation("id").unwrap_or_else(|| parsed.statement.head());
    let other = &first.info.at;
    Diagnostic::error("policy-id", format!("policy id `{}` is used twice", parsed.info.id))
        .help(format!("give it another `@id`: the first is at {}:{}:{}", other.file, other.line, other.column))
        .policy(&parsed.info.id)
        .at(at)
}

/// Cedar's own strict validation, of the policies as evaluated.
fn validate(policies: &[Parsed<'_>], schema: Schema, findings: &mut Vec<Diagnostic>) {
    let Ok(set) = PolicySet::from_policies(policies.iter().map(|parsed| parsed.policy.clone())) else { return };
    let by_id: BTreeMap<&str, &Parsed<'_>> = policies.iter().map(|parsed| (parsed.info.id.as_str(), parsed)).collect();
    let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
    let mut add = |id: &str, error: &dyn miette::Diagnostic, severity: Severity| {
        let parsed = by_id.get(id);
        let locate = |offset: usize, length: usize| {
            let statement = &parsed?.statement;
            // Past the end is the clause that writ added.
            let written = offset + length <= statement.text.len();
            Some(if written { statement.location(offset..offset + length) } else { statement.head() })
        };
        let mut finding = finding::from_cedar("policy-invalid", error, &locate);
        finding.severity = severity;
        finding.at = finding.at.or_else(|| Some(parsed?.statement.head()));
        findings.push(finding.policy(id));
    };
    for error in result.validation_errors() {
        add(error.policy_id().as_ref(), error, Severity::Error);
    }
    for warning in result.validation_warnings() {
        add(warning.policy_id().as_ref(), warning, Severity::Warning);
    }
}

/// Every executable that something names: each is a class of its own.
fn executables(config: &Config, inputs: &Inputs) -> BTreeSet<String> {
    let accounts = config.accounts.values();
    let approved = accounts.clone().flat_map(|account| account.executables.iter().cloned());
    let matched = accounts.flat_map(|account| account.matches.iter().filter_map(|found| found.executable.clone()));
    let named = inputs.executables.iter().filter(|path| *path != UNLISTED).cloned();
    approved.chain(matched).chain(named).collect()
}

/// Destinations and accounts in one canonical form.
fn entities(config: &Config) -> String {
    let destinations: BTreeMap<&String, Value> = config
        .destinations
        .iter()
        .map(|(name, destination)| {
            let protocols: Vec<&str> = destination.protocols.iter().map(|protocol| protocol.name()).collect();
            let value = json!({
                "addresses": destination.addresses,
                "names": destination.names,
                "ports": destination.ports,
                "protocols": protocols,
                "in": destination.parents,
            });
            (name, value)
        })
        .collect();
    let accounts: BTreeMap<&String, Value> = config
        .accounts
        .iter()
        .map(|(name, account)| {
            let value = json!({
                "owner": account.owner,
                "team": account.teams,
                "executables": account.executables,
                "attributes": account.attributes,
            });
            (name, value)
        })
        .collect();
    let nat64: Vec<String> = config.agent.nat64.iter().map(ToString::to_string).collect();
    let all = json!({
        "destinations": destinations,
        "service_accounts": accounts,
        "time_zone": config.agent.time_zone,
        "nat64": nat64,
    });
    format!("{all:#}\n")
}

fn digest(parts: [&str; 3]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    named(hash)
}

/// A resolver of the host that an account with policies cannot reach in its calmest state.
fn unreachable_resolver(bundle: &Bundle, policy: &AccountPolicy) -> Option<IpAddr> {
    if policy.shared.policies.is_empty() {
        return None;
    }
    let fresh = policy.account.requires_fresh.iter().cloned().collect();
    let state = AccountState { fresh, ..AccountState::quiet(Timestamp::UNIX_EPOCH) };
    let mut resolvers = bundle.destinations.get("host-resolvers")?.addresses.iter().map(ipnet::IpNet::addr);
    resolvers.find(|resolver| {
        let ask = Attempt::Connect {
            ip: *resolver,
            port: 53,
            protocol: Protocol::Udp,
            new_destination: false,
            executable: policy.account.executables.first().cloned(),
        };
        bundle.evaluate(&policy.account.name, &state, &ask).verdict != Verdict::Allow
    })
}

/// Refuses rows that are too large, and policies that fail for some connect: Cedar would skip a forbid that fails.
fn check_rows(bundle: &Bundle, config: &Config, findings: &mut Vec<Diagnostic>) {
    let signals = config.signals.values().filter(|kind| kind.flag).map(|kind| kind.kind.clone()).collect();
    let quiet = AccountState::quiet(Timestamp::UNIX_EPOCH);
    let loud = AccountState { risk: 100, signals, ..quiet.clone() };
    let mut failing: BTreeMap<String, String> = BTreeMap::new();
    for (name, policy) in &bundle.accounts {
        let cells = row::cells(bundle, &bundle.classes, policy);
        if cells > MOST_CELLS {
            findings.push(
                Diagnostic::error(
                    "row-too-large",
                    format!("the policies of `{name}` make {cells} cells; {MOST_CELLS} is the limit"),
                )
                .help("put addresses that are treated alike into one destination, and ports into ranges")
                .at(policy.account.at.clone()),
            );
            continue;
        }
        if let Some(resolver) = unreachable_resolver(bundle, policy) {
            findings.push(
                Diagnostic::warning(
                    "resolvers-unreachable",
                    format!("`{name}` cannot ask the resolver {resolver}: names will not resolve for it"),
                )
                .help("permit `resource in Destination::\"host-resolvers\"` for it, if it resolves names")
                .at(policy.account.at.clone()),
            );
        }
        if !policy.shared.inputs.fallible {
            continue;
        }
        for state in [&quiet, &loud] {
            let row = bundle.row_over(&bundle.classes, name, state, bundle.moment(state));
            for id in row.explanations.iter().flat_map(|explanation| &explanation.errors) {
                failing.entry(id.clone()).or_insert_with(|| name.clone());
            }
        }
    }
    for (id, account) in failing {
        let mut finding = Diagnostic::error(
            "policy-fails",
            format!("policy `{id}` fails when evaluated for `{account}`: Cedar would skip it, a forbid too"),
        )
        .help("keep sums and products small, and do not read attributes of entities other than the principal")
        .policy(&id);
        finding.at = bundle.policies.get(&id).map(|policy| policy.at.clone());
        findings.push(finding);
    }
}
