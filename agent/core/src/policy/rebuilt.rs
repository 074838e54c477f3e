//! Policies rebuilt from text alone, without the configuration they were compiled from: what replay and what-if ask.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{Authorizer, Entities, PolicySet, Request, Schema, ValidationMode, Validator};
use writ_abi::{Family, Verdict};

use super::calendar::Calendar;
use super::inputs::{Inputs, TimeAtoms};
use super::judge::{Evaluation, Judge};
use super::parse::{self, Form, Parsed, PolicyInfo, Principal};
use super::{annotation, cut, finding, source};
use crate::config::SourceFile;
use crate::diagnostic::{Diagnostic, Severity};

/// Files of policies, and in which form they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(crate) form: Form,
    pub(crate) files: &'a [SourceFile],
}

impl<'a> Text<'a> {
    /// As a person wrote them.
    pub(crate) fn written(files: &'a [SourceFile]) -> Self {
        Self { form: Form::Written, files }
    }

    /// As they were evaluated.
    pub(crate) fn evaluated(files: &'a [SourceFile]) -> Self {
        Self { form: Form::Evaluated, files }
    }
}

/// A policy set indexed by account, as [`super::Bundle`] indexes it, but for nothing else that a bundle needs.
#[derive(Clone, Debug)]
pub(crate) struct Rebuilt {
    authorizer: Authorizer,
    accounts: BTreeMap<String, Arc<Group>>,
    /// All policies: whoever is no account is matched by what they say themselves.
    outsiders: Judge,
    escalating: BTreeSet<String>,
    observing: BTreeSet<String>,
    policies: BTreeMap<String, PolicyInfo>,
}

/// A permit for connects: what it opens, as far as it names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permit {
    /// Its `@id`.
    pub id: String,
    /// The destinations it names; empty: it is not tied to any.
    pub destinations: BTreeSet<String>,
}

/// The policies that can match some accounts.
#[derive(Clone, Debug)]
struct Group {
    judge: Judge,
    permits: Vec<Permit>,
    families: BTreeSet<Family>,
    calendar: Calendar,
    /// The policies that look at the time, with what they ask of it.
    timed: Vec<(String, TimeAtoms)>,
}

impl Rebuilt {
    /// Rebuilds; `accounts` are names with their teams. With a schema the policies are validated as strictly as when they
    /// are put in force.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(crate) fn new<'a>(
        texts: &[Text<'_>],
        schema: Option<&Schema>,
        destinations: &dyn Fn(&str) -> bool,
        accounts: impl Iterator<Item = (&'a str, &'a [String])>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut policies: Vec<Parsed<'_>> = Vec::new();
        let mut ids = BTreeSet::new();
        for text in texts {
            // What is archived was accepted once.
            let written = text.files.iter().filter(|_| text.form == Form::Written);
            findings.extend(written.filter_map(cut::bare_cr));
            for statement in text.files.iter().flat_map(source::statements) {
                let parsed = parse::policy_in(text.form, statement, destinations, &mut findings);
                let Some(parsed) = parsed.and_then(Parsed::usable) else { continue };
                findings.extend(annotation::bad_id(&parsed).filter(|_| text.form == Form::Written));
                if !ids.insert(parsed.info.id.clone()) {
                    findings.push(
                        Diagnostic::error("policy-id", format!("policy id `{}` is used twice", parsed.info.id))
                            .help("give it another `@id`")
                            .at(parsed.statement.head()),
                    );
                }
                policies.push(parsed);
            }
        }
        findings.extend(schema.into_iter().flat_map(|schema| invalid(&policies, schema)));
        findings.retain(|finding| finding.severity == Severity::Error);
        if !findings.is_empty() {
            return Err(findings);
        }
        let mut groups: HashMap<Vec<usize>, Arc<Group>> = HashMap::new();
        let mut found = BTreeMap::new();
        for (name, teams) in accounts {
            let matching: Vec<usize> = policies
                .iter()
                .enumerate()
                .filter(|(_, parsed)| match &parsed.principal {
                    Principal::Any => true,
                    Principal::Account(account) => account == name,
                    Principal::Team(team) => teams.contains(team),
                    Principal::Nobody => false,
                })
                .map(|(index, _)| index)
                .collect();
            let group = match groups.get(&matching) {
                Some(group) => Arc::clone(group),
                None => {
                    let group = Arc::new(Group::new(&matching, &policies).ok_or_else(one_set)?);
                    Arc::clone(groups.entry(matching).or_insert(group))
                }
            };
            found.insert(name.to_owned(), group);
        }
        let ids = |wanted: fn(&Parsed<'_>) -> bool| {
            policies.iter().filter(|parsed| wanted(parsed)).map(|parsed| parsed.info.id.clone()).collect()
        };
        Ok(Self {
            authorizer: Authorizer::new(),
            accounts: found,
            outsiders: Judge::new(policies.iter()).ok_or_else(one_set)?,
            escalating: ids(|parsed| parsed.info.escalates),
            observing: ids(|parsed| parsed.info.observes),
            policies: policies.iter().map(|parsed| (parsed.info.id.clone(), parsed.info.clone())).collect(),
        })
    }

    /// The policies by id; their places are places in the text they were rebuilt from.
    pub(crate) fn policies(&self) -> &BTreeMap<String, PolicyInfo> {
        &self.policies
    }

    /// Ids of the policies whose refusal a person may lift.
    pub(crate) fn escalating(&self) -> &BTreeSet<String> {
        &self.escalating
    }

    /// Ids of the policies that are only observed.
    pub(crate) fn observing(&self) -> &BTreeSet<String> {
        &self.observing
    }

    /// Asks the authorizer, with only the policies whose principal scope can match the account. An account that is not
    /// there has no policies.
    pub(crate) fn judge(
        &self,
        account: &str,
        family: Option<Family>,
        request: &Request,
        entities: &Entities,
    ) -> Evaluation {
        let Some(group) = self.accounts.get(account) else { return Evaluation::plain(Verdict::Deny) };
        if self.asks(account, family) {
            group.judge.judge(&self.authorizer, request, entities)
        } else {
            Evaluation::plain(Verdict::Allow)
        }
    }

    /// Asks the authorizer about a principal that is no account.
    pub(crate) fn judge_outsider(&self, request: &Request, entities: &Entities) -> Evaluation {
        self.outsiders.judge(&self.authorizer, request, entities)
    }

    /// Whether Cedar is asked about sockets of a family: AF_UNIX and AF_NETLINK are judged only where a policy names them.
    pub(crate) fn asks(&self, account: &str, family: Option<Family>) -> bool {
        let named = |family| self.accounts.get(account).is_some_and(|group| group.families.contains(&family));
        !matches!(family, Some(family @ (Family::Unix | Family::Netlink)) if !named(family))
    }

    /// The enforced permits for connects that can match the account.
    pub(crate) fn permits(&self, account: &str) -> &[Permit] {
        self.accounts.get(account).map_or(&[], |group| &group.permits)
    }

    /// The account's policies that look at the time, each with the comparisons that it makes.
    pub(crate) fn timed(&self, account: &str) -> &[(String, TimeAtoms)] {
        self.accounts.get(account).map_or(&[], |group| &group.timed)
    }

    /// The comparisons of time that the account's policies make.
    pub(crate) fn calendar(&self, account: &str) -> Option<&Calendar> {
        self.accounts.get(account).map(|group| &group.calendar)
    }
}

impl Group {
    fn new(matching: &[usize], policies: &[Parsed<'_>]) -> Option<Self> {
        let matching: Vec<&Parsed<'_>> = matching.iter().filter_map(|index| policies.get(*index)).collect();
        let mut inputs = Inputs::default();
        for parsed in &matching {
            inputs.merge(&parsed.inputs);
        }
        let permits = matching
            .iter()
            .filter(|parsed| parsed.actions.connect && !parsed.info.forbids && !parsed.info.observes)
            .map(|parsed| Permit { id: parsed.info.id.clone(), destinations: parsed.inputs.destinations.clone() })
            .collect();
        let timed = matching
            .iter()
            .filter(|parsed| parsed.inputs.times != TimeAtoms::default())
            .map(|parsed| (parsed.info.id.clone(), parsed.inputs.times.clone()))
            .collect();
        let judge = Judge::new(matching.into_iter())?;
        Some(Self { judge, permits, families: inputs.families, calendar: Calendar::new(&inputs.times), timed })
    }
}

fn one_set() -> Vec<Diagnostic> {
    vec![Diagnostic::error("policy-set", "the policies cannot be put into one set")]
}

fn invalid(policies: &[Parsed<'_>], schema: &Schema) -> Vec<Diagnostic> {
    let Ok(set) = PolicySet::from_policies(policies.iter().map(|parsed| parsed.policy.clone())) else {
        return Vec::new();
    };
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    result
        .validation_errors()
        .map(|error| {
            let parsed = policies.iter().find(|parsed| parsed.info.id == error.policy_id().to_string());
            let locate = |offset: usize, length: usize| {
                let statement = &parsed?.statement;
                let written = offset + length <= statement.text.len();
                Some(if written { statement.location(offset..offset + length) } else { statement.head() })
            };
            let mut finding = finding::from_cedar("policy-invalid", error, &locate);
            finding.at = finding.at.or_else(|| Some(parsed?.statement.head()));
            finding.policy(error.policy_id().to_string())
        })
        .collect()
}
