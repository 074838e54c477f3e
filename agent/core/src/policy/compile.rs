//! From a configuration to a bundle: parse, validate, index, class, and refuse what would not decide as written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cedar_policy::{Authorizer, PolicySet, Schema, ValidationMode, ValidationResult, Validator};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use writ_abi::{Address, NAT64_PREFIXES, Nat64Prefix, Protocol, Verdict};

use super::account::{self, AccountPolicy};
use super::action::OwnActions;
use super::bundle::{Attempt, Bundle, named};
use super::classes::{Classes, ancestors};
use super::inputs::Inputs;
use super::judge::Judge;
use super::parse::{self, Parsed};
use super::places::Places;
use super::question::Names;
use super::source::Statement;
use super::state::AccountState;
use super::{MOST_CELLS, UNLISTED, annotation, cut, finding, further, kinds, row, schema, source};
use crate::config::{Config, SourceFile};
use crate::diagnostic::{Diagnostic, Severity};
use crate::table::Identities;

/// How many policies are validated in one go.
const VALIDATED_AT_ONCE: usize = 256;

/// Compiles; every finding is pushed. A bundle may come with errors found: it is not to be used then.
pub(super) fn compile(config: &Config, findings: &mut Vec<Diagnostic>) -> Option<Bundle> {
    let zone = zone(config, findings);
    let (schema_text, schema) = match schema::build(config) {
        Ok((text, schema)) => (text, Some(schema)),
        Err(errors) => {
            findings.extend(errors);
            (String::new(), None)
        }
    };
    let freshness = freshness(config);
    let (policies, refused) = read(config, &freshness, findings);
    let schema = schema?;
    validate(&policies, schema.clone(), findings);
    further::of_refused(config, &refused, schema.clone(), findings);
    empty_destinations(config, &policies, findings);
    kinds::unknown(config, &policies, findings);
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
    let outsiders = Judge::new(policies.iter().filter(|parsed| parsed.actions.others))?;
    let actions = match schema.action_entities() {
        Ok(actions) => actions,
        Err(error) => {
            findings.push(Diagnostic::error("schema", format!("the actions of the schema cannot be told: {error}")));
            return None;
        }
    };
    let own_actions = OwnActions::of(&schema_text, actions, policies.iter().map(|parsed| parsed.info.text.as_str()));
    let order: Vec<String> = policies.iter().map(|parsed| parsed.info.id.clone()).collect();
    let mut bundle = Bundle {
        authorizer: Authorizer::new(),
        names: Arc::new(names),
        destinations: Arc::new(config.destinations.clone()),
        places: Arc::new(Places::of(&config.destinations)),
        accounts,
        policies: Arc::new(policies.into_iter().map(|parsed| (parsed.info.id.clone(), parsed.info)).collect()),
        order: Arc::new(order),
        inputs: Arc::new(inputs),
        executables: Arc::new(executables),
        classes,
        granted: BTreeMap::new(),
        zone: zone?,
        nat64: nat64(config),
        own_actions: Arc::new(own_actions),
        outsiders: Arc::new(outsiders),
        schema: schema_text.into(),
        cedar_schema: Arc::new(schema),
        entities: entities.into(),
        digest: "".into(),
    };
    bundle.digest = digest([&bundle.archived_policies(), &bundle.schema, &bundle.entities]).into();
    if findings.iter().all(|finding| finding.severity != Severity::Error) {
        check_rows(&bundle, config, findings);
    }
    Some(bundle)
}

/// Every policy that can be used, with those of `more` behind them, and those that can be read and not be used.
pub(super) fn read<'a>(
    config: &'a Config,
    more: &'a [SourceFile],
    findings: &mut Vec<Diagnostic>,
) -> (Vec<Parsed<'a>>, Vec<Parsed<'a>>) {
    let mut policies: Vec<Parsed<'a>> = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    findings.extend(config.policies.iter().flat_map(|file| cut::bare_cr(file).into_iter().chain(cut::empty(file))));
    let statements: Vec<Statement<'a>> = config.policies.iter().chain(more).flat_map(source::statements).collect();
    #[cfg(test)]
    let mutation = super::mutation::current();
    // Each on its own, on every processor; in file order all the same.
    let read: Vec<(Option<Parsed<'a>>, Vec<Diagnostic>)> = statements
        .into_par_iter()
        .map(|statement| {
            // A fault is switched on for a thread, and this may be another.
            #[cfg(test)]
            let _guard = super::mutation::with(mutation);
            let known = |name: &str| config.destinations.contains_key(name);
            let mut found = Vec::new();
            (parse::policy(statement, &known, &mut found), found)
        })
        .collect();
    for (parsed, found) in read {
        findings.extend(found);
        let Some(parsed) = parsed else { continue };
        findings.extend(
            annotation::bad_id(&parsed).filter(|_| !more.iter().any(|file| std::ptr::eq(file, parsed.statement.file))),
        );
        match ids.get(&parsed.info.id).and_then(|first| policies.get(*first)) {
            Some(first) => findings.push(duplicate(&parsed, first)),
            None => {
                ids.insert(parsed.info.id.clone(), policies.len());
                policies.push(parsed);
            }
        }
    }
    policies.into_iter().partition(|parsed| !parsed.refused)
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

/// `requires-fresh` as the policy it is: a forbid while one of the kinds is stale.
fn freshness(config: &Config) -> Vec<SourceFile> {
    let accounts = config.accounts.values().filter(|account| !account.requires_fresh.is_empty());
    let render = |account: &crate::config::Account| {
        let quoted = schema::quoted;
        let kinds = account.requires_fresh.iter().map(|kind| quoted(kind)).collect::<Vec<_>>().join(", ");
        let id = quoted(&format!("requires-fresh:{}", account.name));
        let owner = quoted(account.owner.as_deref().unwrap_or("writ"));
        let reason = quoted(&format!("access needs fresh signals: {}", account.requires_fresh.join(", ")));
        let name = quoted(&account.name);
        let text = format!(
            "@id({id})\n@owner({owner})\n@reason({reason})\n\
             forbid (principal == ServiceAccount::{name}, action == Action::\"connect\", resource)\n\
             unless {{ context.fresh.containsAll([{kinds}]) }};\n"
        );
        SourceFile { name: format!("requires-fresh/{}.cedar", account.name), text }
    };
    accounts.map(render).collect()
}

/// The configured NAT64 prefixes as the kernel programs take them.
pub fn nat64(config: &Config) -> [Nat64Prefix; NAT64_PREFIXES] {
    let mut prefixes = [Nat64Prefix::default(); NAT64_PREFIXES];
    for (entry, configured) in prefixes.iter_mut().zip(&config.agent.nat64) {
        *entry = Nat64Prefix { prefix: Address::from_octets(configured.network().octets()), used: 1 };
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
pub(super) fn validate(policies: &[Parsed<'_>], schema: Schema, findings: &mut Vec<Diagnostic>) {
    let by_id: BTreeMap<&str, &Parsed<'_>> = policies.iter().map(|parsed| (parsed.info.id.as_str(), parsed)).collect();
    let validator = Validator::new(schema);
    // Cedar judges each policy by itself, so they may as well be judged in parts, on every processor.
    let results: Vec<ValidationResult> = policies
        .par_chunks(VALIDATED_AT_ONCE)
        .filter_map(|part| PolicySet::from_policies(part.iter().map(|parsed| parsed.policy.clone())).ok())
        .map(|set| validator.validate(&set, ValidationMode::Strict))
        .collect();
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
    for error in results.iter().flat_map(ValidationResult::validation_errors) {
        add(error.policy_id().as_ref(), error, Severity::Error);
    }
    for warning in results.iter().flat_map(ValidationResult::validation_warnings) {
        add(warning.policy_id().as_ref(), warning, Severity::Warning);
    }
}

/// A forbid on a destination without an address forbids nothing, and says nothing: the operator should know.
fn empty_destinations(config: &Config, policies: &[Parsed<'_>], findings: &mut Vec<Diagnostic>) {
    let filled = config.destinations.values().filter(|destination| !destination.addresses.is_empty());
    let filled: BTreeSet<String> =
        filled.flat_map(|destination| ancestors(&destination.name, &config.destinations)).collect();
    for parsed in policies {
        for name in parsed.inputs.destinations.difference(&filled) {
            findings.push(
                Diagnostic::warning(
                    "destination-empty",
                    format!(
                        "destination `{name}` has no addresses, nor has any in it: the policy matches nothing there"
                    ),
                )
                .help(format!("give `[destination.{name}]` addresses, or put others `in` it"))
                .policy(&parsed.info.id)
                .at(parsed.statement.literal(name).unwrap_or_else(|| parsed.statement.head())),
            );
        }
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

/// A resolver of the host that an account cannot reach in its calmest state.
fn unreachable_resolver(bundle: &Bundle, policy: &AccountPolicy) -> Option<IpAddr> {
    // It has no processes: it only asks the decision point, or waits to be completed.
    if policy.shared.policies.is_empty() && policy.account.matches.is_empty() {
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

/// What a look at one account's rows found: what is wrong, and policies that fail for some connect, with the account.
type Looked = (Vec<Diagnostic>, Vec<(String, String)>);

/// Refuses rows that are too large, and policies that fail for some connect: Cedar would skip a forbid that fails.
fn check_rows(bundle: &Bundle, config: &Config, findings: &mut Vec<Diagnostic>) {
    let signals = config.signals.values().filter(|kind| kind.flag).map(|kind| kind.kind.clone()).collect();
    let quiet = AccountState::quiet(Timestamp::UNIX_EPOCH);
    let loud = AccountState { risk: 100, signals, ..quiet.clone() };
    let looked: Vec<Looked> = bundle
        .accounts
        .par_iter()
        .map(|(name, policy)| {
            let (mut found, mut failing) = (Vec::new(), Vec::new());
            check_row(bundle, name, policy, [&quiet, &loud], &mut found, &mut failing);
            (found, failing)
        })
        .collect();
    let mut failing: BTreeMap<String, String> = BTreeMap::new();
    for (found, errors) in looked {
        findings.extend(found);
        for (id, name) in errors {
            failing.entry(id).or_insert(name);
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

/// The same for one account: findings, and the policies that fail for it.
fn check_row(
    bundle: &Bundle,
    name: &str,
    policy: &AccountPolicy,
    states: [&AccountState; 2],
    findings: &mut Vec<Diagnostic>,
    failing: &mut Vec<(String, String)>,
) {
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
        return;
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
        return;
    }
    for state in states {
        let row = bundle.row_over(&bundle.classes, name, state, bundle.moment(state));
        let errors = row.explanations.iter().flat_map(|explanation| &explanation.errors);
        failing.extend(errors.map(|id| (id.clone(), name.to_owned())));
    }
}
