//! What else is wrong with a policy, or with the policies of a configuration, that is refused already: an operator wants to
//! read everything at once.

use std::collections::BTreeSet;

use cedar_policy::Schema;

use super::parse::{Form, Parsed};
use super::{compile, kinds, schema, source};
use crate::config::{Config, Destination, Refused, Role};
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::table::Identities;

/// The errors of policies and schemas that hold whatever the unread files declare. Warnings, and what only rows show, come
/// when the rest is put right.
pub fn further(refused: &Refused) -> Vec<Diagnostic> {
    let Refused { config, unread } = refused;
    let mut config = config.clone();
    if unread.contains(&Role::Destinations) {
        assume_destinations(&mut config);
    }
    let mut findings = Vec::new();
    let accounts_known = !unread.contains(&Role::Accounts);
    let schema = match schema::build(&config) {
        Ok((_, schema)) => Some(schema),
        Err(errors) => {
            findings.extend(errors);
            None
        }
    };
    let (policies, unusable) = compile::read(&config, &[], &mut findings);
    // What attributes there are is known from the accounts, what own actions there are from the schemas.
    if let Some(schema) = schema.filter(|_| accounts_known && !unread.contains(&Role::Schemas)) {
        compile::validate(&policies, schema.clone(), &mut findings);
        of_refused(&config, &unusable, schema, &mut findings);
    }
    if accounts_known {
        findings.extend(Identities::check(&config));
    }
    findings.retain(|finding| finding.severity == Severity::Error);
    findings
}

/// What else is wrong with policies that are refused: not what cannot be classed, in the validator's words.
pub(super) fn of_refused(config: &Config, policies: &[Parsed<'_>], schema: Schema, findings: &mut Vec<Diagnostic>) {
    let mut more = Vec::new();
    compile::validate(policies, schema, &mut more);
    kinds::unknown(config, policies, &mut more);
    let unclassed = || findings.iter().filter(|finding| finding.code == "policy-unclassed");
    more.retain(|finding| !unclassed().any(|known| overlap(known.at.as_ref(), finding.at.as_ref())));
    findings.extend(more);
}

/// Whether both point at something in common.
fn overlap(one: Option<&Location>, other: Option<&Location>) -> bool {
    one.zip(other).is_some_and(|(one, other)| {
        one.file == other.file && one.offset < other.offset + other.length && other.offset < one.offset + one.length
    })
}

/// Takes every destination that a policy names for declared: the file that would say so cannot be read.
fn assume_destinations(config: &mut Config) {
    let policies = config.policies.iter().flat_map(source::statements);
    let parsed = policies.filter_map(|statement| statement.parsed(Form::Written));
    let named: BTreeSet<String> = parsed
        .flat_map(|policy| policy.entity_literals())
        .filter(|entity| entity.type_name().basename() == "Destination")
        .map(|entity| entity.id().unescaped().to_owned())
        .collect();
    for name in named {
        config.destinations.entry(name.clone()).or_insert_with(|| Destination::named(&name));
    }
}
