//! One signal: as it comes in, as it is kept, and what became of it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::admission::Unauthorised;
use super::kind::is_kind;
use super::{Caller, Source};

const MAX_ID: usize = 128;
const MAX_EVIDENCE: usize = 4096;
/// Ids that writ assigns begin with this; no sender can give one.
const ASSIGNED: &str = "S-";

/// A signal as a sender states it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Incoming {
    /// The sender's own id for the event; makes repeats harmless.
    #[serde(default)]
    pub id: Option<String>,
    /// The account it is about.
    pub account: String,
    /// Its kind.
    pub kind: String,
    /// Risk contribution; the kind's where absent.
    #[serde(default)]
    pub risk: Option<u8>,
    /// Time to live; the kind's where absent.
    #[serde(default)]
    pub ttl: Option<Duration>,
    /// Free text.
    #[serde(default)]
    pub evidence: Option<String>,
    /// When it was observed; the moment of receipt where absent.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

impl Incoming {
    /// What is wrong with its form.
    pub(super) fn malformed(&self) -> Option<Malformed> {
        let bad_id = |id: &String| {
            id.is_empty()
                || id.len() > MAX_ID
                || id.starts_with(ASSIGNED)
                || !id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !is_kind(&self.kind) {
            return Some(Malformed::Kind);
        }
        if self.id.as_ref().is_some_and(bad_id) {
            return Some(Malformed::Id);
        }
        if self.risk.is_some_and(|risk| risk > 100) {
            return Some(Malformed::Risk);
        }
        self.ttl.is_some_and(|ttl| ttl.is_zero()).then_some(Malformed::Ttl)
    }

    /// The id writ assigns: a digest of what was said, so that the same statement gets the same id.
    pub(super) fn assigned_id(&self, caller: &Caller, at: Timestamp) -> String {
        let ttl = self.ttl.map(|ttl| ttl.as_nanos());
        let said = (&self.id, &self.account, &self.kind, self.risk, ttl, &self.evidence);
        format!("{ASSIGNED}{}", short_digest(8, &format!("{said:?} {} {:?} {at}", caller.uid, caller.name)))
    }

    /// The evidence as it is kept, and whether that is less than what was sent.
    pub(super) fn kept_evidence(&self) -> (Option<String>, bool) {
        match &self.evidence {
            None => (None, false),
            Some(text) => {
                let kept = bounded(text, MAX_EVIDENCE);
                let clipped = kept.len() < text.len();
                (Some(kept), clipped)
            }
        }
    }
}

/// A signal as it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signal {
    /// Unique among live signals: the sender's id, or an assigned one where there was none or it was taken.
    pub id: String,
    /// What the sender called the event, where that is not `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The account it is about.
    pub account: String,
    /// Its kind.
    pub kind: String,
    /// Risk contribution, 0–100, fixed at receipt.
    pub risk: u8,
    /// Who sent it.
    pub source: Source,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// When it was observed.
    pub at: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

impl Signal {
    /// The id under which repeats are recognised.
    pub(super) fn event(&self) -> &str {
        self.event.as_deref().unwrap_or(&self.id)
    }

    /// Whether it still holds.
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.expires
    }

    /// Which of two statements of one source is the later one. At the same instant the graver wins, so that the order
    /// of arrival never matters.
    pub(super) fn supersedes(&self, other: &Self) -> bool {
        (self.at, self.risk, self.expires, &self.id) > (other.at, other.risk, other.expires, &other.id)
    }
}

/// What became of an incoming signal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is live.
    Accepted(Box<Accepted>),
    /// This source's event of this id was received before; nothing changed.
    Duplicate {
        /// The event's id.
        id: String,
    },
    /// A later statement of the same kind and source is live; nothing changed.
    OutOfOrder {
        /// The live signal.
        live: String,
    },
    /// It claims to be from the future.
    FutureDated {
        /// What it claims.
        at: Timestamp,
    },
    /// Its time was over before it came.
    Stale {
        /// When it ended.
        expired: Timestamp,
    },
    /// The kind is not declared, and the sender is not one who may send such.
    UnknownKind,
    /// The kind is not declared: risk and time to live must be given.
    Incomplete,
    /// The account is not declared.
    UnknownAccount,
    /// The sender may not say this about this account.
    Unauthorised {
        /// Why.
        reason: Unauthorised,
    },
    /// As many signals are live as are kept, and none of them may give way.
    Overflow {
        /// How many that is.
        limit: usize,
    },
    /// Its form is wrong.
    Malformed {
        /// What is wrong.
        field: Malformed,
    },
}

impl Outcome {
    /// Its name in records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Duplicate { .. } => "duplicate",
            Self::OutOfOrder { .. } => "out-of-order",
            Self::FutureDated { .. } => "future-dated",
            Self::Stale { .. } => "stale",
            Self::UnknownKind => "unknown-kind",
            Self::Incomplete => "incomplete",
            Self::UnknownAccount => "unknown-account",
            Self::Unauthorised { .. } => "unauthorised",
            Self::Overflow { .. } => "overflow",
            Self::Malformed { .. } => "malformed",
        }
    }

    /// It in words, with what to do; `kind` is the kind that was sent.
    pub fn told(&self, kind: &str) -> String {
        match self {
            Self::Accepted(_) => "accepted".to_owned(),
            Self::Duplicate { id } => format!("signal `{id}` was received before"),
            Self::OutOfOrder { live } => format!("a later statement is live: `{live}`"),
            Self::FutureDated { at } => format!("it claims to be from the future ({at}): check the sender's clock"),
            Self::Stale { expired } => format!("its time was over before it came: it ended at {expired}"),
            Self::UnknownKind => {
                format!("signal kind `{kind}` is not declared, and only root or an operator may send such")
            }
            Self::Incomplete => format!(
                "signal kind `{kind}` is not declared: give its risk and time to live (`--risk N --ttl D`), or declare \
                 `[signal.\"{kind}\"]` in signals.d"
            ),
            Self::UnknownAccount => "no such service account is declared".to_owned(),
            Self::Unauthorised { reason } => reason.told(kind),
            Self::Overflow { limit } => {
                format!("{limit} signals of this account are live, which is as many as are kept")
            }
            Self::Malformed { field } => field.told(),
        }
    }

    /// The signal, if it was accepted.
    pub fn accepted(&self) -> Option<&Signal> {
        match self {
            Self::Accepted(accepted) => Some(&accepted.signal),
            _ => None,
        }
    }
}

/// An accepted signal and what it moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The signal as it is kept.
    pub signal: Signal,
    /// The earlier statement of the same kind and source that it took the place of.
    pub replaced: Option<Signal>,
    /// A lesser signal that gave way because as many are live as are kept.
    pub evicted: Option<Signal>,
    /// What was reduced to what the kind allows.
    pub clipped: Clipped,
}

/// What of a signal was reduced on receipt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clipped {
    /// The time to live exceeded the kind's.
    pub ttl: bool,
    /// The risk exceeded the kind's, and the sender is no operator.
    pub risk: bool,
    /// The evidence was too long.
    pub evidence: bool,
}

/// Which part of an incoming signal is malformed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Malformed {
    /// Not a kind's name.
    Kind,
    /// Empty, too long, not printable, or begins as assigned ids do.
    Id,
    /// Above 100.
    Risk,
    /// Zero.
    Ttl,
}

impl Malformed {
    fn told(self) -> String {
        match self {
            Self::Kind => "the kind is not a name: words of letters, digits, `_` and `-`, joined by single dots",
            Self::Id => "the id is empty, too long or not printable, or begins as ids do that writ gives",
            Self::Risk => "the risk is above 100",
            Self::Ttl => "the time to live is zero",
        }
        .to_owned()
    }
}

/// At most `limit` bytes of a text, whole characters only.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("").to_owned()
}

/// The first bytes of a text's digest, in hexadecimal: an id that the same text always gets.
pub(crate) fn short_digest(bytes: usize, text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}
