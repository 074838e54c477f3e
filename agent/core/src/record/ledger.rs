//! Which attempts have a record: the numbers of each CPU, what arrived, what was written off, and what is still to come.
//!
//! An event takes its number once it has its place in the ring. So a number that was given out before a moment is, if it
//! comes at all, among what the ring held at that moment: once that much has been read, what is missing is lost. Until
//! then a gap is left open, and what comes behind it is held back: each CPU's numbers are in the log in their order, a loss
//! before what follows it, so that the log accounts for every number wherever it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The numbers of one CPU. Every number up to `settled` is recorded or written off.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Numbers {
    settled: u64,
    /// The highest that arrived.
    high: u64,
    /// Numbers above `settled` and below `high` that did not arrive: first → last.
    gaps: BTreeMap<u64, u64>,
}

/// Consecutive numbers of one CPU that were written off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrittenOff {
    /// The CPU.
    pub cpu: u32,
    /// The first missing.
    pub from: u64,
    /// The last missing.
    pub to: u64,
    /// How many are missing.
    pub count: u64,
}

/// The account of one boot's attempts, as the log has it: `recorded + lost` of them are accounted for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    cpus: BTreeMap<u32, Numbers>,
    recorded: u64,
    lost: u64,
}

impl Ledger {
    /// Takes in an event; false if its number is accounted for already: then it must not be recorded.
    pub fn arrived(&mut self, cpu: u32, number: u64) -> bool {
        let new = self.cpus.entry(cpu).or_default().arrived(number);
        self.recorded += u64::from(new);
        new
    }

    /// Writes off every number up to `mark` that did not arrive, in order.
    pub fn settle(&mut self, cpu: u32, mark: u64) -> Vec<WrittenOff> {
        let written_off = self.cpus.entry(cpu).or_default().settle(cpu, mark);
        self.lost += written_off.iter().map(|off| off.count).sum::<u64>();
        written_off
    }

    /// The first number of a CPU that may still come; what is above it has to wait.
    pub fn open(&self, cpu: u32) -> Option<u64> {
        self.cpus.get(&cpu)?.gaps.keys().next().copied()
    }

    /// Takes a loss from the log: what settling made of it then.
    pub fn written_off(&mut self, loss: WrittenOff) {
        self.cpus.entry(loss.cpu).or_default().settle(loss.cpu, loss.to);
        // From a file: whatever it says.
        self.lost = self.lost.saturating_add(loss.count);
    }

    /// The highest number of each CPU that is accounted for.
    pub fn highest(&self) -> BTreeMap<u32, u64> {
        self.cpus.iter().map(|(cpu, numbers)| (*cpu, numbers.high.max(numbers.settled))).collect()
    }

    /// How many attempts have a record.
    pub const fn recorded(&self) -> u64 {
        self.recorded
    }

    /// How many attempts were written off.
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

impl Numbers {
    fn arrived(&mut self, number: u64) -> bool {
        if number <= self.settled {
            return false;
        }
        if number > self.high {
            let first = self.high.max(self.settled) + 1;
            if first < number {
                self.gaps.insert(first, number - 1);
            }
            self.high = number;
            return true;
        }
        let Some((first, last)) = self.gaps.range(..=number).next_back().map(|(first, last)| (*first, *last)) else {
            return false;
        };
        if last < number {
            return false;
        }
        self.gaps.remove(&first);
        if first < number {
            self.gaps.insert(first, number - 1);
        }
        if number < last {
            self.gaps.insert(number + 1, last);
        }
        true
    }

    fn settle(&mut self, cpu: u32, mark: u64) -> Vec<WrittenOff> {
        let mut off = Vec::new();
        if mark <= self.settled {
            return off;
        }
        let mut write_off = |from: u64, to: u64| off.push(WrittenOff { cpu, from, to, count: to - from + 1 });
        while let Some((first, last)) = self.gaps.first_key_value().map(|(first, last)| (*first, *last)) {
            if first > mark {
                break;
            }
            self.gaps.remove(&first);
            write_off(first, last.min(mark));
            if mark < last {
                self.gaps.insert(mark + 1, last);
            }
        }
        let after = self.high.max(self.settled);
        if mark > after {
            write_off(after + 1, mark);
        }
        self.settled = mark;
        off
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What became of one number: it waits for the ring's reader this long behind its place, or never arrives.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Late(usize),
        Lost,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![6 => Just(Fate::Late(0)), 3 => (1..9usize).prop_map(Fate::Late), 2 => Just(Fate::Lost)]
    }

    proptest! {
        #[test]
        fn whatever_the_order_every_number_is_recorded_once_or_lost_once(
            fates in proptest::collection::vec((0..3u32, fate()), 0..200),
            reads in proptest::collection::vec((1..40usize, any::<bool>()), 1..40),
            dies_at in proptest::option::of(0..40usize),
        ) {
            // Numbers are given out in order on each CPU; an event's place in the ring is moved back by its delay.
            let (mut next, mut ring, mut sent) = (BTreeMap::<u32, u64>::new(), Vec::new(), 0u64);
            for (moment, (cpu, fate)) in fates.iter().enumerate() {
                let number = next.entry(*cpu).or_default();
                *number += 1;
                if let Fate::Late(by) = fate {
                    ring.push((moment + by, moment, *cpu, *number));
                    sent += 1;
                }
            }
            ring.sort_unstable();
            let (mut ledger, mut recorded, mut lost) = (Ledger::default(), Vec::new(), 0);
            let mut log: Vec<Result<(u32, u64), WrittenOff>> = Vec::new();
            let mut position = 0;
            for (turn, (batch, look)) in reads.into_iter().enumerate() {
                // The counters as they are, and how much the ring holds then: everything that has a number.
                let moment = ring.get(position).map_or(fates.len(), |entry| entry.1.min(fates.len()));
                let mut marks = BTreeMap::<u32, u64>::new();
                for (cpu, _) in fates.iter().take(moment) {
                    *marks.entry(*cpu).or_default() += 1;
                }
                let until = ring.iter().rposition(|entry| entry.1 < moment).map_or(0, |place| place + 1);
                for (_, _, cpu, number) in ring.iter().skip(position).take(batch) {
                    prop_assert!(ledger.arrived(*cpu, *number), "{number} of CPU {cpu} was given up too early");
                    recorded.push((*cpu, *number));
                    log.push(Ok((*cpu, *number)));
                }
                position = (position + batch).min(ring.len());
                if look && position >= until {
                    for (cpu, mark) in marks {
                        for off in ledger.settle(cpu, mark) {
                            lost += off.count;
                            log.push(Err(off));
                        }
                    }
                }
                prop_assert_eq!((ledger.recorded(), ledger.lost()), (recorded.len() as u64, lost));
                if dies_at == Some(turn) {
                    // The next one knows what the log says.
                    let mut again = Ledger::default();
                    for line in &log {
                        match line {
                            Ok((cpu, number)) => prop_assert!(again.arrived(*cpu, *number)),
                            Err(off) => again.written_off(*off),
                        }
                    }
                    prop_assert_eq!((again.recorded(), again.lost()), (ledger.recorded(), ledger.lost()));
                    ledger = again;
                }
            }
            for (_, _, cpu, number) in ring.iter().skip(position) {
                prop_assert!(ledger.arrived(*cpu, *number));
                prop_assert!(!ledger.arrived(*cpu, *number), "recorded twice");
            }
            for (cpu, seen) in &next {
                ledger.settle(*cpu, *seen);
                prop_assert_eq!(ledger.settle(*cpu, *seen), []);
                prop_assert_eq!(ledger.open(*cpu), None);
            }
            prop_assert_eq!(ledger.recorded(), sent, "everything that arrived is recorded");
            prop_assert_eq!(ledger.recorded() + ledger.lost(), next.values().sum::<u64>());
        }
    }

    #[test]
    fn a_gap_is_written_off_only_once_it_was_due_and_a_late_event_is_recorded() {
        let mut ledger = Ledger::default();
        assert!(ledger.arrived(0, 1) && ledger.arrived(0, 4) && ledger.arrived(0, 2));
        assert!(!ledger.arrived(0, 4), "once");
        assert_eq!((ledger.settle(0, 2), ledger.open(0)), (Vec::new(), Some(3)), "3 may still come");
        let off = |from, to| WrittenOff { cpu: 0, from, to, count: to - from + 1 };
        assert_eq!(ledger.settle(0, 6), [off(3, 3), off(5, 6)]);
        assert!(!ledger.arrived(0, 3) && ledger.arrived(0, 7));
        assert_eq!((ledger.recorded(), ledger.lost(), ledger.highest()[&0]), (4, 3, 7));
    }
}
