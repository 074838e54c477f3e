//! Lines that wait for a log that cannot be written: bounded, oldest first, and what finds no place is counted.

use std::collections::VecDeque;

use writ_core::record::{Body, Lifecycle, Record};

/// How many lines may wait, and how many bytes. Beyond it the ring is left to fill, so that each account's
/// `on-record-loss` decides, in the kernel.
const MOST_LINES: usize = 8_192;
const MOST_BYTES: usize = 32 << 20;
/// What the agent itself notes has as much room again: signals, changes, grants of a time without a log.
const NOTES: usize = 2;

/// One line, and what it accounts for.
#[derive(Clone, Debug)]
struct Line {
    bytes: Vec<u8>,
    recorded: u64,
    lost: u64,
}

/// The lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    recorded: u64,
    lost: u64,
    /// The agent's own records that found no place.
    dropped: u64,
}

impl Waiting {
    /// Whether the ring is to be left alone.
    pub(crate) fn full(&self) -> bool {
        self.lines.len() >= MOST_LINES || self.bytes >= MOST_BYTES
    }

    /// Puts a record behind the others. Attempts and losses always find a place: they are not asked for while it is full.
    pub(crate) fn push(&mut self, record: &Record) {
        let (recorded, lost) = accounts_for(&record.body);
        let bytes = record.to_line();
        let full = self.lines.len() >= NOTES * MOST_LINES || self.bytes >= NOTES * MOST_BYTES;
        if full && recorded == 0 && lost == 0 {
            self.dropped += 1;
            return;
        }
        self.bytes += bytes.len();
        self.recorded += recorded;
        self.lost += lost;
        self.lines.push_back(Line { bytes, recorded, lost });
    }

    /// Puts a record in the place of the one that waits under its id; `false` if none does: it is in the log already.
    pub(crate) fn replace(&mut self, record: &Record) -> bool {
        // The id comes first in each line.
        let start = format!("{{\"id\":\"{}\"", record.id);
        let waits = self.lines.iter_mut().rev().find(|line| line.bytes.starts_with(start.as_bytes()));
        let Some(line) = waits else { return false };
        let bytes = record.to_line();
        self.bytes = self.bytes - line.bytes.len() + bytes.len();
        line.bytes = bytes;
        true
    }

    /// The lines as they are to be written.
    pub(crate) fn lines(&self) -> Vec<&[u8]> {
        self.lines.iter().map(|line| line.bytes.as_slice()).collect()
    }

    /// Lets go of the first ones: they are in the log.
    pub(crate) fn written(&mut self, lines: usize) {
        for line in self.lines.drain(..lines.min(self.lines.len())) {
            self.bytes -= line.bytes.len();
            self.recorded -= line.recorded;
            self.lost -= line.lost;
        }
    }

    /// Takes back the newest ones, so that so many are left.
    pub(crate) fn truncate(&mut self, lines: usize) {
        while self.lines.len() > lines {
            if let Some(line) = self.lines.pop_back() {
                self.bytes -= line.bytes.len();
                self.recorded -= line.recorded;
                self.lost -= line.lost;
            }
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many attempts they record, and how many they write off.
    pub(crate) const fn totals(&self) -> (u64, u64) {
        (self.recorded, self.lost)
    }

    /// How many records of the agent found no place since this was asked last.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// How many attempts a record records, and how many it writes off.
fn accounts_for(body: &Body) -> (u64, u64) {
    match body {
        Body::Decision(judged) | Body::Observation(judged) if judged.kernel.is_some() => (1, 0),
        Body::Loss(loss) if loss.cpu.is_some() => (0, loss.count),
        Body::Lifecycle(lifecycle) => match **lifecycle {
            Lifecycle::SelfTest { kernel: Some(_), .. } => (1, 0),
            _ => (0, 0),
        },
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use writ_core::record::{Host, Loss};

    use super::*;

    fn record(body: Body) -> Record {
        let host = Host { id: String::new(), boot_id: String::new() };
        Record::new("R".into(), jiff::Timestamp::UNIX_EPOCH, host, "0", body)
    }

    #[test]
    fn notes_are_bounded_and_counted_and_losses_are_never_dropped() {
        let note = record(Body::Lifecycle(Box::new(Lifecycle::Stop { reason: "x".into() })));
        let loss = record(Body::Loss(Box::new(Loss { cpu: Some(0), count: 3, ..Loss::default() })));
        let mut waiting = Waiting::default();
        for _ in 0..NOTES * MOST_LINES + 5 {
            waiting.push(&note);
        }
        waiting.push(&loss);
        assert!(waiting.full());
        assert_eq!((waiting.len(), waiting.totals()), (NOTES * MOST_LINES + 1, (0, 3)));
        assert_eq!((waiting.take_dropped(), waiting.take_dropped()), (5, 0));
        waiting.written(NOTES * MOST_LINES);
        assert_eq!((waiting.len(), waiting.full()), (1, false));
        let stop = |reason: &str| record(Body::Lifecycle(Box::new(Lifecycle::Stop { reason: reason.into() })));
        waiting.push(&stop("x"));
        assert!(waiting.replace(&stop("longer")));
        assert!(!waiting.replace(&Record { id: "another".into(), ..stop("x") }));
        assert_eq!(waiting.lines().last(), Some(&stop("longer").to_line().as_slice()));
        waiting.truncate(0);
        assert_eq!((waiting.is_empty(), waiting.totals(), waiting.bytes), (true, (0, 0), 0));
    }
}
