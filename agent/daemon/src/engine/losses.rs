//! Which attempts the kernel counted and no event came for: exact, by CPU, reason and account.
//!
//! When a number is missing, and once a second, the counters are read, and then how far the ring is written. When as much
//! has been read, every number counted then has arrived or is lost (see [`Ledger`]); what follows the missing number is held
//! back until then. The kernel's own counts of losses say why, and whose they were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use writ_abi::{COUNTERS, Counter, DecisionEvent};
use writ_core::record::{Body, Ledger, Loss, WrittenOff};

use super::Engine;
use super::clock::Clocks;
use crate::kernel::AccountLost;

/// How many events are held back at most: more than any ring holds. Beyond it what is missing is given up.
const MOST_HELD: usize = 1 << 18;

/// The kernel's counts of losses that are in the log, so that the next are told apart from them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Told {
    cpus: BTreeMap<u32, AccountLost>,
    accounts: BTreeMap<u16, AccountLost>,
}

/// The counters at one moment, and how far the ring was written just after.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// By CPU.
    pub counters: Vec<[u64; COUNTERS as usize]>,
    /// By account.
    pub accounts: Vec<(u16, AccountLost)>,
    /// In bytes since the ring was made.
    pub written: u64,
}

/// What is known of every number.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Losses {
    ledger: Ledger,
    told: Told,
    #[serde(skip)]
    due: Option<Look>,
    /// Events behind a number that may still come, by CPU and number.
    #[serde(skip)]
    held: BTreeMap<(u32, u64), DecisionEvent>,
}

/// What is to be written next.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// An attempt's event.
    Event(Box<DecisionEvent>),
    /// A loss.
    Loss(Box<Loss>),
}

/// [`Losses`] as they are kept beside the log: what its first `lines` lines say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(super) boot_id: String,
    pub(super) lines: u64,
    pub(super) losses: Losses,
}

impl Losses {
    /// Goes on from what the log says.
    pub(crate) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// How many attempts were handed out as events, and how many as losses.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.ledger.recorded() - self.held.len() as u64, self.ledger.lost())
    }

    /// Whether anything is held back.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes in an event; hands out what can be written now. What is accounted for already is not written again.
    pub(crate) fn arrived(&mut self, event: &DecisionEvent, next: &mut Vec<Next>) {
        if !self.ledger.arrived(event.cpu, event.sequence) {
            return;
        }
        if self.ledger.open(event.cpu).is_none() && !self.holds() {
            next.push(Next::Event(Box::new(*event)));
            return;
        }
        self.held.insert((event.cpu, event.sequence), *event);
        self.release(event.cpu, next);
    }

    /// Hands out what nothing is missing before.
    fn release(&mut self, cpu: u32, next: &mut Vec<Next>) {
        let open = self.ledger.open(cpu).unwrap_or(u64::MAX);
        while let Some(place) = self.held.range((cpu, 0)..(cpu, open)).next().map(|(place, _)| *place) {
            if let Some(event) = self.held.remove(&place) {
                next.push(Next::Event(Box::new(event)));
            }
        }
    }

    /// The kernel's counts begin anew, its numbers do not.
    pub(crate) fn counts_anew(&mut self) {
        self.told = Told::default();
    }

    /// What was lost before is in the log, but for what is not: the counts as they are now are taken for told.
    pub(crate) fn counts_known(&mut self, look: &Look) {
        for (cpu, counts) in (0u32..).zip(&look.counters) {
            self.told.cpus.insert(cpu, lost_of(counts));
        }
        self.told.accounts.extend(look.accounts.iter().copied());
    }

    /// Whether the counters should be looked at.
    fn wants_look(&self, second: bool) -> bool {
        self.due.is_none() && (second || self.holds())
    }

    /// Keeps a look until the ring has been read so far.
    pub(crate) fn looked(&mut self, look: Look) {
        self.due = Some(look);
    }

    /// Hands out the losses that are certain now that the ring has been read so far, and what was held back by them.
    pub(crate) fn settle(&mut self, read: u64, name: &dyn Fn(u16) -> String, next: &mut Vec<Next>) {
        if let Some(look) = self.due.take_if(|look| read >= look.written) {
            self.write_off(&look, name, next);
        }
    }

    /// Gives up whatever is missing before what is held back.
    pub(crate) fn give_up(&mut self, mut look: Look, name: &dyn Fn(u16) -> String, next: &mut Vec<Next>) {
        self.due = None;
        for (cpu, counts) in (0u32..).zip(&mut look.counters) {
            if let Some(seen) = counts.get_mut(Counter::Seen as usize) {
                // No further than what was read: the rest is the next daemon's to read.
                *seen = self.ledger.highest().get(&cpu).copied().unwrap_or(0);
            }
        }
        self.write_off(&look, name, next);
    }

    fn write_off(&mut self, look: &Look, name: &dyn Fn(u16) -> String, next: &mut Vec<Next>) {
        let mut accounts: Vec<(u16, AccountLost)> = look
            .accounts
            .iter()
            .map(|(account, lost)| (*account, since(*lost, self.told.accounts.get(account).copied())))
            .filter(|(_, lost)| *lost != AccountLost::default())
            .collect();
        for (cpu, counts) in (0u32..).zip(&look.counters) {
            let seen = counts.get(Counter::Seen as usize).copied().unwrap_or(0);
            for off in self.ledger.settle(cpu, seen) {
                // What came before the loss, the loss, and in the end what came after the last one.
                while let Some(place) = self.held.range((cpu, 0)..(cpu, off.from)).next().map(|(place, _)| *place) {
                    next.extend(self.held.remove(&place).map(|event| Next::Event(Box::new(event))));
                }
                let known = since(lost_of(counts), self.told.cpus.get(&cpu).copied());
                // A loss is counted before its number: one too many can be there, never one too few.
                let budget = known.budget.min(off.count);
                let ring_full = known.ring_full.min(off.count - budget);
                let told = self.told.cpus.entry(cpu).or_default();
                told.budget += budget;
                told.ring_full += ring_full;
                let lost = AccountLost { ring_full, budget };
                let whose = self.told.whose(&mut accounts, lost);
                next.push(Next::Loss(Box::new(record(&off, lost, whose, name))));
            }
            self.release(cpu, next);
        }
    }
}

impl Told {
    /// Whose these losses are, by the accounts' own counts, which are told with it.
    fn whose(&mut self, accounts: &mut [(u16, AccountLost)], lost: AccountLost) -> BTreeMap<u16, u64> {
        let mut whose = BTreeMap::new();
        let mut left = lost;
        for (account, theirs) in accounts {
            let part =
                AccountLost { ring_full: theirs.ring_full.min(left.ring_full), budget: theirs.budget.min(left.budget) };
            if part == AccountLost::default() {
                continue;
            }
            theirs.ring_full -= part.ring_full;
            theirs.budget -= part.budget;
            left.ring_full -= part.ring_full;
            left.budget -= part.budget;
            let told = self.accounts.entry(*account).or_default();
            told.ring_full += part.ring_full;
            told.budget += part.budget;
            *whose.entry(*account).or_default() += part.ring_full + part.budget;
        }
        whose
    }
}

fn lost_of(counts: &[u64; COUNTERS as usize]) -> AccountLost {
    let of = |counter: Counter| counts.get(counter as usize).copied().unwrap_or(0);
    AccountLost { ring_full: of(Counter::LostRingFull), budget: of(Counter::LostBudget) }
}

fn since(now: AccountLost, told: Option<AccountLost>) -> AccountLost {
    let told = told.unwrap_or_default();
    AccountLost {
        ring_full: now.ring_full.saturating_sub(told.ring_full),
        budget: now.budget.saturating_sub(told.budget),
    }
}

fn record(off: &WrittenOff, lost: AccountLost, whose: BTreeMap<u16, u64>, name: &dyn Fn(u16) -> String) -> Loss {
    let unread = off.count - lost.ring_full - lost.budget;
    let reasons: BTreeMap<String, u64> = [("ring-full", lost.ring_full), ("budget", lost.budget), ("restart", unread)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect();
    let single = reasons.keys().next().filter(|_| reasons.len() == 1).cloned();
    let accounts: BTreeMap<String, u64> = whose.into_iter().map(|(account, count)| (name(account), count)).collect();
    let all_of = |(account, count): (&String, &u64)| (*count == off.count).then(|| account.clone());
    Loss {
        cpu: Some(off.cpu),
        from_sequence: Some(off.from),
        to_sequence: Some(off.to),
        count: off.count,
        account: accounts.iter().next().and_then(all_of),
        reasons: if single.is_some() { BTreeMap::new() } else { reasons },
        reason: single.unwrap_or_else(|| "mixed".to_owned()),
        accounts,
        detail: (unread > 0).then(|| "taken from the ring by a daemon that ended before it wrote them".to_owned()),
    }
}

impl Engine {
    /// Looks at the counters, if `second` says that it is time or too much is open.
    pub(crate) fn look_at_counters(&mut self, second: bool) {
        if !self.losses.wants_look(second) {
            return;
        }
        if let Some(look) = self.look() {
            self.losses.looked(look);
        }
    }

    /// The counters now. Numbers first: what they count has its place in the ring, or was counted as lost, before.
    pub(crate) fn look(&self) -> Option<Look> {
        let counters = self.kernel.counters().ok()?;
        let rows = self.current.as_ref().map_or(0, |current| current.generation.accounts.len());
        let rows = (0..u16::try_from(rows).unwrap_or(u16::MAX)).chain([u16::MAX]);
        let accounts = rows.map(|account| (account, self.kernel.lost(account))).collect();
        Some(Look { counters, accounts, written: self.kernel.written() })
    }

    /// Takes in events, and records what can be: they themselves, what was held back, and what is certain to be lost.
    pub(crate) fn account_for(&mut self, events: &[DecisionEvent], clocks: &Clocks) {
        let mut next = Vec::new();
        for event in events {
            self.losses.arrived(event, &mut next);
        }
        self.look_at_counters(false);
        // While the log cannot be written and no line fits any more, losses wait.
        if !self.waiting.full() {
            let read = self.kernel.read();
            self.with_names(|losses, name| losses.settle(read, name, &mut next));
        }
        if self.losses.held.len() > MOST_HELD {
            tracing::error!("too many events wait for one that does not come: it is counted as lost");
            self.give_up(&mut next);
        }
        self.write_down(next, clocks);
    }

    /// Hands out what is still held back, at the end.
    pub(crate) fn account_for_the_rest(&mut self) {
        let mut next = Vec::new();
        if self.losses.holds() {
            self.give_up(&mut next);
        }
        self.write_down(next, &Clocks::read());
    }

    fn give_up(&mut self, next: &mut Vec<Next>) {
        let look = self.look().unwrap_or_default();
        self.with_names(|losses, name| losses.give_up(look, name, next));
    }

    fn with_names(&mut self, work: impl FnOnce(&mut Losses, &dyn Fn(u16) -> String)) {
        let generation = self.current.as_ref().map(|current| &current.generation);
        let name = |account: u16| {
            let named = generation.and_then(|generation| generation.account_name(u32::from(account)));
            named.map_or_else(|| "unknown".to_owned(), str::to_owned)
        };
        work(&mut self.losses, &name);
    }

    fn write_down(&mut self, next: Vec<Next>, clocks: &Clocks) {
        for next in next {
            match next {
                Next::Event(event) => self.take(&event, clocks),
                Next::Loss(loss) => {
                    self.note(Body::Loss(loss));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(seen: u64, ring_full: u64, budget: u64) -> [u64; COUNTERS as usize] {
        let mut counts = [0; COUNTERS as usize];
        counts[Counter::Seen as usize] = seen;
        counts[Counter::LostRingFull as usize] = ring_full;
        counts[Counter::LostBudget as usize] = budget;
        counts
    }

    fn name(account: u16) -> String {
        format!("account-{account}")
    }

    fn event(number: u64) -> DecisionEvent {
        DecisionEvent { sequence: number, ..DecisionEvent::default() }
    }

    fn arrive(losses: &mut Losses, number: u64) -> Vec<String> {
        let mut next = Vec::new();
        losses.arrived(&event(number), &mut next);
        told(next)
    }

    fn told(next: Vec<Next>) -> Vec<String> {
        let tell = |next: Next| match next {
            Next::Event(event) => event.sequence.to_string(),
            Next::Loss(loss) => format!("-{}", loss.count),
        };
        next.into_iter().map(tell).collect()
    }

    fn settle(losses: &mut Losses, read: u64) -> Vec<Next> {
        let mut next = Vec::new();
        losses.settle(read, &name, &mut next);
        next
    }

    fn losses_in(next: Vec<Next>) -> Vec<Loss> {
        let loss = |next| if let Next::Loss(loss) = next { Some(*loss) } else { None };
        next.into_iter().filter_map(loss).collect()
    }

    #[test]
    fn what_follows_a_missing_number_waits_and_comes_in_order() {
        let mut losses = Losses::default();
        assert_eq!(arrive(&mut losses, 1), ["1"]);
        assert_eq!(arrive(&mut losses, 3), [""; 0]);
        assert_eq!(arrive(&mut losses, 2), ["2", "3"]);
        assert_eq!(arrive(&mut losses, 2), [""; 0], "once");
        assert_eq!(arrive(&mut losses, 6), [""; 0]);
        assert_eq!(arrive(&mut losses, 9), [""; 0]);
        losses.looked(Look { counters: vec![counts(9, 3, 0)], accounts: Vec::new(), written: 100 });
        assert_eq!(told(settle(&mut losses, 99)), [""; 0]);
        assert_eq!(arrive(&mut losses, 8), [""; 0], "behind a later one, and still in time");
        assert_eq!(losses.totals(), (3, 0), "what is held back is not recorded yet");
        assert_eq!(told(settle(&mut losses, 100)), ["-2", "6", "-1", "8", "9"]);
        assert_eq!((losses.totals(), losses.holds()), ((6, 3), false));
    }

    #[test]
    fn at_the_end_nothing_is_held_back_and_nothing_unread_is_given_up() {
        let mut losses = Losses::default();
        assert_eq!(arrive(&mut losses, 3), [""; 0]);
        let mut next = Vec::new();
        losses.give_up(Look { counters: vec![counts(9, 0, 0)], ..Look::default() }, &name, &mut next);
        assert_eq!(told(next), ["-2", "3"]);
        assert_eq!(arrive(&mut losses, 4), ["4"]);
    }

    #[test]
    fn a_loss_says_why_and_whose() {
        let mut losses = Losses::default();
        assert!(arrive(&mut losses, 6).is_empty());
        let accounts = vec![(0, AccountLost { ring_full: 2, budget: 0 }), (1, AccountLost { ring_full: 0, budget: 1 })];
        losses.looked(Look { counters: vec![counts(6, 2, 1)], accounts: accounts.clone(), written: 0 });
        let found = losses_in(settle(&mut losses, 0));
        let [loss] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((loss.from_sequence, loss.to_sequence, loss.count), (Some(1), Some(5), 5));
        let expected = [("budget", 1), ("restart", 2), ("ring-full", 2)];
        assert_eq!(loss.reasons, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
        assert_eq!(loss.accounts, [("account-0", 2), ("account-1", 1)].map(|(n, c)| (n.to_owned(), c)).into());

        losses.looked(Look { counters: vec![counts(8, 4, 1)], accounts, written: 0 });
        let found = losses_in(settle(&mut losses, 0));
        assert_eq!((found[0].reason.as_str(), found[0].count), ("ring-full", 2), "what was told is not told again");
    }

    #[test]
    fn what_one_account_lost_is_named_after_it() {
        let mut losses = Losses::default();
        let accounts = vec![(3, AccountLost { ring_full: 0, budget: 4 })];
        losses.looked(Look { counters: vec![counts(0, 0, 0), counts(4, 0, 4)], accounts, written: 0 });
        let found = losses_in(settle(&mut losses, 0));
        let named = (found[0].reason.as_str(), found[0].cpu, found[0].account.as_deref());
        assert_eq!(named, ("budget", Some(1), Some("account-3")));
        assert!(settle(&mut losses, 0).is_empty(), "looked at once");
    }
}
