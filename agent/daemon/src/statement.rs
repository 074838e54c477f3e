//! A line of JSON as a signal, wherever lines come in: `writ signal ingest`, the drop directory.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::SignalBody;

/// One line as a signal: the API's own form, or a CloudEvents 1.0 envelope whose `type` is the kind, `subject` the
/// account, `id` the event and `time` the observation, with risk, ttl and evidence in `data`.
pub(crate) fn statement(line: &str) -> Result<SignalBody, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    if value.get("specversion").is_none() {
        return serde_json::from_value(value).map_err(|error| format!("not a signal: {error}"));
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let of_data = |name: &str| value.get("data").and_then(|data| data.get(name));
    let risk = match of_data("risk") {
        None | Some(Value::Null) => None,
        Some(risk) => {
            let number = risk.as_u64().and_then(|risk| u8::try_from(risk).ok());
            Some(number.ok_or_else(|| format!("`data.risk` is `{risk}`: write 0 to 100"))?)
        }
    };
    let at = text("time").map(|time| time.parse::<Timestamp>()).transpose();
    Ok(SignalBody {
        account: text("subject")
            .or_else(|| of_data("account").and_then(Value::as_str).map(str::to_owned))
            .ok_or("the event has no `subject`: name the account there")?,
        kind: text("type").ok_or("the event has no `type`: name the kind there")?,
        id: text("id"),
        risk,
        ttl: of_data("ttl").and_then(Value::as_str).map(str::to_owned),
        evidence: of_data("evidence").and_then(Value::as_str).map(str::to_owned),
        at: at.map_err(|error| format!("`time`: {error}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::statement;

    #[test]
    fn a_line_is_a_signal_or_a_cloud_event() {
        let plain = statement(r#"{"account":"billing","kind":"edr.malware","risk":90}"#).unwrap();
        assert_eq!((plain.account.as_str(), plain.kind.as_str(), plain.risk), ("billing", "edr.malware", Some(90)));
        let event = statement(
            r#"{"specversion":"1.0","id":"e-1","source":"/edr","type":"edr.malware","subject":"billing",
                "time":"2026-11-24T00:00:00Z","data":{"risk":90,"ttl":"10m","evidence":"x"}}"#,
        )
        .unwrap();
        assert_eq!((event.id.as_deref(), event.ttl.as_deref(), event.risk), (Some("e-1"), Some("10m"), Some(90)));
        assert!(event.at.is_some());
    }

    #[test]
    fn what_is_neither_is_refused_with_what_is_missing() {
        for (line, says) in [
            ("{", "not JSON"),
            (r#"{"account":"a"}"#, "kind"),
            (r#"{"account":"a","kind":"k","extra":1}"#, "extra"),
            (r#"{"specversion":"1.0","type":"k"}"#, "subject"),
            (r#"{"specversion":"1.0","type":"k","subject":"a","data":{"risk":900}}"#, "data.risk"),
            (r#"{"specversion":"1.0","type":"k","subject":"a","time":"yesterday"}"#, "time"),
        ] {
            let why = statement(line).unwrap_err();
            assert!(why.contains(says), "{line}: {why}");
        }
    }
}
