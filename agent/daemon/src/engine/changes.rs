//! What changed, for those who must know at once that an earlier answer no longer holds: the latest such records, by their
//! index in the log.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use writ_core::record::kind_of_line;

/// How many are kept for those who come back; who was away longer is told to ask everything again.
const KEPT: usize = 4_096;
/// Events of the agent's life that change what anybody may do.
const EVENTS: [&str; 4] = ["start", "adopt", "reload", "break-glass"];

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Change {
    /// Index of the record in the log.
    pub(crate) sequence: u64,
    /// The record's type.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The account it is about; null: all.
    pub(crate) account: Option<String>,
    /// When.
    pub(crate) time: Value,
    /// The record itself; null for those who may not read it.
    pub(crate) record: Option<Value>,
}

/// What followed an index.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Page {
    /// The changes, oldest first.
    pub(crate) changes: Vec<Change>,
    /// Where to go on: the `since` of the next question.
    pub(crate) next: u64,
    /// Whether changes in between are not known any more: every earlier answer is to be asked again.
    pub(crate) reset: bool,
}

/// The latest changes.
#[derive(Debug)]
pub(crate) struct Changes {
    kept: VecDeque<Change>,
    /// Every change from this index on is kept.
    from: u64,
    /// One more than the index of the last record looked at.
    size: u64,
    news: watch::Sender<u64>,
}

impl Changes {
    /// None yet, in a log of this size.
    pub(crate) fn new(size: u64) -> Self {
        Self { kept: VecDeque::new(), from: size, size, news: watch::Sender::new(size) }
    }

    /// Resolves, for whoever waits, when there is one more.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Looks at lines that were just written, the first of them at this index.
    pub(crate) fn wrote(&mut self, first: u64, lines: &[&[u8]]) {
        self.size = first + lines.len() as u64;
        let mut more = false;
        for (index, line) in (first..).zip(lines) {
            if let Some(change) = read(index, line) {
                self.kept.push_back(change);
                more = true;
            }
        }
        while self.kept.len() > KEPT {
            self.from = self.kept.pop_front().map_or(self.from, |gone| gone.sequence + 1);
        }
        if more {
            self.news.send_replace(self.size);
        }
    }

    /// What followed: records with an index of `since` or more. Without it nothing, and where to begin.
    pub(crate) fn since(&self, since: Option<u64>, visible: impl Fn(&Change) -> Option<Change>) -> Page {
        let since = since.unwrap_or(self.size);
        let changes = self.kept.iter().filter(|change| change.sequence >= since).filter_map(visible).collect();
        Page { changes, next: self.size, reset: since < self.from || since > self.size }
    }
}

/// Reads a line if it is a change. Decisions, which are many, are told apart without parsing.
fn read(sequence: u64, line: &[u8]) -> Option<Change> {
    if matches!(kind_of_line(line), Some(b"decision" | b"observation" | b"loss" | b"cut")) {
        return None;
    }
    let record: Value = serde_json::from_slice(line).ok()?;
    let text = |name: &str| record.get(name).and_then(Value::as_str).map(str::to_owned);
    let kind = text("type").filter(|kind| ["change", "escalation", "grant", "lifecycle"].contains(&kind.as_str()))?;
    if kind == "lifecycle" && !EVENTS.contains(&text("event")?.as_str()) {
        return None;
    }
    let time = record.get("time").cloned().unwrap_or_default();
    Some(Change { sequence, kind, account: text("account"), time, record: Some(record) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, account: &str) -> Vec<u8> {
        format!("{{\"id\":\"x\",\"type\":\"{kind}\",\"time\":\"t\",\"account\":\"{account}\"}}").into_bytes()
    }

    #[test]
    fn only_changes_are_kept_and_every_record_counts() {
        let mut changes = Changes::new(10);
        let news = changes.news();
        changes.wrote(10, &[&line("decision", "a")]);
        assert!(!news.has_changed().unwrap());
        changes.wrote(11, &[&line("change", "a"), &line("decision", "a"), &line("change", "b")]);
        assert!(news.has_changed().unwrap());
        let page = changes.since(Some(10), |change| Some(change.clone()));
        let found: Vec<u64> = page.changes.iter().map(|change| change.sequence).collect();
        assert_eq!((found, page.next, page.reset), (vec![11, 13], 14, false));
        let mine = changes.since(Some(12), |change| (change.account.as_deref() == Some("a")).then(|| change.clone()));
        assert_eq!((mine.changes, mine.next), (vec![], 14));
        assert_eq!(changes.since(None, |change| Some(change.clone())).next, 14);
    }

    #[test]
    fn who_was_away_too_long_is_told() {
        let mut changes = Changes::new(0);
        let all = |change: &Change| Some(change.clone());
        for index in 0..=KEPT as u64 {
            changes.wrote(index, &[&line("change", "a")]);
        }
        assert!(changes.since(Some(0), all).reset);
        assert!(!changes.since(Some(1), all).reset);
        assert!(Changes::new(7).since(Some(3), all).reset);
        assert!(Changes::new(7).since(Some(9), all).reset, "a log that was begun anew");
    }
}
