//! Records as lines: written so that they always fit a log entry, read back whole or only by their head.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Body, Host, Record, SCHEMA, Time};

/// The longest line: a tlog entry's length is 16 bits.
pub const MAX_LINE: usize = 65_535;
/// Room for the line of an ordinary decision.
const USUAL_LINE: usize = 2560;
/// What the members may measure, one try after the other: bytes of a string, items of a list or map.
const LIMITS: [(usize, usize); 6] = [(4096, 1024), (1024, 256), (512, 64), (256, 16), (96, 8), (48, 3)];
/// Members that identify a record and are short by nature: never shortened.
const KEPT: [&str; 6] = ["id", "type", "time", "schema", "host", "agent_version"];

/// A line that is not a record.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or a member is missing or of the wrong kind.
    #[error("not a record: {0}")]
    Json(#[from] serde_json::Error),
    /// A `type` this agent does not know.
    #[error("unknown record type `{0}`")]
    Type(String),
    /// A newer schema.
    #[error("schema {0} is newer than the {SCHEMA} this agent reads")]
    Schema(u32),
}

#[derive(Serialize)]
struct Line<'a, T> {
    id: &'a str,
    r#type: &'static str,
    time: Time,
    schema: u32,
    host: &'a Host,
    agent_version: &'a str,
    #[serde(flatten)]
    body: &'a T,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    truncated: &'a [String],
}

/// The members every record has.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Envelope {
    /// Unique, and ordered by time.
    pub id: String,
    /// What it is about.
    pub r#type: String,
    /// When it happened.
    pub time: Time,
    /// Version of the schema.
    pub schema: u32,
    /// Where it happened.
    pub host: Host,
    /// Version of the agent that wrote it.
    pub agent_version: String,
    /// Members that were shortened to fit the line.
    #[serde(default)]
    pub truncated: Vec<String>,
}

/// The few members that sorting, filtering and gap-finding need, borrowed from the line.
#[derive(Debug, Deserialize)]
pub struct Head<'a> {
    /// The record's id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// Its type.
    #[serde(borrow)]
    pub r#type: Cow<'a, str>,
    /// Its time, as text (which sorts).
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// Its host.
    #[serde(borrow)]
    pub host: HeadHost<'a>,
    /// Its account.
    #[serde(borrow, default)]
    pub account: Option<Cow<'a, str>>,
    /// Its verdict.
    #[serde(borrow, default)]
    pub verdict: Option<Cow<'a, str>>,
    /// Its place in the kernel's order.
    #[serde(default)]
    pub kernel: Option<HeadKernel>,
    /// Of a loss: its CPU.
    #[serde(default)]
    pub cpu: Option<u32>,
    /// Of a loss: its range.
    #[serde(default)]
    pub from_sequence: Option<u64>,
    /// Of a loss: its range.
    #[serde(default)]
    pub to_sequence: Option<u64>,
    /// Of a loss or a judgement: how many attempts it stands for.
    #[serde(default)]
    pub count: Option<u64>,
}

/// What [`Record::check`] asks of a decision or observation, the bulk of every log: every member that must be there, with
/// its kind, read in one pass without building anything.
#[derive(Deserialize)]
#[expect(dead_code, reason = "that they are there, and of this kind, is all that is asked of most members")]
struct Judged<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    time: Time,
    schema: u32,
    #[serde(borrow)]
    host: HeadHost<'a>,
    #[serde(borrow)]
    agent_version: Cow<'a, str>,
    #[serde(borrow)]
    account: Cow<'a, str>,
    identified_by: IgnoredAny,
    also_matched: IgnoredAny,
    verdict: super::Verdict,
    effective_mode: super::EffectiveMode,
    #[serde(borrow)]
    action: Cow<'a, str>,
    policies: IgnoredAny,
    #[serde(borrow)]
    policy_digest: Cow<'a, str>,
    #[serde(borrow)]
    stance_digest: Cow<'a, str>,
    risk: u8,
    signals: IgnoredAny,
    request: IgnoredAny,
    #[serde(default)]
    kernel: Option<HeadKernel>,
    #[serde(borrow)]
    reason_code: Cow<'a, str>,
    errno: IgnoredAny,
    count: u32,
    boot_time_ns: u64,
}

/// What a checked line says about completeness.
#[derive(Clone, PartialEq, Debug)]
pub enum Checked {
    /// A decision or observation.
    Judged {
        /// Its boot.
        boot_id: String,
        /// Its place in the kernel's order; `None` for questions to the decision endpoint.
        place: Option<(u32, u64)>,
        /// How many attempts it stands for.
        count: u32,
    },
    /// Any other record.
    Other(Box<Record>),
}

/// The host of a [`Head`].
#[derive(Debug, Deserialize)]
pub struct HeadHost<'a> {
    /// The machine id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The boot id.
    #[serde(borrow)]
    pub boot_id: Cow<'a, str>,
}

/// The kernel's order in a [`Head`].
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct HeadKernel {
    /// The CPU.
    pub cpu: u32,
    /// The number on that CPU.
    pub sequence: u64,
}

impl<'a> Head<'a> {
    /// Reads the head of a line.
    pub fn of(line: &'a [u8]) -> Result<Self, ParseError> {
        Ok(serde_json::from_slice(line)?)
    }
}

impl Record {
    /// The record as one line of JSON without its newline, at most [`MAX_LINE`] bytes. Where it would be longer, the
    /// longest strings, lists and maps are shortened, always in the same way, and their names are put in `truncated`.
    pub fn to_line(&self) -> Vec<u8> {
        let line = self.render();
        if line.len() <= MAX_LINE {
            return line;
        }
        let Ok(whole) = serde_json::from_slice::<Value>(&line) else { return line };
        for (string_limit, item_limit) in LIMITS {
            let mut value = whole.clone();
            let mut truncated: BTreeSet<String> = self.truncated.iter().cloned().collect();
            if let Value::Object(members) = &mut value {
                for (name, member) in members.iter_mut().filter(|(name, _)| !KEPT.contains(&name.as_str())) {
                    shorten(member, name, (string_limit, item_limit), &mut truncated);
                }
                members.insert("truncated".to_owned(), truncated.into_iter().collect());
            }
            let shorter = value.to_string().into_bytes();
            if shorter.len() <= MAX_LINE {
                return shorter;
            }
        }
        // No record type has so many members that the last limits leave more than a few kilobytes, but for an envelope
        // of absurd length, which only a broken configuration of the host can make.
        self.without_details().render()
    }

    /// Whether a line is a record, with every member it must have: several times faster than [`Record::from_line`].
    pub fn check(line: &[u8]) -> Result<Checked, ParseError> {
        let judged = matches!(kind_of_line(line), Some(b"decision" | b"observation"));
        let whole = || Self::from_line(line).map(|record| Checked::Other(Box::new(record)));
        if !judged {
            return whole();
        }
        let judged: Judged<'_> = serde_json::from_slice(line)?;
        if !matches!(judged.r#type.as_ref(), "decision" | "observation") {
            return whole();
        }
        if judged.schema > SCHEMA {
            return Err(ParseError::Schema(judged.schema));
        }
        Ok(Checked::Judged {
            boot_id: judged.host.boot_id.into_owned(),
            place: judged.kernel.map(|kernel| (kernel.cpu, kernel.sequence)),
            count: judged.count,
        })
    }

    /// Reads a line back.
    pub fn from_line(line: &[u8]) -> Result<Self, ParseError> {
        let envelope: Envelope = serde_json::from_slice(line)?;
        if envelope.schema > SCHEMA {
            return Err(ParseError::Schema(envelope.schema));
        }
        let body = match envelope.r#type.as_str() {
            "decision" => Body::Decision(member(line)?),
            "observation" => Body::Observation(member(line)?),
            "change" => Body::Change(member(line)?),
            "cut" => Body::Cut(member(line)?),
            "escalation" => Body::Escalation(member(line)?),
            "grant" => Body::Grant(member(line)?),
            "loss" => Body::Loss(member(line)?),
            "lifecycle" => Body::Lifecycle(member(line)?),
            other => return Err(ParseError::Type(other.to_owned())),
        };
        Ok(Self {
            id: envelope.id,
            time: envelope.time,
            schema: envelope.schema,
            host: envelope.host,
            agent_version: envelope.agent_version,
            body,
            truncated: envelope.truncated,
        })
    }

    fn render(&self) -> Vec<u8> {
        match &self.body {
            Body::Decision(body) | Body::Observation(body) => self.render_with(body),
            Body::Change(body) => self.render_with(body),
            Body::Cut(body) => self.render_with(body),
            Body::Escalation(body) => self.render_with(body),
            Body::Grant(body) => self.render_with(body),
            Body::Loss(body) => self.render_with(body),
            Body::Lifecycle(body) => self.render_with(body),
        }
    }

    fn render_with<T: Serialize>(&self, body: &T) -> Vec<u8> {
        let line = Line {
            id: &self.id,
            r#type: self.body.kind(),
            time: self.time,
            schema: self.schema,
            host: &self.host,
            agent_version: &self.agent_version,
            body,
            truncated: &self.truncated,
        };
        let mut text = Vec::with_capacity(USUAL_LINE);
        // Every member is a string-keyed struct, a map with string keys or a plain value: nothing that JSON cannot hold.
        match serde_json::to_writer(&mut text, &line) {
            Ok(()) => text,
            Err(_) => Vec::new(),
        }
    }

    /// The same record as a loss of its details: what is written when nothing else fits.
    fn without_details(&self) -> Self {
        let short = |text: &str| text.chars().take(128).collect::<String>();
        let loss = super::Loss {
            count: 1,
            reason: "too-long".to_owned(),
            detail: Some(format!("a {} that does not fit a line", self.body.kind())),
            ..super::Loss::default()
        };
        Self {
            id: short(&self.id),
            host: Host { id: short(&self.host.id), boot_id: short(&self.host.boot_id) },
            agent_version: short(&self.agent_version),
            body: Body::Loss(Box::new(loss)),
            truncated: Vec::new(),
            ..self.clone()
        }
    }
}

/// The type of a line, as it stands in its place: lines are written with their id and type in front. `None` of a line that
/// is not; it may be a record all the same.
pub fn kind_of_line(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"{\"id\":\"")?;
    let end = rest.iter().take(64).position(|byte| matches!(byte, b'"' | b'\\'))?;
    let kind = rest.get(end..)?.strip_prefix(b"\",\"type\":\"")?;
    kind.get(..kind.iter().take(16).position(|byte| *byte == b'"')?)
}

fn member<T: DeserializeOwned>(line: &[u8]) -> Result<T, ParseError> {
    Ok(serde_json::from_slice(line)?)
}

/// Cuts a member down to the limits; `path` is its name, with `[]` for each list it is inside.
fn shorten(value: &mut Value, path: &str, limits: (usize, usize), truncated: &mut BTreeSet<String>) {
    let (string_limit, item_limit) = limits;
    match value {
        Value::String(text) if text.len() > string_limit => {
            let mut end = string_limit;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
            truncated.insert(path.to_owned());
        }
        Value::Array(items) => {
            if items.len() > item_limit {
                items.truncate(item_limit);
                truncated.insert(path.to_owned());
            }
            for item in items {
                shorten(item, &format!("{path}[]"), limits, truncated);
            }
        }
        Value::Object(members) => {
            // A struct of ours has fewer members than this; only free maps (the request's context) can have more.
            let most = item_limit.max(32);
            if members.len() > most {
                let kept = std::mem::take(members).into_iter().take(most);
                members.extend(kept);
                truncated.insert(path.to_owned());
            }
            for (name, member) in members.iter_mut() {
                shorten(member, &format!("{path}.{name}"), limits, truncated);
            }
        }
        _ => {}
    }
}
