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
