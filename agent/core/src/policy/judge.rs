//! The authorizer's answer for one account, read as writ's verdict.

use std::collections::HashSet;

use cedar_policy::{Authorizer, Decision, Entities, PolicyId, PolicySet, Request};
use writ_abi::{Reason, Verdict};

use super::parse::Parsed;

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
    enforced: PolicySet,
    /// With observe-mode policies; `None` if there are none.
    full: Option<PolicySet>,
    escalating: HashSet<PolicyId>,
}

struct Determination {
    verdict: Verdict,
    policies: Vec<String>,
    errors: Vec<String>,
}

/// What one policy by itself says to a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Truth {
    /// It does not apply.
    Unsatisfied,
    /// It applies.
    Satisfied,
    /// Its condition fails.
    Failed,
}

fn set<'a>(policies: impl Iterator<Item = &'a Parsed<'a>>) -> Option<PolicySet> {
    PolicySet::from_policies(policies.map(|parsed| parsed.policy.clone())).ok()
}

impl Judge {
    /// The judge over these policies; `None` if Cedar refuses to hold them in one set.
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Parsed<'a>> + Clone) -> Option<Self> {
        let observes = policies.clone().any(|parsed| parsed.info.observes);
        Some(Self {
            enforced: set(policies.clone().filter(|parsed| !parsed.info.observes))?,
            full: if observes { Some(set(policies.clone())?) } else { None },
            escalating: policies
                .filter(|parsed| parsed.info.escalates)
                .map(|parsed| parsed.policy.id().clone())
                .collect(),
        })
    }

    /// This judge with further policies, which neither escalate nor only observe; `None` if Cedar refuses to hold them.
    pub(super) fn with(&self, policies: &[Parsed<'_>]) -> Option<Self> {
        let mut judge = self.clone();
        for set in std::iter::once(&mut judge.enforced).chain(&mut judge.full) {
            for parsed in policies {
                set.add(parsed.policy.clone()).ok()?;
            }
        }
        Some(judge)
    }

    /// A set with one of its policies alone; `None` if it has no such policy.
    pub(crate) fn alone(&self, id: &PolicyId) -> Option<PolicySet> {
        let policy = self.full.as_ref().unwrap_or(&self.enforced).policy(id)?;
        PolicySet::from_policies([policy.clone()]).ok()
    }

    /// What the authorizer says of a policy that is [alone](Self::alone). Which of its policies apply and which fail is all
    /// that a judgement depends on.
    pub(crate) fn truth(authorizer: &Authorizer, request: &Request, alone: &PolicySet, entities: &Entities) -> Truth {
        let response = authorizer.is_authorized(request, alone, entities);
        if response.diagnostics().errors().next().is_some() {
            return Truth::Failed;
        }
        if response.diagnostics().reason().next().is_some() { Truth::Satisfied } else { Truth::Unsatisfied }
    }

    /// Asks the authorizer a request of any action.
    pub(crate) fn judge(&self, authorizer: &Authorizer, request: &Request, entities: &Entities) -> Evaluation {
        let enforced = self.determine(&self.enforced, authorizer, request, entities);
        let mut errors = enforced.errors;
        let reason = if errors.is_empty() { Reason::Policy } else { Reason::PolicyError };
        let (would, would_policies) = match &self.full {
            None => (enforced.verdict, enforced.policies.clone()),
            Some(full) => {
                let full = self.determine(full, authorizer, request, entities);
                errors.extend(full.errors);
                errors.sort_unstable();
                errors.dedup();
                (full.verdict, full.policies)
            }
        };
        Evaluation { verdict: enforced.verdict, would, reason, policies: enforced.policies, would_policies, errors }
    }

    fn determine(
        &self,
        policies: &PolicySet,
        authorizer: &Authorizer,
        request: &Request,
        entities: &Entities,
    ) -> Determination {
        let response = authorizer.is_authorized(request, policies, entities);
        let diagnostics = response.diagnostics();
        let mut errors: Vec<String> = diagnostics
            .errors()
            .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
            .collect();
        errors.sort_unstable();
        errors.dedup();
        let mut determining: Vec<String> = diagnostics.reason().map(ToString::to_string).collect();
        determining.sort_unstable();
        let verdict = match response.decision() {
            // Cedar skips a forbid that fails, so its allow is not to be trusted.
            Decision::Allow if !errors.is_empty() => {
                determining.clear();
                Verdict::Deny
            }
            Decision::Allow => Verdict::Allow,
            Decision::Deny => {
                let escalates = errors.is_empty()
                    && !determining.is_empty()
                    && diagnostics.reason().all(|id| self.escalating.contains(id))
                    && self.lenient(policies).is_some_and(|lenient| {
                        let response = authorizer.is_authorized(request, &lenient, entities);
                        response.decision() == Decision::Allow && response.diagnostics().errors().next().is_none()
                    });
                if escalates { Verdict::Escalate } else { Verdict::Deny }
            }
        };
        Determination { verdict, policies: determining, errors }
    }

    /// What is left of a set without its escalating policies. Made when it is asked for, which is seldom: kept beside every
    /// set it would take as much memory again.
    fn lenient(&self, policies: &PolicySet) -> Option<PolicySet> {
        let mut lenient = policies.clone();
        for id in &self.escalating {
            // One that is only observed is not among those that are enforced.
            if lenient.policy(id).is_some() {
                lenient.remove_static(id.clone()).ok()?;
            }
        }
        Some(lenient)
    }
}
