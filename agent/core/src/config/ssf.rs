//! `[ssf."ISSUER"]`: who may push security event tokens, whom they are about, and what their events mean here.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::fault::Fault;
use super::model::{Transmitter, Verification};
use super::section::Section;
use super::value::{file, kind, name, text};

const KEYS: [&str; 11] = [
    "jwks",
    "audience",
    "ca",
    "subjects",
    "events",
    "critical",
    "heartbeat",
    "verify-endpoint",
    "verify-stream",
    "verify-authorization",
    "verify-every",
];
/// Where Debian, and those that follow it, keep the authorities everybody trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How often a stream is verified, unless configured.
const EVERY: std::time::Duration = std::time::Duration::from_secs(600);

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
        let (jwks, audience) = (own.parsed("jwks", source), own.parsed("audience", text));
        for (key, example) in [("jwks", "\"/etc/writ/issuer.jwks\""), ("audience", "\"https://host.example\"")] {
            if own.value(key).is_none() {
                let fault = Fault::new("missing-key", format!("`[ssf.\"{issuer}\"]` has no `{key}`"));
                own.refuse(value.span(), fault.help(format!("write e.g. {key} = {example}")));
            }
        }
        let subjects = pairs(&mut own, "subjects", name);
        let events = pairs(&mut own, "events", kind);
        let ca = own.parsed("ca", file).unwrap_or_else(|| AUTHORITIES.to_owned());
        let critical = own.list("critical", text).unwrap_or_default().into_iter().map(|(member, _)| member).collect();
        let heartbeat = own.parsed("heartbeat", kind);
        let verification = read_verification(&mut own, &issuer, value.span());
        if let (Some(jwks), Some(audience)) = (jwks, audience) {
            let known = Transmitter { jwks, audience, ca, subjects, events, critical, heartbeat, verification };
            transmitters.insert(issuer, known);
        }
    }
    transmitters
}

fn read_verification(own: &mut Section<'_, '_>, issuer: &str, span: std::ops::Range<usize>) -> Option<Verification> {
    let endpoint = own.parsed("verify-endpoint", url);
    let stream = own.parsed("verify-stream", text);
    let authorization = own.parsed("verify-authorization", file);
    let every = own.duration("verify-every").unwrap_or(EVERY);
    match (endpoint, stream) {
        (Some(endpoint), Some(stream)) => Some(Verification { endpoint, stream, authorization, every }),
        (None, None) => None,
        _ => {
            let fault = Fault::new(
                "missing-key",
                format!("`[ssf.\"{issuer}\"]` has one of `verify-endpoint`, `verify-stream`"),
            );
            own.refuse(span, fault.help("a stream is verified by both: write the other too"));
            None
        }
    }
}

/// A file, or a URL.
fn source(text: &str) -> Result<String, Fault> {
    if text.starts_with('/') { file(text) } else { url(text) }
}

fn url(text: &str) -> Result<String, Fault> {
    let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let local = here
        .iter()
        .any(|host| text.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/'])));
    if !(text.starts_with("https://") || local) || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Fault::new("bad-url", format!("`{text}` is neither a file nor a URL that can be trusted"))
            .help("write an absolute path, `https://…`, or `http://` to this host"));
    }
    Ok(text.to_owned())
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
