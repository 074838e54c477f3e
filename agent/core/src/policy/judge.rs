//! The authorizer's answer for one account, read as writ's verdict.

use std::collections::HashSet;

use cedar_policy::{Authorizer, Decision, Entities, Entity, Policy, PolicyId, PolicySet, Request};
use writ_abi::{Reason, Verdict};

use super::parse::Parsed;
use super::question::{Names, Question};

/// What policy says to one attempt, and by which policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evaluation {
    /// The enforced verdict.
    pub verdict: Verdict,
    /// The verdict with observe-mode policies counted in.
    pub would: Verdict,
    /// `policy`, or `policy-error` if some condition failed.
    pub reason: Reason,
    /// Ids of the determining enforced policies, sorted.
    pub policies: Vec<String>,
    /// Ids that determine `would`, sorted.
    pub would_policies: Vec<String>,
    /// Ids of policies whose condition failed, sorted.
    pub errors: Vec<String>,
}

impl Evaluation {
    pub(crate) fn failed(error: String) -> Self {
        Self {
            verdict: Verdict::Deny,
            would: Verdict::Deny,
            reason: Reason::PolicyError,
            policies: Vec::new(),
            would_policies: Vec::new(),
            errors: vec![error],
        }
    }

    pub(crate) fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            would: verdict,
            reason: Reason::Policy,
            policies: Vec::new(),
            would_policies: Vec::new(),
            errors: Vec::new(),
        }
    }
}

/// The policies of one action that can match one account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judge {
    enforced: Sets,
    /// With observe-mode policies; `None` if there are none.
    full: Option<Sets>,
    escalating: HashSet<PolicyId>,
}

/// A policy set, and what is left of it without its escalating policies (`None`: it has none).
#[derive(Clone, Debug, Default)]
struct Sets {
    all: PolicySet,
    lenient: Option<PolicySet>,
}

struct Determination {
    verdict: Verdict,
    policies: Vec<String>,
    errors: Vec<String>,
}

impl Sets {
    fn new<'a>(policies: impl Iterator<Item = &'a Parsed<'a>> + Clone) -> Option<Self> {
        let set = |policies: &mut dyn Iterator<Item = Policy>| PolicySet::from_policies(policies).ok();
        let escalates = policies.clone().any(|parsed| parsed.info.escalates);
        let lenient = policies.clone().filter(|parsed| !parsed.info.escalates);
        Some(Self {
            all: set(&mut policies.map(|parsed| parsed.policy.clone()))?,
            lenient: if escalates { Some(set(&mut lenient.map(|parsed| parsed.policy.clone()))?) } else { None },
        })
    }

    fn determine(
        &self,
        authorizer: &Authorizer,
        escalating: &HashSet<PolicyId>,
        request: &Request,
        entities: &Entities,
    ) -> Determination {
        let response = authorizer.is_authorized(request, &self.all, entities);
        let diagnostics = response.diagnostics();
        let mut errors: Vec<String> = diagnostics
            .errors()
            .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
            .collect();
        errors.sort_unstable();
        errors.dedup();
        let mut policies: Vec<String> = diagnostics.reason().map(ToString::to_string).collect();
        policies.sort_unstable();
        let verdict = match response.decision() {
            // Cedar skips a forbid that fails, so its allow is not to be trusted.
            Decision::Allow if !errors.is_empty() => {
                policies.clear();
                Verdict::Deny
            }
            Decision::Allow => Verdict::Allow,
            Decision::Deny => {
                let escalates = errors.is_empty()
                    && !policies.is_empty()
                    && diagnostics.reason().all(|id| escalating.contains(id))
                    && self.lenient.as_ref().is_some_and(|lenient| {
                        let response = authorizer.is_authorized(request, lenient, entities);
                        response.decision() == Decision::Allow && response.diagnostics().errors().next().is_none()
                    });
                if escalates { Verdict::Escalate } else { Verdict::Deny }
            }
        };
        Determination { verdict, policies, errors }
    }
}

impl Judge {
    /// The judge over these policies; `None` if Cedar refuses to hold them in one set.
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Parsed<'a>> + Clone) -> Option<Self> {
        let observes = policies.clone().any(|parsed| parsed.info.observes);
        Some(Self {
            enforced: Sets::new(policies.clone().filter(|parsed| !parsed.info.observes))?,
            full: if observes { Some(Sets::new(policies.clone())?) } else { None },
            escalating: policies
                .filter(|parsed| parsed.info.escalates)
                .map(|parsed| parsed.policy.id().clone())
                .collect(),
        })
    }

    /// This judge with further policies, which neither escalate nor only observe; `None` if Cedar refuses to hold them.
    pub(super) fn with(&self, policies: &[Parsed<'_>]) -> Option<Self> {
        let mut judge = self.clone();
        for sets in std::iter::once(&mut judge.enforced).chain(&mut judge.full) {
            for set in std::iter::once(&mut sets.all).chain(&mut sets.lenient) {
                for parsed in policies {
                    set.add(parsed.policy.clone()).ok()?;
                }
            }
        }
        Some(judge)
    }

    /// Asks the authorizer; `now` is whether a policy may read `context.now`, which is left out otherwise.
    pub(crate) fn evaluate(
        &self,
        authorizer: &Authorizer,
        names: &Names,
        account: &[Entity],
        question: &Question<'_>,
        now: bool,
    ) -> Evaluation {
        let request = match question.request(names, now) {
            Ok(request) => request,
            Err(error) => return Evaluation::failed(error),
        };
        let entities = match question.entities(names, account) {
            Ok(entities) => entities,
            Err(error) => return Evaluation::failed(error),
        };
        self.judge(authorizer, &request, &entities)
    }

    /// Asks the authorizer a request of any action.
    pub(crate) fn judge(&self, authorizer: &Authorizer, request: &Request, entities: &Entities) -> Evaluation {
        let enforced = self.enforced.determine(authorizer, &self.escalating, request, entities);
        let mut errors = enforced.errors;
        let reason = if errors.is_empty() { Reason::Policy } else { Reason::PolicyError };
        let (would, would_policies) = match &self.full {
            None => (enforced.verdict, enforced.policies.clone()),
            Some(full) => {
                let full = full.determine(authorizer, &self.escalating, request, entities);
                errors.extend(full.errors);
                errors.sort_unstable();
                errors.dedup();
                (full.verdict, full.policies)
            }
        };
        Evaluation { verdict: enforced.verdict, would, reason, policies: enforced.policies, would_policies, errors }
    }
}
