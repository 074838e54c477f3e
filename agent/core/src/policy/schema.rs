//! The Cedar schema, generated from the configuration so that a typo in a policy is a validation error.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cedar_policy::Schema;

use super::finding;
use crate::config::{Attribute, Config};
use crate::diagnostic::{Diagnostic, Location};

/// Attributes every account has; free attributes must not be called like them.
const OWN_ATTRIBUTES: [&str; 3] = ["name", "owner", "executables"];

/// What only an attempt in the kernel has of the state: which executable, and what a person approved for it.
const STATE: &str = "  approvals: Set<String>,
  executable: String,
";

/// The part that any action can have.
const SITUATION: &str = "  risk: Long,
  signals: Set<String>,
  fresh: Set<String>,
  now: datetime,
  hour: Long,
  minute: Long,
  weekday: Long,
";

/// The schema's text and what Cedar makes of it.
pub(crate) fn build(config: &Config) -> Result<(String, Schema), Vec<Diagnostic>> {
    let mut findings = Vec::new();
    let mut text = generated(config, &mut findings);
    let mut starts = Vec::new();
    for file in &config.schemas {
        starts.push((text.len(), file));
        text.push_str(&file.text);
        text.push('\n');
    }
    let locate = |offset: usize, length: usize| -> Option<Location> {
        let (start, file) = starts.iter().rev().find(|(start, _)| *start <= offset)?;
        Some(Location::of(&file.name, &file.text, offset - start, length))
    };
    let schema = match Schema::from_cedarschema_str(&text) {
        Ok((schema, _warnings)) => Some(schema),
        Err(error) => {
            findings.push(finding::from_cedar("schema", &error, &locate));
            None
        }
    };
    match schema {
        Some(schema) if findings.is_empty() => Ok((text, schema)),
        _ => Err(findings),
    }
}

fn generated(config: &Config, findings: &mut Vec<Diagnostic>) -> String {
    let mut text = String::from("entity Team;\nentity ServiceAccount in [Team] = {\n");
    text.push_str("  name: String,\n  owner: String,\n  executables: Set<String>,\n");
    for (name, kind) in free_attributes(config, findings) {
        let _ = writeln!(text, "  {}?: {kind},", quoted(name));
    }
    text.push_str("};\n");
    let names: Vec<String> = config.destinations.keys().map(|name| quoted(name)).collect();
    if names.is_empty() {
        text.push_str("entity Destination;\n");
    } else {
        let _ = writeln!(text, "entity Destination enum [{}];", names.join(", "));
    }
    text.push_str("entity Endpoint in [Destination];\n");
    let actions = [
        ("connect", "  ip: ipaddr,\n  port: Long,\n  protocol: String,\n  new_destination: Bool,\n"),
        ("open-socket", "  family: String,\n"),
    ];
    for (action, inputs) in actions {
        let _ = writeln!(
            text,
            "action \"{action}\" appliesTo {{ principal: [ServiceAccount], resource: [Endpoint], context: {{\n{inputs}{STATE}{SITUATION}}} }};"
        );
    }
    // Who may ask the decision point about somebody else: about an account, or about subjects of a type of `schema.d`.
    let _ = writeln!(
        text,
        "entity SubjectType;\naction \"evaluate\" appliesTo {{ principal: [ServiceAccount], resource: [ServiceAccount, SubjectType], context: {{\n{SITUATION}}} }};"
    );
    text
}

/// Every free attribute with its type; an account that gives it another type is a finding.
fn free_attributes<'a>(config: &'a Config, findings: &mut Vec<Diagnostic>) -> BTreeMap<&'a str, &'static str> {
    let mut kinds: BTreeMap<&str, (&'static str, &str)> = BTreeMap::new();
    for account in config.accounts.values() {
        for (name, value) in &account.attributes {
            let kind = kind(value);
            if OWN_ATTRIBUTES.contains(&name.as_str()) {
                findings.push(
                    Diagnostic::error("attribute", format!("attribute `{name}` of `{}` is writ's own", account.name))
                        .help("give the attribute another name")
                        .at(account.at.clone()),
                );
                continue;
            }
            let (first, by) = *kinds.entry(name).or_insert((kind, &account.name));
            if first != kind {
                findings.push(
                    Diagnostic::error(
                        "attribute",
                        format!("attribute `{name}` is a {kind} for `{}` but a {first} for `{by}`", account.name),
                    )
                    .help("give it the same type everywhere")
                    .at(account.at.clone()),
                );
            }
        }
    }
    kinds.into_iter().map(|(name, (kind, _))| (name, kind)).collect()
}

fn kind(value: &Attribute) -> &'static str {
    match value {
        Attribute::Bool(_) => "Bool",
        Attribute::Long(_) => "Long",
        Attribute::Text(_) => "String",
    }
}

/// A Cedar string literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}
