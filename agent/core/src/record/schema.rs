//! docs/record.schema.json, generated from the types: the test fails when the file is out of date.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{Change, Cut, Decision, Envelope, Escalation, Grant, Lifecycle, Loss, REASON_CODES, SCHEMA};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/record.schema.json");

/// The JSON Schema of a record: the envelope, and by `type` the members of its kind.
pub(super) fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let envelope = generator.subschema_for::<Envelope>().to_value();
    fn of<T: JsonSchema>(generator: &mut schemars::SchemaGenerator, name: &str) -> Value {
        json!({
            "if": { "properties": { "type": { "const": name } } },
            "then": generator.subschema_for::<T>().to_value()
        })
    }
    let mut parts = vec![envelope];
    parts.push(of::<Decision>(&mut generator, "decision"));
    parts.push(of::<Decision>(&mut generator, "observation"));
    parts.push(of::<Change>(&mut generator, "change"));
    parts.push(of::<Cut>(&mut generator, "cut"));
    parts.push(of::<Escalation>(&mut generator, "escalation"));
    parts.push(of::<Grant>(&mut generator, "grant"));
    parts.push(of::<Loss>(&mut generator, "loss"));
    parts.push(of::<Lifecycle>(&mut generator, "lifecycle"));
    let mut definitions = Value::Object(generator.take_definitions(true));
    definitions["Envelope"]["properties"]["type"] =
        json!({ "enum": super::Body::TYPES, "description": "What it is about." });
    definitions["Envelope"]["properties"]["schema"] = json!({ "const": SCHEMA });
    definitions["Decision"]["properties"]["reason_code"]["enum"] =
        REASON_CODES.iter().map(|(code, _)| Value::from(*code)).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "writ record",
        "description": "One line of records/*.jsonl. Generated from agent/core/src/record; see docs/records.md.",
        "type": "object",
        "allOf": parts,
        "$defs": definitions,
    })
}

#[test]
fn the_published_schema_is_generated_from_the_types() {
    let mut generated = serde_json::to_string_pretty(&schema()).unwrap();
    generated.push('\n');
    if std::env::var_os("WRIT_BLESS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(FILE).parent().unwrap()).unwrap();
        std::fs::write(FILE, &generated).unwrap();
    }
    let published = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(published == generated, "docs/record.schema.json is out of date: run the test with WRIT_BLESS=1");
}

/// A validator for the keywords that the published schema uses; any other keyword fails the test.
pub(super) fn violation(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let Value::Object(keywords) = schema else { return (schema == &json!(false)).then(|| at.to_owned()) };
    let fails = |schema: &Value| violation(root, schema, value, at).is_some();
    for (keyword, wanted) in keywords {
        let bad = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "format" | "default" | "then" | "pattern" => false,
            "$ref" => {
                let target = root.pointer(wanted.as_str().unwrap().trim_start_matches('#')).unwrap();
                if let Some(found) = violation(root, target, value, at) {
                    return Some(found);
                }
                false
            }
            "allOf" => {
                if let Some(found) = wanted.as_array().unwrap().iter().find_map(|part| violation(root, part, value, at))
                {
                    return Some(found);
                }
                false
            }
            "anyOf" => wanted.as_array().unwrap().iter().all(fails),
            "oneOf" => wanted.as_array().unwrap().iter().filter(|part| !fails(part)).count() != 1,
            "if" => !fails(wanted) && schema.get("then").is_some_and(fails),
            "const" => wanted != value,
            "enum" => !wanted.as_array().unwrap().contains(value),
            "type" => {
                let of_type = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                !wanted.as_array().map_or_else(|| of_type(wanted), |names| names.iter().any(of_type))
            }
            "minimum" => value.as_i64().is_some_and(|number| number < wanted.as_i64().unwrap()),
            "maximum" => value.as_u64().is_some_and(|number| number > wanted.as_u64().unwrap()),
            "required" => wanted.as_array().unwrap().iter().any(|name| value.get(name.as_str().unwrap()).is_none()),
            "items" => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                items.iter().any(|item| violation(root, wanted, item, at).is_some())
            }
            "properties" => {
                let found = wanted.as_object().unwrap().iter().find_map(|(name, part)| {
                    value.get(name).and_then(|member| violation(root, part, member, &format!("{at}.{name}")))
                });
                if found.is_some() {
                    return found;
                }
                false
            }
            "additionalProperties" if wanted.is_object() || wanted == &json!(true) => false,
            other => panic!("keyword {other} in the schema"),
        };
        if bad {
            return Some(format!("{at}: {keyword} {wanted}"));
        }
    }
    None
}
