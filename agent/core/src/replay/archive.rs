//! One archived policy set, read back from its manifest and ready to decide.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cedar_policy::{Context, Entities, EntityUid, Request, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::attempt::{Attempt, NotReplayable};
use super::compare::{self, Difference, Outcome};
use super::facts::Facts;
use crate::config::{Config, SourceFile};
use crate::diagnostic::Diagnostic;
use crate::policy::{
    Evaluation, GENERATED, Permit, PolicyInfo, Rebuilt, Statement, Text, TimeAtoms, named, schema_beyond, schema_of,
    statements,
};

/// What `policy_digest` names: the digests of the parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// All policies as evaluated; their verdict is the would-be one.
    pub policies: String,
    /// The same without observe-mode policies.
    pub enforced: String,
    /// The Cedar schema.
    pub schema: String,
    /// Destinations and accounts.
    pub entities: String,
    /// Ids of the policies whose refusal a person may lift.
    pub escalating: BTreeSet<String>,
    /// The live grants as policies: each is part of all policies and of the enforced ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
}

/// Why an archived set cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ArchiveError {
    /// It cannot be had.
    #[error("archive/{digest}: {problem}")]
    Part {
        /// Which file.
        digest: String,
        /// Why.
        problem: String,
    },
    /// It is not what its name says.
    #[error("archive/{0}: its content is not what its name says")]
    Altered(String),
    /// Its parts contradict each other.
    #[error("archive/{digest}: {problem}")]
    Contradiction {
        /// Which file.
        digest: String,
        /// How.
        problem: String,
    },
}

/// One policy set with the schema and entities of its moment.
#[derive(Clone, Debug)]
pub struct Archived {
    pub(super) policies: String,
    pub(super) enforced: String,
    pub(super) schema_text: String,
    pub(super) facts: Facts,
    schema: Schema,
    rebuilt: Rebuilt,
}

/// Answers given before, by question: a log repeats itself. It belongs to one [`Archived`].
#[derive(Clone, Debug, Default)]
pub struct Memo(HashMap<String, Result<Evaluation, String>>);

/// Beyond this a memo is begun anew: a log that never repeats itself must not fill the memory.
const MOST_REMEMBERED: usize = 1 << 16;

impl Archived {
    /// Reads the set that a digest names; `fetch` gives an archived file's content. Every file must be what its name says.
    ///
    /// # Errors
    /// A file is missing or altered, or the parts do not fit together.
    pub fn read(digest: &str, fetch: &dyn Fn(&str) -> Result<Vec<u8>, String>) -> Result<Self, ArchiveError> {
        let get = |digest: &str| -> Result<String, ArchiveError> {
            let part = |problem: String| ArchiveError::Part { digest: digest.to_owned(), problem };
            let content = fetch(digest).map_err(part)?;
            if named(Sha256::new().chain_update(&content)) != digest {
                return Err(ArchiveError::Altered(digest.to_owned()));
            }
            String::from_utf8(content).map_err(|_| part("it is not text".into()))
        };
        let wrong = |digest: &str, problem: String| ArchiveError::Contradiction { digest: digest.to_owned(), problem };
        let manifest: Manifest =
            serde_json::from_str(&get(digest)?).map_err(|error| wrong(digest, error.to_string()))?;
        let (mut policies, mut enforced) = (get(&manifest.policies)?, get(&manifest.enforced)?);
        for grants in &manifest.grants {
            let grants = get(grants)?;
            policies.push_str(&grants);
            enforced.push_str(&grants);
        }
        let (schema_text, entities) = (get(&manifest.schema)?, get(&manifest.entities)?);
        if let Some(finding) = schema_beyond("schema", &schema_text) {
            return Err(wrong(&manifest.schema, finding.message));
        }
        let (schema, _) =
            Schema::from_cedarschema_str(&schema_text).map_err(|error| wrong(&manifest.schema, error.to_string()))?;
        let facts = Facts::read(&entities).map_err(|error| wrong(&manifest.entities, error))?;
        let files = [SourceFile { name: format!("archive/{}", manifest.policies), text: policies.clone() }];
        let known = |name: &str| facts.has_destination(name);
        let rebuilt = Rebuilt::new(&[Text::evaluated(&files)], None, &known, facts.teams())
            .map_err(|findings| wrong(&manifest.policies, first(&findings)))?;
        if *rebuilt.escalating() != manifest.escalating {
            return Err(wrong(digest, "its escalating policies are not those of its text".into()));
        }
        let found: BTreeSet<String> = ids(&policies).difference(&ids(&enforced)).cloned().collect();
        if found != *rebuilt.observing() {
            return Err(wrong(&manifest.enforced, "it does not lack exactly the observe-mode policies".into()));
        }
        Ok(Self { policies, enforced, schema_text, facts, schema, rebuilt })
    }

    /// The same moment under other policies, as a person wrote them. What writ itself generated from configuration and
    /// grants (`requires-fresh:…`, `grant:…`) stays. `now` is the configuration as it is now: policies may name what was
    /// declared after that moment.
    ///
    /// # Errors
    /// What is wrong with the policies.
    pub fn under(&self, policies: &[SourceFile], now: Option<&Config>) -> Result<Self, Vec<Diagnostic>> {
        let archived = [SourceFile { name: "archive".into(), text: self.policies.clone() }];
        let generated: String = archived
            .iter()
            .flat_map(statements)
            .filter(|statement| statement.id().is_some_and(|id| GENERATED.iter().any(|kind| id.starts_with(kind))))
            .map(|statement| format!("{}\n\n", statement.text))
            .collect();
        let generated = [SourceFile { name: "generated".into(), text: generated }];
        let texts = [Text::written(policies), Text::evaluated(&generated)];
        let with = |schema: &Schema, facts: &Facts| {
            Rebuilt::new(&texts, Some(schema), &|name: &str| facts.has_destination(name), facts.teams())
        };
        let wrong = match with(&self.schema, &self.facts) {
            Ok(rebuilt) => return Ok(Self { rebuilt, ..self.clone() }),
            Err(wrong) => wrong,
        };
        let Some(now) = now else { return Err(wrong) };
        let facts = self.facts.with(&now.destinations);
        let declared = Config { destinations: facts.destinations().clone(), ..now.clone() };
        let Ok((schema_text, schema)) = schema_of(&declared) else { return Err(wrong) };
        let rebuilt = with(&schema, &facts)?;
        Ok(Self { rebuilt, facts, schema, schema_text, ..self.clone() })
    }

    /// Decides a record again and compares.
    pub fn replay(&self, attempt: &Attempt<'_>, memo: &mut Memo) -> Outcome {
        if let Err(why) = attempt.askable() {
            return compare::unasked(attempt, why);
        }
        // What could not be asked is recorded as it was put, of a connect too that named no endpoint.
        if (attempt.is_own_action() || attempt.reason_code == "invalid-request")
            && let Some(code) = compare::not_by_policy(attempt)
        {
            return compare::unasked(attempt, NotReplayable::Reason(code));
        }
        let mut differences = attempt.contradictions(&self.groups(attempt));
        match self.ask(attempt, memo) {
            Ok(evaluation) => compare::compare(attempt, evaluation, differences),
            Err(problem) => {
                differences.push(Difference::new("request", "a request that Cedar was asked", &problem));
                Outcome::Differing(differences)
            }
        }
    }

    /// What Cedar says to a record's request, whatever the record says about it.
    ///
    /// # Errors
    /// Why it cannot be asked: the inputs are not there, or are not what the schema says.
    pub fn evaluate(&self, attempt: &Attempt<'_>, memo: &mut Memo) -> Result<Evaluation, Unanswered> {
        attempt.askable().map_err(Unanswered::NotReplayable)?;
        if attempt.is_own_action() {
            return Err(Unanswered::NotReplayable(NotReplayable::DecisionPoint));
        }
        self.ask(attempt, memo).cloned().map_err(Unanswered::Refused)
    }

    /// The accounts, with their owners.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.facts.accounts.iter().map(|(name, account)| (name.as_str(), account.owner.as_deref()))
    }

    /// The enforced permits for connects that can match an account.
    pub fn permits(&self, account: &str) -> &[Permit] {
        self.rebuilt.permits(account)
    }

    pub(super) fn timed(&self, account: &str) -> &[(String, TimeAtoms)] {
        self.rebuilt.timed(account)
    }

    pub(super) fn executables(&self, account: &str) -> impl Iterator<Item = &str> {
        self.facts.accounts.get(account).into_iter().flat_map(|account| account.executables.iter().map(String::as_str))
    }

    pub(super) fn escalating(&self) -> &BTreeSet<String> {
        self.rebuilt.escalating()
    }

    /// The policies by id; their places are lines of the archived text.
    pub fn policy_infos(&self) -> &BTreeMap<String, PolicyInfo> {
        self.rebuilt.policies()
    }

    /// Whether the question is one for Cedar (see [`Rebuilt::asks`]).
    pub(super) fn asks(&self, attempt: &Attempt<'_>) -> bool {
        self.rebuilt.asks(&attempt.account, attempt.family())
    }

    pub(super) fn groups(&self, attempt: &Attempt<'_>) -> Vec<String> {
        self.facts.groups(attempt.endpoint())
    }

    /// The entities of a record's question: writ's own, and what the asker said.
    pub(super) fn entities(&self, attempt: &Attempt<'_>) -> Option<Value> {
        if !attempt.is_own_action() {
            let resource: EntityUid = attempt.request.resource.parse().ok()?;
            return self.facts.entities(&attempt.account, resource.id().unescaped(), &self.groups(attempt));
        }
        let mut own = Vec::new();
        if let Some(account) = attempt.principal_account() {
            own = self.facts.account_entities(&account)?;
        }
        let resource: EntityUid = attempt.request.resource.parse().ok()?;
        if resource.type_name().to_string() == "ServiceAccount" {
            let about = self.facts.account_entities(resource.id().unescaped()).unwrap_or_default();
            own.extend(about.into_iter().filter(|entity| !own.contains(entity)).collect::<Vec<_>>());
        }
        own.extend(attempt.request.entities.iter().cloned());
        Some(Value::Array(own))
    }

    fn ask<'m>(&self, attempt: &Attempt<'_>, memo: &'m mut Memo) -> Result<&'m Evaluation, String> {
        let key = self.key(attempt);
        if memo.0.len() >= MOST_REMEMBERED {
            memo.0.clear();
        }
        let answer = memo.0.entry(key).or_insert_with(|| self.ask_cedar(attempt));
        answer.as_ref().map_err(Clone::clone)
    }

    /// The question as text, without what its policies cannot tell apart: of the time only the class that their
    /// comparisons put it in.
    fn key(&self, attempt: &Attempt<'_>) -> String {
        let asked = &attempt.request;
        let mut key = format!("{}\n{}\n{}\n{}", attempt.account, asked.principal, asked.action, asked.resource);
        let own = attempt.is_own_action();
        let calendar = self.rebuilt.calendar(&attempt.account).filter(|_| !own);
        let class = calendar.zip(attempt.moment()).map(|(calendar, moment)| calendar.class(&moment));
        if own {
            key.push_str(&format!("\n{}", Value::from(asked.entities.clone())));
        }
        for (name, value) in &asked.context {
            // A moment that cannot be read is part of the question as it is: it must not pass for another.
            if class.is_none() || !matches!(name.as_str(), "now" | "hour" | "minute" | "weekday") {
                key.push_str(&format!("\n{name} {value}"));
            }
        }
        if let Some(class) = class {
            key.push_str(&format!("\n{class:?}"));
        }
        key
    }

    fn ask_cedar(&self, attempt: &Attempt<'_>) -> Result<Evaluation, String> {
        let asked = &attempt.request;
        let uid = |text: &str| text.parse::<EntityUid>().map_err(|_| format!("`{text}` is no entity"));
        let (principal, action, resource) = (uid(&asked.principal)?, uid(&asked.action)?, uid(&asked.resource)?);
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let context = Context::from_json_value(Value::Object(asked.context.clone()), Some((&self.schema, &action)))
            .map_err(|error| text(&error))?;
        let entities = self
            .entities(attempt)
            .ok_or_else(|| format!("{principal} is not an account of the archived configuration"))?;
        let entities = Entities::from_json_value(entities, Some(&self.schema)).map_err(|error| text(&error))?;
        let request = Request::new(principal.clone(), action, resource, context, Some(&self.schema))
            .map_err(|error| text(&error))?;
        if attempt.is_own_action() && attempt.principal_account().is_none() {
            return Ok(self.rebuilt.judge_outsider(&request, &entities));
        }
        Ok(self.rebuilt.judge(principal.id().unescaped(), attempt.family(), &request, &entities))
    }
}

/// Why [`Archived::evaluate`] has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unanswered {
    /// The record does not have the inputs.
    NotReplayable(NotReplayable),
    /// Cedar refuses the question.
    Refused(String),
}
fn first(findings: &[Diagnostic]) -> String {
    findings.first().map(|finding| finding.message.clone()).unwrap_or_default()
}

/// The ids of policies in a text.
fn ids(text: &str) -> BTreeSet<String> {
    let file = SourceFile { name: "archive".into(), text: text.to_owned() };
    statements(&file).iter().filter_map(Statement::id).collect()
}
