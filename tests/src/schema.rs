//! What tests produce, held against what is published: docs/record.schema.json, and OCSF's schema of Network Activity.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

/// Decisions of one log that are validated: all of a usual test's, and of a flood's so many, evenly spread. Records of other
/// types are few, and all are.
const MOST: usize = 20_000;
/// Events of one log that are validated.
const MOST_EVENTS: usize = 1_000;

static RECORD: LazyLock<Validator> = LazyLock::new(|| compile(include_str!("../../docs/record.schema.json")));
static EVENT: LazyLock<Validator> =
    LazyLock::new(|| compile(include_str!("../ocsf/network_activity-1.8.0.schema.json")));

fn compile(text: &str) -> Validator {
    let schema: Value = serde_json::from_str(text).expect("a published schema is JSON");
    jsonschema::validator_for(&schema).expect("a published schema is a JSON Schema")
}

/// What is wrong with a line by the published schema of records.
pub fn record_problem(line: &str) -> Option<String> {
    problem(&RECORD, line)
}

/// What is wrong with a line by OCSF's published schema.
pub fn event_problem(line: &str) -> Option<String> {
    problem(&EVENT, line)
}

fn problem(validator: &Validator, line: &str) -> Option<String> {
    let value: Value = match serde_json::from_str(line) {
        Ok(value) => value,
        Err(error) => return Some(format!("not JSON: {error}: {line}")),
    };
    let first = validator.iter_errors(&value).next()?;
    Some(format!("{first} at {}: {line}", first.instance_path()))
}

/// What is wrong with the records of a log, and with the events that `writ tail --ocsf` makes of them.
pub(crate) fn problems(log: &Path, ocsf: &mut Command) -> Vec<String> {
    if crate::second::bytes(log) > crate::second::MOST_BYTES {
        return Vec::new();
    }
    let mut segments: Vec<_> =
        fs::read_dir(log.join("records")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    segments.sort();
    let text: String = segments.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    // What follows the last newline was being written when its daemon was killed.
    let whole = text.rfind('\n').map_or("", |end| text.split_at(end).0);
    let (judged, others): (Vec<&str>, Vec<&str>) = whole
        .lines()
        .partition(|line| line.contains("\"type\":\"decision\"") || line.contains("\"type\":\"observation\""));
    let chosen = spread(&judged, MOST).chain(others);
    let mut found: Vec<String> = chosen.filter_map(record_problem).collect();
    let events = ocsf.output().expect("cannot run `writ`; WRIT_BIN names the binary to test");
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    let events: Vec<&str> = events.lines().collect();
    found.extend(spread(&events, MOST_EVENTS).filter_map(event_problem));
    found.truncate(5);
    found.extend(crate::second::problem(log));
    found
}

/// At most so many, evenly spread.
fn spread<'a>(lines: &[&'a str], most: usize) -> impl Iterator<Item = &'a str> {
    let step = lines.len().div_ceil(most).max(1);
    lines.iter().step_by(step).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_or_no_event_is_told_from_what_is() {
        assert!(record_problem("{\"id\":\"x\",\"type\":\"decision\"}").is_some());
        assert!(record_problem("[]").is_some());
        let event = |activity: u32| {
            format!(
                "{{\"activity_id\":{activity},\"category_uid\":4,\"class_uid\":4001,\"type_uid\":400101,\"severity_id\":1,\
                 \"time\":1,\"metadata\":{{\"version\":\"1.8.0\",\"product\":{{\"name\":\"writ\"}},\"profiles\":\
                 [\"host\",\"security_control\"]}},\"dst_endpoint\":{{\"ip\":\"10.0.0.1\"}},\"action_id\":1,\
                 \"disposition_id\":1}}"
            )
        };
        assert_eq!(event_problem(&event(1)), None);
        assert!(event_problem(&event(4711)).is_some());
    }
}
