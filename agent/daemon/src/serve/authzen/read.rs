//! AuthZEN's requests, read by hand: what is missing or of another type is named, what is unknown is ignored.

use serde_json::{Map, Value};

use crate::engine::{Asked, Party};

/// The most questions one request may hold.
const MOST_EVALUATIONS: usize = 256;

type Read<T> = Result<T, String>;

/// When a batch ends before its last question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Semantic {
    /// Never.
    ExecuteAll,
    /// At the first `false`.
    DenyOnFirstDeny,
    /// At the first `true`.
    PermitOnFirstPermit,
}

/// What is asked for.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Batch {
    /// No `evaluations`: one question, answered as one.
    Single(Box<Asked>),
    /// Each question, or what is wrong with it.
    Several(Vec<Read<Asked>>, Semantic),
}

/// The body as an object.
pub(super) fn object(body: &[u8]) -> Read<Map<String, Value>> {
    if body.is_empty() {
        return Err("the body is empty: send a JSON object".into());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err("the body is not a JSON object".into()),
        Err(error) => Err(format!("the body is not JSON: {error}")),
    }
}

/// One question.
pub(super) fn question(members: &Map<String, Value>) -> Read<Asked> {
    let action = member(members, "action")?;
    let mut context = properties(members, "context", "context")?;
    // An action's properties are context to Cedar; where both speak, the action is the more specific.
    context.extend(properties(action, "properties", "action.properties")?);
    Ok(Asked {
        subject: party(members, "subject")?,
        action: text(action, "name", "action.name")?,
        resource: party(members, "resource")?,
        context,
    })
}

/// A question, or several with defaults.
pub(super) fn batch(members: &Map<String, Value>) -> Read<Batch> {
    let semantic = semantic(members)?;
    let items = match members.get("evaluations") {
        None | Some(Value::Null) => return question(members).map(|asked| Batch::Single(Box::new(asked))),
        Some(Value::Array(items)) if items.is_empty() => {
            return question(members).map(|asked| Batch::Single(Box::new(asked)));
        }
        Some(Value::Array(items)) => items,
        Some(_) => return Err("`evaluations` is not an array".into()),
    };
    if items.len() > MOST_EVALUATIONS {
        return Err(format!("{} evaluations in one request: {MOST_EVALUATIONS} is the limit", items.len()));
    }
    for name in ["subject", "action", "resource", "context"] {
        if members.get(name).is_some_and(|default| !default.is_object() && !default.is_null()) {
            return Err(format!("`{name}` is not an object"));
        }
    }
    let defaults = |item: &Value| {
        let Value::Object(item) = item else { return Err("an evaluation is not an object".to_owned()) };
        let mut whole = members.clone();
        whole.extend(item.iter().map(|(name, value)| (name.clone(), value.clone())));
        question(&whole)
    };
    Ok(Batch::Several(items.iter().map(defaults).collect(), semantic))
}

fn semantic(members: &Map<String, Value>) -> Read<Semantic> {
    let options = match members.get("options") {
        None | Some(Value::Null) => return Ok(Semantic::ExecuteAll),
        Some(Value::Object(options)) => options,
        Some(_) => return Err("`options` is not an object".into()),
    };
    match options.get("evaluations_semantic") {
        None | Some(Value::Null) => Ok(Semantic::ExecuteAll),
        Some(Value::String(name)) => match name.as_str() {
            "execute_all" => Ok(Semantic::ExecuteAll),
            "deny_on_first_deny" => Ok(Semantic::DenyOnFirstDeny),
            "permit_on_first_permit" => Ok(Semantic::PermitOnFirstPermit),
            other => Err(format!("`options.evaluations_semantic` `{other}` is not known")),
        },
        Some(_) => Err("`options.evaluations_semantic` is not a string".into()),
    }
}

fn party(members: &Map<String, Value>, name: &str) -> Read<Party> {
    let party = member(members, name)?;
    Ok(Party {
        kind: text(party, "type", &format!("{name}.type"))?,
        id: text(party, "id", &format!("{name}.id"))?,
        properties: properties(party, "properties", &format!("{name}.properties"))?,
    })
}

fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Read<&'a Map<String, Value>> {
    match members.get(name) {
        None | Some(Value::Null) => Err(format!("`{name}` is missing")),
        Some(Value::Object(member)) => Ok(member),
        Some(_) => Err(format!("`{name}` is not an object")),
    }
}

fn text(members: &Map<String, Value>, name: &str, path: &str) -> Read<String> {
    match members.get(name) {
        None | Some(Value::Null) => Err(format!("`{path}` is missing")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{path}` is not a string")),
    }
}

fn properties(members: &Map<String, Value>, name: &str, path: &str) -> Read<Map<String, Value>> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(properties)) => Ok(properties.clone()),
        Some(_) => Err(format!("`{path}` is not an object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({"subject": {"type": "user", "id": "alice"}, "action": {"name": "read"}, "resource": {"type": "record", "id": "1"}})
    }

    fn read(value: &Value) -> Read<Asked> {
        question(&object(value.to_string().as_bytes())?)
    }

    #[test]
    fn every_missing_or_mistyped_member_is_named() {
        for (pointer, name) in [
            ("/subject", "subject"),
            ("/subject/type", "subject.type"),
            ("/subject/id", "subject.id"),
            ("/action", "action"),
            ("/action/name", "action.name"),
            ("/resource", "resource"),
            ("/resource/type", "resource.type"),
            ("/resource/id", "resource.id"),
        ] {
            for wrong in [json!(null), json!(123), json!([])] {
                let mut value = good();
                *value.pointer_mut(pointer).unwrap() = wrong.clone();
                let said = read(&value).unwrap_err();
                assert!(said.contains(&format!("`{name}`")), "{pointer} {wrong}: {said}");
            }
        }
        for body in ["", "{", "[]", "\"x\"", "{\"subject\": \"alice\"}"] {
            assert!(object(body.as_bytes()).and_then(|members| question(&members)).is_err(), "{body}");
        }
    }

    #[test]
    fn unknown_members_are_ignored_and_properties_are_kept() {
        let mut value = good();
        value["else"] = json!(1);
        value["subject"]["colour"] = json!("red");
        value["action"]["properties"] = json!({"soft": true});
        value["context"] = json!({"ip": "x"});
        let asked = read(&value).unwrap();
        assert_eq!(Value::Object(asked.context), json!({"ip": "x", "soft": true}));
    }

    #[test]
    fn a_batch_has_defaults_and_keeps_what_is_broken() {
        let mut value = good();
        assert!(matches!(batch(value.as_object().unwrap()), Ok(Batch::Single(_))));
        value["evaluations"] = json!([{}, {"resource": {"type": "record", "id": "2"}}, {"resource": 3}, 4]);
        let Ok(Batch::Several(items, Semantic::ExecuteAll)) = batch(value.as_object().unwrap()) else { panic!() };
        let ids: Vec<_> = items.iter().map(|item| item.as_ref().ok().map(|asked| asked.resource.id.as_str())).collect();
        assert_eq!(ids, [Some("1"), Some("2"), None, None]);
        value["options"] = json!({"evaluations_semantic": "sometimes"});
        assert!(batch(value.as_object().unwrap()).is_err());
        value["evaluations"] = json!({});
        assert!(batch(value.as_object().unwrap()).is_err());
    }
}
