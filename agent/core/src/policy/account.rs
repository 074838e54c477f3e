//! One account with the policies that can match it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{Authorizer, Entities, PolicyId, PolicySet, Request};
use writ_abi::{Family, Verdict};

use super::calendar::Calendar;
use super::inputs::Inputs;
use super::judge::{Evaluation, Judge};
use super::parse::{Parsed, Principal};
use super::question::{self, Names, Question, Subject};
use crate::config::{Account, Config};
use crate::diagnostic::Diagnostic;

/// One account, its entities, its judges and what its policies ask.
#[derive(Clone, Debug)]
pub(crate) struct AccountPolicy {
    pub(crate) account: Account,
    pub(crate) entities: Entities,
    /// The configuration's policies and the account's grants.
    pub(crate) shared: Arc<PolicyGroup>,
    /// The configuration's alone.
    pub(super) configured: Arc<PolicyGroup>,
}

/// What accounts with the same policies share.
#[derive(Clone, Debug)]
pub(crate) struct PolicyGroup {
    connect: Judge,
    open_socket: Judge,
    /// For the actions of the operator's own schemas.
    pub(crate) others: Judge,
    pub(crate) inputs: Inputs,
    pub(crate) calendar: Calendar,
    /// What each policy about connects reads of one.
    reads: Vec<Reads>,
    /// Ids of the policies, in file order.
    pub(crate) policies: Vec<String>,
}

/// What one policy reads of a connect: two on which all of it agrees are the same to it, errors included.
#[derive(Clone, Debug)]
pub(crate) struct Reads {
    pub(crate) id: PolicyId,
    pub(crate) addresses: bool,
    pub(crate) ports: bool,
    pub(crate) executables: bool,
    pub(crate) protocol: bool,
    pub(crate) new_destination: bool,
    pub(crate) approvals: bool,
    pub(crate) destinations: Box<[String]>,
}

impl Reads {
    fn of(parsed: &Parsed<'_>) -> Self {
        let inputs = &parsed.inputs;
        Self {
            id: parsed.policy.id().clone(),
            addresses: !inputs.addresses.is_empty(),
            ports: !inputs.ports.is_empty(),
            executables: inputs.classes_executables(),
            protocol: inputs.protocol,
            new_destination: inputs.new_destination,
            approvals: inputs.approvals,
            destinations: inputs.destinations.iter().cloned().collect(),
        }
    }
}

impl AccountPolicy {
    /// Asks the authorizer, with only the policies whose principal scope can match this account.
    pub(crate) fn evaluate(&self, authorizer: &Authorizer, names: &Names, question: &Question<'_>) -> Evaluation {
        if let Subject::OpenSocket(family @ (Family::Unix | Family::Netlink)) = question.subject
            && !self.shared.inputs.families.contains(&family)
        {
            // Every process opens these all the time: they are judged only where a policy names them.
            return Evaluation::plain(Verdict::Allow);
        }
        match self.asked(names, question) {
            Ok(asked) => self.judge(authorizer, question, &asked),
            Err(error) => Evaluation::failed(error),
        }
    }

    /// A question in Cedar's own types; `context.now` is left out where no policy reads it.
    pub(super) fn asked(&self, names: &Names, question: &Question<'_>) -> Result<(Request, Entities), String> {
        Ok((question.request(names, self.shared.inputs.now)?, question.entities(names, &self.entities)?))
    }

    pub(super) fn judge(
        &self,
        authorizer: &Authorizer,
        question: &Question<'_>,
        (request, entities): &(Request, Entities),
    ) -> Evaluation {
        let judge = match question.subject {
            Subject::Connect { .. } => &self.shared.connect,
            Subject::OpenSocket(_) => &self.shared.open_socket,
        };
        judge.judge(authorizer, request, entities)
    }

    /// Each policy about connects by itself, with what it reads of one; `None` if Cedar refuses to hold one by itself.
    pub(super) fn each(&self) -> Option<Vec<(&Reads, PolicySet)>> {
        self.shared.reads.iter().map(|reads| Some((reads, self.shared.connect.alone(&reads.id)?))).collect()
    }
}

/// Every account with its policies: those whose principal scope names it, one of its teams, or anyone.
pub(crate) fn index(
    config: &Config,
    policies: &[Parsed<'_>],
    names: &Names,
    findings: &mut Vec<Diagnostic>,
) -> BTreeMap<String, Arc<AccountPolicy>> {
    let mut anyone = Vec::new();
    let mut by_account: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut by_team: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, parsed) in policies.iter().enumerate() {
        match &parsed.principal {
            Principal::Any => anyone.push(index),
            Principal::Account(name) => by_account.entry(name).or_default().push(index),
            Principal::Team(name) => by_team.entry(name).or_default().push(index),
            Principal::Nobody => {}
        }
    }
    unknown_principals(config, policies, findings);
    let mut groups: HashMap<BTreeSet<usize>, Arc<PolicyGroup>> = HashMap::new();
    let mut accounts = BTreeMap::new();
    for account in config.accounts.values() {
        let own = by_account.get(account.name.as_str()).into_iter().flatten();
        let teams = account.teams.iter().filter_map(|team| by_team.get(team.as_str())).flatten();
        let matching: BTreeSet<usize> = anyone.iter().chain(own).chain(teams).copied().collect();
        let shared = match groups.get(&matching) {
            Some(group) => Arc::clone(group),
            None => match group(&matching, policies) {
                Some(group) => Arc::clone(groups.entry(matching).or_insert(Arc::new(group))),
                None => {
                    findings.push(
                        Diagnostic::error(
                            "policy-set",
                            format!("the policies of `{}` cannot be put into one set", account.name),
                        )
                        .help("make policy ids unique"),
                    );
                    continue;
                }
            },
        };
        match question::account_entities(names, account) {
            Ok(entities) => {
                let configured = Arc::clone(&shared);
                let policy = AccountPolicy { account: account.clone(), entities, shared, configured };
                accounts.insert(account.name.clone(), Arc::new(policy));
            }
            Err(error) => findings.push(
                Diagnostic::error(
                    "attribute",
                    format!("the attributes of `{}` are not Cedar values: {error}", account.name),
                )
                .at(account.at.clone()),
            ),
        }
    }
    accounts
}

impl PolicyGroup {
    /// These policies and further permits for connects; `None` if Cedar refuses to hold them in one set.
    pub(super) fn with(&self, permits: &[Parsed<'_>]) -> Option<Self> {
        let mut group = self.clone();
        for parsed in permits {
            group.inputs.merge(&parsed.inputs);
            group.policies.push(parsed.info.id.clone());
            group.reads.push(Reads::of(parsed));
        }
        group.calendar = Calendar::new(&group.inputs.times);
        group.connect = self.connect.with(permits)?;
        Some(group)
    }
}

fn group(matching: &BTreeSet<usize>, policies: &[Parsed<'_>]) -> Option<PolicyGroup> {
    let matching: Vec<&Parsed<'_>> = matching.iter().filter_map(|index| policies.get(*index)).collect();
    let mut inputs = Inputs::default();
    for parsed in matching.iter().filter(|parsed| parsed.actions.connect || parsed.actions.open_socket) {
        inputs.merge(&parsed.inputs);
    }
    Some(PolicyGroup {
        connect: Judge::new(matching.iter().copied().filter(|parsed| parsed.actions.connect))?,
        open_socket: Judge::new(matching.iter().copied().filter(|parsed| parsed.actions.open_socket))?,
        others: Judge::new(matching.iter().copied().filter(|parsed| parsed.actions.others))?,
        calendar: Calendar::new(&inputs.times),
        inputs,
        reads: matching.iter().filter(|parsed| parsed.actions.connect).map(|parsed| Reads::of(parsed)).collect(),
        policies: matching.iter().map(|parsed| parsed.info.id.clone()).collect(),
    })
}

/// A scope that names nobody is most likely a typo; Cedar accepts it silently.
fn unknown_principals(config: &Config, policies: &[Parsed<'_>], findings: &mut Vec<Diagnostic>) {
    let teams: BTreeSet<&String> = config.accounts.values().flat_map(|account| &account.teams).collect();
    for parsed in policies {
        let (kind, name, help) = match &parsed.principal {
            Principal::Account(name) if !config.accounts.contains_key(name) => {
                ("service account", name, "declare it in service-accounts.d, or correct the name")
            }
            Principal::Team(name) if !teams.contains(name) => {
                ("team", name, "give an account this team, or correct the name")
            }
            _ => continue,
        };
        let at = parsed.statement.literal(name).unwrap_or_else(|| parsed.statement.head());
        findings.push(
            Diagnostic::warning(
                "policy-principal",
                format!("{kind} `{name}` is not declared: the policy matches nobody"),
            )
            .help(help)
            .policy(&parsed.info.id)
            .at(at),
        );
    }
}
