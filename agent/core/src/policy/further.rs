//! What is wrong with the policies of a configuration that is refused already: an operator wants to read everything at once.

use std::collections::BTreeSet;

use super::parse::Form;
use super::{compile, schema, source};
use crate::config::{Config, Destination, Refused, Role};
use crate::diagnostic::{Diagnostic, Severity};
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
    let policies = compile::read(&config, &[], &mut findings);
    // What attributes there are is known from the accounts, what own actions there are from the schemas.
    if let Some(schema) = schema.filter(|_| accounts_known && !unread.contains(&Role::Schemas)) {
        compile::validate(&policies, schema, &mut findings);
    }
    if accounts_known {
        findings.extend(Identities::check(&config));
    }
    findings.retain(|finding| finding.severity == Severity::Error);
    findings
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
