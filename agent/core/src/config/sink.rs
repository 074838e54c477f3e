//! `[sink.NAME]`: where records are sent besides the log.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::model::{Sink, SinkKind};
use super::section::{Scalar, Section};
use super::value::{file, name, size};
use crate::record::Body;

/// Keys of a sink of each kind.
const OCSF_FILE: [&str; 5] = ["type", "types", "path", "rotate-size", "keep"];
const JOURNALD: [&str; 3] = ["type", "types", "socket"];

/// The smallest file that is rotated: a few hundred events.
const MIN_ROTATE: u64 = 64 << 10;

/// The most rotated files that are kept.
const MAX_KEEP: i64 = 1000;

/// What `type` can be.
#[derive(Clone, Copy)]
enum Type {
    OcsfFile,
    Journald,
}

/// Reads every sink.
pub(super) fn read_sinks(section: &mut Section<'_, '_>) -> BTreeMap<String, Sink> {
    let mut sinks: BTreeMap<String, Sink> = BTreeMap::new();
    let Some(table) = section.value("sink").and_then(|value| section.table_of("sink", value)) else { return sinks };
    let mut all = section.below(table, "`[sink]`".to_owned());
    for (key, value) in table {
        let called = key.get_ref().to_string();
        if let Err(fault) = name(&called).and_then(not_the_log) {
            all.refuse(key.span(), fault);
            continue;
        }
        let Some(table) = all.table_of(&called, value) else { continue };
        let mut own = all.below(table, format!("`[sink.{called}]`"));
        let Some(sink) = read_sink(&mut own, &called, value.span()) else { continue };
        let SinkKind::OcsfFile { path, .. } = &sink.kind else {
            sinks.insert(called, sink);
            continue;
        };
        let writes = |other: &&Sink| matches!(&other.kind, SinkKind::OcsfFile { path: taken, .. } if taken == path);
        if sinks.values().any(|other| writes(&other)) {
            let message = format!("`{path}` is the file of two sinks");
            own.refuse(value.span(), Fault::new("same-sink-path", message).help("each sink needs a file of its own"));
        }
        sinks.insert(called, sink);
    }
    sinks
}

/// `log` is how `status` names the log itself.
fn not_the_log(name: String) -> Result<String, Fault> {
    match name.as_str() {
        "log" => Err(Fault::new("bad-name", "`log` is the log itself").help("name the sink otherwise")),
        _ => Ok(name),
    }
}

fn read_sink(own: &mut Section<'_, '_>, called: &str, at: std::ops::Range<usize>) -> Option<Sink> {
    if own.value("type").is_none() {
        let fault = Fault::new("missing-key", format!("`[sink.{called}]` has no `type`"));
        own.refuse(at, fault.help("write type = \"ocsf-file\" or type = \"journald\""));
        return None;
    }
    let kind = match own.choice("type", &[("ocsf-file", Type::OcsfFile), ("journald", Type::Journald)])? {
        Type::OcsfFile => {
            own.know(&OCSF_FILE);
            if own.value("path").is_none() {
                let fault = Fault::new("missing-key", format!("`[sink.{called}]` has no `path`"));
                own.refuse(at, fault.help("write e.g. path = \"/var/log/writ/ocsf/events.jsonl\""));
            }
            SinkKind::OcsfFile {
                path: own.parsed("path", file)?,
                rotate_size: own.scalar("rotate-size", "a size", rotate_size).unwrap_or(64 << 20),
                keep: own.scalar("keep", "an integer", keep).unwrap_or(4),
            }
        }
        Type::Journald => {
            own.know(&JOURNALD);
            let socket = own.parsed("socket", file);
            SinkKind::Journald { socket: socket.unwrap_or_else(|| "/run/systemd/journal/socket".to_owned()) }
        }
    };
    let types = own.list("types", record_type).map(|list| list.into_iter().map(|(kind, _)| kind).collect());
    Some(Sink { kind, types: types.unwrap_or_default() })
}

fn record_type(text: &str) -> Result<String, Fault> {
    match Body::TYPES.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(Fault::new("unknown-value", format!("`{text}` is not a type of record"))
            .help(super::fault::suggest(text, Body::TYPES))),
    }
}

fn rotate_size(value: &Scalar<'_>) -> Option<Result<u64, Fault>> {
    let bytes = match value {
        Scalar::Text(text) => size(text),
        Scalar::Number(number) => {
            u64::try_from(*number).map_err(|_| Fault::new("bad-size", format!("`{number}` is not a size")))
        }
    };
    Some(bytes.and_then(|bytes| {
        match bytes {
            MIN_ROTATE.. => Ok(bytes),
            _ => Err(Fault::new("bad-size", format!("{bytes} bytes is too small for a file that is rotated"))
                .help("write \"64KiB\" or more")),
        }
    }))
}

fn keep(value: &Scalar<'_>) -> Option<Result<u32, Fault>> {
    let Scalar::Number(number) = value else { return None };
    Some(match u32::try_from(*number) {
        Ok(files) if (1..=MAX_KEEP).contains(number) => Ok(files),
        _ => Err(Fault::new("bad-number", format!("`{number}` is not a number of files")).help("write 1 to 1000")),
    })
}
