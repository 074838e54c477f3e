//! Completeness: on each CPU every number is a record or counted in a loss record.

use std::collections::BTreeMap;

use serde::Serialize;
use writ_core::record::{Body, Checked, Lifecycle};

use super::Finding;

/// What a record says about completeness.
pub(super) enum Place {
    /// A judged attempt.
    Attempt { boot: String, cpu: u32, sequence: u64, count: u64 },
    /// A counted gap.
    Loss { boot: String, cpu: Option<(u32, u64, u64)>, count: u64 },
    /// Totals.
    Heartbeat { seen: u64, recorded: u64, lost: u64, in_flight: u64 },
    /// Nothing.
    Other,
}

impl Place {
    pub(super) fn of(checked: Checked) -> Self {
        let record = match checked {
            Checked::Judged { boot_id: boot, place: Some((cpu, sequence)), count } => {
                return Self::Attempt { boot, cpu, sequence, count: count.into() };
            }
            Checked::Judged { place: None, .. } => return Self::Other,
            Checked::Other(record) => *record,
        };
        let boot = record.host.boot_id;
        match record.body {
            Body::Loss(loss) => {
                let cpu = match (loss.cpu, loss.from_sequence, loss.to_sequence) {
                    (Some(cpu), Some(from), Some(to)) => Some((cpu, from, to)),
                    _ => None,
                };
                Self::Loss { boot, cpu, count: loss.count }
            }
            Body::Lifecycle(lifecycle) => match *lifecycle {
                Lifecycle::Heartbeat { seen, recorded, lost, in_flight } => {
                    Self::Heartbeat { seen, recorded, lost, in_flight }
                }
                // The self-test's attempt is judged and numbered like any other.
                Lifecycle::SelfTest { kernel: Some(kernel), .. } => {
                    Self::Attempt { boot, cpu: kernel.cpu, sequence: kernel.sequence, count: 1 }
                }
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Attempts and losses of all boots in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct SequenceReport {
    /// Numbers seen on all CPUs: from the first to the last in the log.
    pub seen: u64,
    /// Those that have a record.
    pub recorded: u64,
    /// Those counted into another record (folded datagrams).
    pub folded: u64,
    /// Those counted in loss records.
    pub lost: u64,
    /// Those that have nothing.
    pub missing: u64,
}

/// No gap is so wide: a billion attempts a second for eight days.
const MOST_LOST: u64 = 1 << 50;

/// The numbers of each CPU of each boot.
#[derive(Default)]
pub(super) struct Sequences {
    cpus: BTreeMap<(String, u32), Numbers>,
    recorded: u64,
    lost: u64,
    /// Attempts beyond the first that records stand for, by boot.
    surplus: BTreeMap<String, u64>,
}

/// Which numbers were met, as ranges: `from → to`.
#[derive(Default)]
struct Numbers {
    ranges: BTreeMap<u64, u64>,
    /// The lowest number that is only in the unsigned tail; a gap below it may still be filled.
    tail: Option<u64>,
}

impl Sequences {
    /// Takes in a record; says what is wrong with it.
    pub(super) fn add(&mut self, place: Place, in_tail: bool) -> Result<(), String> {
        match place {
            Place::Attempt { boot, cpu, sequence, count } => {
                self.recorded += 1;
                if let Some(more) = count.checked_sub(1).filter(|more| *more > 0) {
                    let surplus = self.surplus.entry(boot.clone()).or_default();
                    *surplus = surplus.saturating_add(more);
                }
                self.insert(boot, cpu, (sequence, sequence), in_tail).map(drop)
            }
            Place::Loss { boot, cpu: Some((cpu, from, to)), count } => {
                if to < from || to - from > MOST_LOST || count > MOST_LOST {
                    return Err(format!("a loss from {from} to {to} makes no sense"));
                }
                self.lost = self.lost.saturating_add(count);
                let new = self.insert(boot, cpu, (from, to), in_tail)?;
                if new < count {
                    return Err(format!("{count} attempts are counted as lost where only {new} are missing"));
                }
                Ok(())
            }
            Place::Heartbeat { seen, recorded, lost, in_flight }
                if seen != recorded.saturating_add(lost).saturating_add(in_flight) =>
            {
                Err(format!("{seen} attempts seen are not {recorded} recorded and {lost} lost"))
            }
            Place::Loss { cpu: None, .. } | Place::Heartbeat { .. } | Place::Other => Ok(()),
        }
    }

    /// Adds a range and returns how many numbers of it were new; a single number must be.
    fn insert(&mut self, boot: String, cpu: u32, (from, to): (u64, u64), in_tail: bool) -> Result<u64, String> {
        let numbers = self.cpus.entry((boot, cpu)).or_default();
        if in_tail {
            numbers.tail = Some(numbers.tail.map_or(from, |lowest| lowest.min(from)));
        }
        let mut known = 0u64;
        let (mut start, mut end) = (from, to);
        // Every range that touches the new one becomes part of it.
        while let Some((low, high)) = numbers.ranges.range(..=end.saturating_add(1)).next_back().map(|(l, h)| (*l, *h))
        {
            if high.saturating_add(1) < start {
                break;
            }
            let overlap = high.min(to).checked_sub(low.max(from)).map_or(0, |more| more.saturating_add(1));
            known = overlap.saturating_add(known);
            numbers.ranges.remove(&low);
            (start, end) = (start.min(low), end.max(high));
        }
        numbers.ranges.insert(start, end);
        if from == to && known > 0 {
            return Err(format!("number {from} of CPU {cpu} is in the log twice"));
        }
        Ok(to - from + 1 - known)
    }

    /// Numbers that have nothing are tampering, or evidence that was never counted.
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let mut missing: BTreeMap<&str, (u64, Vec<String>)> = BTreeMap::new();
        for ((boot, cpu), numbers) in &self.cpus {
            let (gap, first) = numbers.gaps(false);
            if gap > 0 {
                let (total, places) = missing.entry(boot.as_str()).or_default();
                *total = gap.saturating_add(*total);
                places.push(format!("{gap} on CPU {cpu} from {first}"));
            }
        }
        for (boot, (total, places)) in missing {
            if total > self.surplus.get(boot).copied().unwrap_or(0) {
                let problem = format!("boot {boot}: attempts without record or loss: {}", places.join(", "));
                findings.push(Finding::of("records", problem));
            }
        }
    }

    pub(super) fn report(&self) -> SequenceReport {
        let seen = self.cpus.values().map(Numbers::span).fold(0, u64::saturating_add);
        let gaps: u64 = self.cpus.values().map(|numbers| numbers.gaps(true).0).fold(0, u64::saturating_add);
        let surplus = self.surplus.values().copied().fold(0, u64::saturating_add);
        let folded = gaps.min(surplus);
        SequenceReport { seen, recorded: self.recorded, folded, lost: self.lost, missing: gaps - folded }
    }
}

impl Numbers {
    fn span(&self) -> u64 {
        match (self.ranges.first_key_value(), self.ranges.last_key_value()) {
            (Some((first, _)), Some((_, last))) => (last - first).saturating_add(1),
            _ => 0,
        }
    }

    /// How many numbers are missing, and the first; without those that the unsigned tail may still bring.
    fn gaps(&self, with_tail: bool) -> (u64, u64) {
        let mut total = 0;
        let mut first = 0;
        let mut end: Option<u64> = None;
        for (low, high) in &self.ranges {
            let open = !with_tail && self.tail.is_some_and(|tail| *low >= tail);
            if let Some(end) = end.filter(|_| !open) {
                first = if total == 0 { end + 1 } else { first };
                total = low.saturating_sub(end).saturating_sub(1).saturating_add(total);
            }
            end = Some(*high);
        }
        (total, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(cpu: u32, sequence: u64) -> Place {
        Place::Attempt { boot: "b".to_owned(), cpu, sequence, count: 1 }
    }

    fn loss(from: u64, to: u64, count: u64) -> Place {
        Place::Loss { boot: "b".to_owned(), cpu: Some((0, from, to)), count }
    }

    fn findings(places: Vec<Place>) -> (Vec<String>, SequenceReport) {
        let mut sequences = Sequences::default();
        let mut found: Vec<String> = places.into_iter().filter_map(|place| sequences.add(place, false).err()).collect();
        let mut gaps = Vec::new();
        sequences.check(&mut gaps);
        found.extend(gaps.into_iter().map(|finding| finding.problem));
        (found, sequences.report())
    }

    #[test]
    fn numbers_in_any_order_with_losses_counted_are_complete() {
        let (found, report) = findings(vec![attempt(0, 3), attempt(0, 2), loss(4, 6, 3), attempt(1, 9), attempt(0, 7)]);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(report, SequenceReport { seen: 7, recorded: 4, folded: 0, lost: 3, missing: 0 });
    }

    #[test]
    fn a_loss_may_span_records_that_arrived_from_within_it() {
        let (found, _) = findings(vec![attempt(0, 1), attempt(0, 3), loss(2, 4, 2), attempt(0, 5)]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_gap_that_nobody_counted_is_named() {
        let (found, report) = findings(vec![attempt(0, 1), attempt(0, 5)]);
        assert_eq!(found, ["boot b: attempts without record or loss: 3 on CPU 0 from 2"]);
        assert_eq!(report.missing, 3);
    }

    #[test]
    fn a_number_twice_and_a_loss_of_nothing_are_named() {
        let (found, _) = findings(vec![attempt(0, 1), attempt(0, 2), attempt(0, 2), loss(1, 2, 2)]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_self_test_between_two_attempts_is_no_gap() {
        let line =
            br#"{"id":"01M8ABYDRDV9ZFZZR000000003","type":"lifecycle","time":"2026-11-25T22:06:45.5Z","schema":1,
            "host":{"id":"h","boot_id":"b"},"agent_version":"0.1.0","event":"self-test","passed":true,"results":[],
            "kernel":{"generation":2,"cpu":0,"sequence":2,"hook":"cgroup/connect4","stance":0,"epoch":0,
            "socket_cookie":1,"netns_cookie":1}}"#;
        let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != b'\n').collect();
        let tested = Place::of(writ_core::record::Record::check(&line).unwrap());
        let (found, report) = findings(vec![attempt(0, 1), tested, attempt(0, 3)]);
        assert_eq!((found, report.recorded, report.missing), (Vec::new(), 3, 0));
    }

    #[test]
    fn folded_datagrams_account_for_the_numbers_they_used() {
        let folded = Place::Attempt { boot: "b".to_owned(), cpu: 0, sequence: 5, count: 4 };
        let (found, report) = findings(vec![attempt(0, 1), folded]);
        assert_eq!((found, report.folded), (Vec::new(), 3));
    }
}
