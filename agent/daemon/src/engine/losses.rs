//! Which attempts the kernel counted and no event came for: exact, by CPU, from the gaps in their numbers.

use std::collections::BTreeMap;

use writ_abi::{COUNTERS, Counter, DecisionEvent};
use writ_core::record::Loss;

/// How often an unexplained difference must be seen before it is a loss: an event can be between its number and the ring.
const PATIENCE: u32 = 2;

/// What is known of each CPU's numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses {
    /// The last number that was recorded or written off, by CPU.
    last: BTreeMap<u32, u64>,
    /// Numbers that were counted and did not come, and how often that was seen, by CPU.
    pending: BTreeMap<u32, (u64, u32)>,
}

impl Losses {
    /// Continues from the numbers found in the log.
    pub(crate) fn resumed(last: BTreeMap<u32, u64>) -> Self {
        Self { last, ..Self::default() }
    }

    /// Takes in an event: whether it is new, and what was lost before it.
    pub(crate) fn event(&mut self, event: &DecisionEvent) -> (bool, Option<Loss>) {
        let last = self.last.get(&event.cpu).copied().unwrap_or(0);
        if event.sequence <= last {
            // It is in the log already: the daemon before us stopped between writing and consuming.
            return (false, None);
        }
        self.last.insert(event.cpu, event.sequence);
        self.pending.remove(&event.cpu);
        let loss = (event.sequence > last + 1).then(|| Self::loss(event.cpu, last + 1, event.sequence - 1));
        (true, loss)
    }

    fn loss(cpu: u32, from: u64, to: u64) -> Loss {
        let count = to - from + 1;
        Loss {
            cpu: Some(cpu),
            from_sequence: Some(from),
            to_sequence: Some(to),
            count,
            reason: "ring-full".to_owned(),
            ..Loss::default()
        }
    }

    /// Looks at the kernel's counters while the ring is empty: numbers that were given out and did not come for a while
    /// are lost, even if no event follows them.
    pub(crate) fn reconcile(&mut self, counters: &[[u64; COUNTERS as usize]]) -> Vec<Loss> {
        let mut found = Vec::new();
        for (cpu, counts) in (0u32..).zip(counters) {
            let seen = counts.get(Counter::Seen as usize).copied().unwrap_or(0);
            let last = self.last.get(&cpu).copied().unwrap_or(0);
            if seen <= last {
                self.pending.remove(&cpu);
                continue;
            }
            let (before, times) = self.pending.get(&cpu).copied().unwrap_or((seen, 0));
            if before == seen && times >= PATIENCE {
                self.pending.remove(&cpu);
                self.last.insert(cpu, seen);
                found.push(Self::loss(cpu, last + 1, seen));
            } else {
                self.pending.insert(cpu, (seen, if before == seen { times + 1 } else { 1 }));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cpu: u32, sequence: u64) -> DecisionEvent {
        let mut event = zeroed();
        event.cpu = cpu;
        event.sequence = sequence;
        event
    }

    fn zeroed() -> DecisionEvent {
        DecisionEvent {
            kind: 0,
            abi: 0,
            at: 0,
            sequence: 0,
            executable_inode: 0,
            start_time: 0,
            cgroup: 0,
            socket_cookie: 0,
            netns_cookie: 0,
            address: writ_abi::Address::NONE,
            given: writ_abi::Address::NONE,
            cpu: 0,
            generation: 0,
            stance: 0,
            epoch: 0,
            explanation: 0,
            pid: 0,
            tid: 0,
            parent: 0,
            uid: 0,
            euid: 0,
            loginuid: 0,
            executable_device: 0,
            executable_class: 0,
            views: 0,
            count: 1,
            socket_protocol: 0,
            account: 0,
            also: [0; 3],
            port: 0,
            hook: 0,
            protocol: 0,
            open_socket: 0,
            verdict: 0,
            reason: 0,
            enforced: 0,
            would: 0,
            new_destination: 0,
            errno: 0,
            socket_family: 0,
            socket_type: 0,
            reserved: [0; 4],
            comm: [0; 16],
        }
    }

    #[test]
    fn a_gap_is_lost_exactly_and_a_repeat_is_not_recorded_again() {
        let mut losses = Losses::resumed(BTreeMap::from([(1, 10)]));
        assert_eq!(losses.event(&event(1, 10)), (false, None));
        assert_eq!(losses.event(&event(1, 11)), (true, None));
        let (new, loss) = losses.event(&event(1, 15));
        let loss = loss.unwrap();
        assert!(new);
        assert_eq!((loss.from_sequence, loss.to_sequence, loss.count), (Some(12), Some(14), 3));
        assert_eq!(losses.event(&event(0, 2)).1.unwrap().count, 1);
    }

    #[test]
    fn numbers_that_never_come_are_lost_once_they_have_had_time() {
        let mut losses = Losses::default();
        let mut counts = [0u64; COUNTERS as usize];
        counts[Counter::Seen as usize] = 5;
        losses.event(&event(0, 3));
        assert!(losses.reconcile(&[counts]).is_empty());
        assert!(losses.reconcile(&[counts]).is_empty());
        let lost: Vec<u64> = losses.reconcile(&[counts]).iter().map(|loss| loss.count).collect();
        assert_eq!(lost, [2]);
        assert!(losses.reconcile(&[counts]).is_empty());
        assert!(!losses.event(&event(0, 5)).0);
        assert_eq!(losses.event(&event(0, 6)), (true, None));
    }
}
