//! One account's grants put beside its policies: only that account is compiled again.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::Schema;

use super::account::AccountPolicy;
use super::bundle::Bundle;
use super::classes::Classes;
use super::compile::validate;
use super::inputs::Inputs;
use super::parse::{self, Parsed, PolicyInfo, Principal};
use super::{MOST_CELLS, row, source};
use crate::config::SourceFile;
use crate::diagnostic::{Diagnostic, Severity};

/// The live grants of one account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Granted {
    pub(crate) policies: BTreeMap<String, PolicyInfo>,
    pub(crate) inputs: Inputs,
}

impl Bundle {
    /// The same set with these as the account's grants, in place of those it had: policies as [`super::Grant::source`]
    /// renders them. Every other account is shared with this bundle.
    ///
    /// # Errors
    /// There is no such account, or a grant cannot be a policy: every reason.
    pub fn granting(&self, account: &str, grants: &[SourceFile]) -> Result<Self, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let Some(policy) = self.accounts.get(account) else {
            return Err(vec![Diagnostic::error("grant", format!("service account `{account}` is not declared"))]);
        };
        let known = |name: &str| self.destinations.contains_key(name);
        let mut parsed: Vec<Parsed<'_>> = Vec::new();
        for statement in grants.iter().flat_map(source::statements) {
            let Some(grant) = parse::policy(statement, &known, &mut findings).and_then(Parsed::usable) else {
                continue;
            };
            let id = &grant.info.id;
            let plain = !grant.info.forbids && !grant.info.escalates && !grant.info.observes;
            if !plain || grant.principal != Principal::Account(account.to_owned()) {
                findings.push(Diagnostic::error("grant", format!("`{id}` is not a permit for `{account}` alone")));
            } else if self.policies.contains_key(id) || parsed.iter().any(|other| other.info.id == *id) {
                findings.push(Diagnostic::error("policy-id", format!("policy id `{id}` is used twice")));
            } else {
                parsed.push(grant);
            }
        }
        validate(&parsed, Schema::clone(&self.cedar_schema), &mut findings);
        findings.retain(|finding| finding.severity == Severity::Error);
        let shared = policy.configured.with(&parsed);
        if shared.is_none() {
            findings
                .push(Diagnostic::error("policy-set", format!("the grants of `{account}` cannot be put into one set")));
        }
        let Some(shared) = shared.filter(|_| findings.is_empty()) else { return Err(findings) };
        let mut bundle = self.clone();
        let granting = AccountPolicy { shared: Arc::new(shared), ..AccountPolicy::clone(policy) };
        bundle.accounts.insert(account.to_owned(), Arc::new(granting));
        bundle.granted.remove(account);
        if !parsed.is_empty() {
            let mut granted = Granted::default();
            for grant in parsed {
                granted.inputs.merge(&grant.inputs);
                granted.policies.insert(grant.info.id.clone(), grant.info);
            }
            bundle.granted.insert(account.to_owned(), granted);
        }
        Ok(bundle)
    }

    /// The text of an account's grants as evaluated; empty if it has none.
    pub fn archived_grants(&self, account: &str) -> String {
        let granted = self.granted.get(account).into_iter().flat_map(|granted| granted.policies.values());
        granted.map(|policy| format!("{}\n\n", policy.text)).collect()
    }

    /// The live grants of an account as policies, by id.
    pub fn granted(&self, account: &str) -> impl Iterator<Item = (&String, &PolicyInfo)> {
        self.granted.get(account).into_iter().flat_map(|granted| &granted.policies)
    }

    /// The accounts that have grants.
    pub fn granted_accounts(&self) -> impl Iterator<Item = &str> {
        self.granted.keys().map(String::as_str)
    }

    /// What an account's grants ask.
    pub(crate) fn granted_inputs(&self, account: &str) -> Option<&Inputs> {
        self.granted.get(account).map(|granted| &granted.inputs)
    }

    /// Whether an account's row over these classes would have more cells than a row can have.
    pub(crate) fn row_is_too_large(&self, classes: &Classes, account: &str) -> bool {
        self.accounts.get(account).is_some_and(|policy| row::cells(self, classes, policy) > MOST_CELLS)
    }
}
