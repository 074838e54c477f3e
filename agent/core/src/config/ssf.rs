//! `[ssf."ISSUER"]`: who may push security event tokens, whom they are about, and what their events mean here.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::fault::Fault;
use super::model::Transmitter;
use super::section::Section;
use super::value::{file, kind, name, text};

const KEYS: [&str; 4] = ["jwks", "audience", "subjects", "events"];

/// Reads every transmitter.
pub(super) fn read_transmitters(section: &mut Section<'_, '_>) -> BTreeMap<String, Transmitter> {
    let mut transmitters = BTreeMap::new();
    let Some(table) = section.value("ssf").and_then(|value| section.table_of("ssf", value)) else {
        return transmitters;
    };
    let mut all = section.below(table, "`[ssf]`".to_owned());
    for (key, value) in table {
        let issuer = key.get_ref().to_string();
        let Some(table) = all.table_of(&issuer, value) else { continue };
        let mut own = all.below(table, format!("`[ssf.\"{issuer}\"]`"));
        own.know(&KEYS);
        let (jwks, audience) = (own.parsed("jwks", file), own.parsed("audience", text));
        for (key, example) in [("jwks", "\"/etc/writ/issuer.jwks\""), ("audience", "\"https://host.example\"")] {
            if own.value(key).is_none() {
                let fault = Fault::new("missing-key", format!("`[ssf.\"{issuer}\"]` has no `{key}`"));
                own.refuse(value.span(), fault.help(format!("write e.g. {key} = {example}")));
            }
        }
        let subjects = pairs(&mut own, "subjects", name);
        let events = pairs(&mut own, "events", kind);
        if let (Some(jwks), Some(audience)) = (jwks, audience) {
            transmitters.insert(issuer, Transmitter { jwks, audience, subjects, events });
        }
    }
    transmitters
}

/// A table of strings.
fn pairs(
    section: &mut Section<'_, '_>,
    key: &str,
    parse: fn(&str) -> Result<String, Fault>,
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(table) = section.value(key).and_then(|value| section.table_of(key, value)) else { return found };
    let mut below = section.below(table, format!("`{key}`"));
    for (name, value) in table {
        let DeValue::String(text) = value.get_ref() else {
            let _: Option<()> = below.wrong_type(name.get_ref(), value, "a string");
            continue;
        };
        match parse(text) {
            Ok(value) => drop(found.insert(name.get_ref().to_string(), value)),
            Err(fault) => below.refuse(value.span(), fault),
        }
    }
    found
}
