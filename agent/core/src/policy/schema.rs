//! The Cedar schema, generated from the configuration so that a typo in a policy is a validation error.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cedar_policy::{Schema, SchemaFragment};
use serde_json::{Value, json};

use super::extent::schema_beyond;
use super::{cut, finding};
use crate::config::{Attribute, Config};
use crate::diagnostic::{Diagnostic, Location};

/// Attributes every account has; free attributes must not be called like them.
const OWN_ATTRIBUTES: [&str; 3] = ["name", "owner", "executables"];

/// What only an attempt in the kernel has of the state: which executable.
const STATE: &str = "  executable: String,
";

/// The part that any action can have. What a person approved, every action has: each may be escalated.
const SITUATION: &str = "  approvals: Set<String>,
  risk: Long,
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
    findings.extend(config.schemas.iter().filter_map(cut::bare_cr));
    findings.extend(config.schemas.iter().filter_map(|file| schema_beyond(&file.name, &file.text)));
    if !findings.is_empty() {
        return Err(findings);
    }
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
    let Some(schema) = schema.filter(|_| findings.is_empty()) else { return Err(findings) };
    if config.schemas.is_empty() {
        return Ok((text, schema));
    }
    approvable(&text).map_err(|finding| vec![*finding])
}

/// The schema with `approvals` in the context of every action of the operator's own, so that each can be escalated.
fn approvable(text: &str) -> Result<(String, Schema), Box<Diagnostic>> {
    let refused = |error: &dyn std::fmt::Display| {
        let finding = Diagnostic::error("schema", format!("the schemas cannot be put together: {error}"));
        Box::new(finding.help("give entity types, actions and common types names of their own"))
    };
    let (fragment, _) = SchemaFragment::from_cedarschema_str(text).map_err(|error| refused(&error))?;
    let mut whole = fragment.to_json_value().map_err(|error| refused(&error))?;
    let common = common_types(&whole);
    for (namespace, body) in whole.as_object_mut().into_iter().flatten() {
        let actions = body.get_mut("actions").and_then(Value::as_object_mut);
        for (action, definition) in actions.into_iter().flatten() {
            let Some(Value::Object(applies)) = definition.get_mut("appliesTo") else { continue };
            let mut context =
                applies.remove("context").unwrap_or_else(|| json!({ "type": "Record", "attributes": {} }));
            // A context may be a common type; its members are then written out, for other uses of the type stay as they are.
            for _ in 0..common.len() {
                let name = context.get("name").or_else(|| context.get("type")).and_then(Value::as_str);
                let known = name.and_then(|name| {
                    common.get(&format!("{namespace}::{name}")).or_else(|| common.get(name.trim_start_matches("::")))
                });
                let Some(known) = known else { break };
                context = known.clone();
            }
            let own = json!({ "type": "Set", "element": { "type": "EntityOrCommon", "name": "__cedar::String" } });
            let Some(members) = context.get_mut("attributes").and_then(Value::as_object_mut) else {
                return Err(refused(&format!("the context of action `{action}` cannot be read")));
            };
            let kept = members.entry("approvals").or_insert_with(|| own.clone());
            if !is_set_of_strings(kept) {
                let message = format!("`approvals` in the context of action `{action}` is writ's own: a `Set<String>`");
                let help = "give the member another name";
                return Err(Box::new(Diagnostic::error("schema", message).help(help)));
            }
            *kept = own;
            applies.insert("context".to_owned(), context);
        }
    }
    let fragment = SchemaFragment::from_json_value(whole).map_err(|error| refused(&error))?;
    let text = fragment.to_cedarschema().map_err(|error| refused(&error))?;
    let (schema, _) = Schema::from_cedarschema_str(&text).map_err(|error| refused(&error))?;
    Ok((text, schema))
}

/// Every common type, by its whole name.
fn common_types(whole: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (namespace, body) in whole.as_object().into_iter().flatten() {
        for (name, definition) in body.get("commonTypes").and_then(Value::as_object).into_iter().flatten() {
            let name = if namespace.is_empty() { name.clone() } else { format!("{namespace}::{name}") };
            found.insert(name, definition.clone());
        }
    }
    found
}

fn is_set_of_strings(member: &Value) -> bool {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let element = member.get("element");
    let named = element.and_then(|element| text(element, "name").or_else(|| text(element, "type")));
    text(member, "type").as_deref() == Some("Set")
        && named.is_some_and(|named| matches!(named.as_str(), "String" | "__cedar::String"))
        && member.get("required").and_then(Value::as_bool).unwrap_or(true)
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
