//! Rows for what may come next: each kind of signal that could arrive for an account, worked out while there is nothing
//! else to do, so that its arrival is one slot write.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use writ_core::config::{Config, SignalKind};
use writ_core::signal::{Signal, Source};
use writ_core::table::Generation;

use super::Engine;
use super::activate::outlook;
use crate::kernel::Extent;

/// How many accounts' rows are prepared for every kind of signal after a new generation. Beyond it the accounts whose state
/// changes are, one by one.
const MOST_WAITING: usize = 8_192;

/// What is still to be prepared: an account, and the kind of signal that may come for it.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    waiting: VecDeque<(String, String)>,
    /// How far the tables may reach: what may come must leave room for what does come.
    limit: Option<Extent>,
}

/// Whether a signal of this kind can change a stance at all.
fn matters(kind: &SignalKind) -> bool {
    kind.flag || kind.freshness || kind.risk > 0
}

impl Neighbours {
    /// Everything that may come next, after a new generation: nothing is prepared.
    pub(super) fn all(&mut self, config: &Config, generation: &Generation) {
        self.limit = Some(Extent::of(generation).half_way());
        self.waiting.clear();
        let kinds: Vec<&String> = config.signals.values().filter(|kind| matters(kind)).map(|kind| &kind.kind).collect();
        let each = config.accounts.keys().flat_map(|account| kinds.iter().map(move |kind| (account, *kind)));
        self.waiting.extend(each.take(MOST_WAITING).map(|(account, kind)| (account.clone(), kind.clone())));
    }

    /// What may come next for one account: its state is another now.
    pub(super) fn of(&mut self, account: &str, config: &Config) {
        self.waiting.retain(|(waiting, _)| waiting != account);
        for kind in config.signals.values().filter(|kind| matters(kind)) {
            self.waiting.push_front((account.to_owned(), kind.kind.clone()));
        }
    }

    /// Whether anything is left to prepare.
    pub(super) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Engine {
    /// Prepares the next neighbour: a few questions to Cedar, and no more than that, because something may come.
    pub(super) fn prepare_neighbour(&mut self) {
        let Some((name, kind)) = self.neighbours.waiting.pop_front() else { return };
        let Some(current) = &mut self.current else { return };
        let Some(index) = current.indices.get(&name).copied() else { return };
        let epoch = self.epochs.get(&name).copied().unwrap_or(0);
        let Some(mut moment) = self.moments.get(&(index, epoch)).map(|moment| (**moment).clone()) else { return };
        let Some(kind) = current.config.signals.get(&kind) else { return };
        let Ok(ttl) = SignedDuration::try_from(kind.ttl) else { return };
        let now = Timestamp::now();
        let Ok(expires) = now.checked_add(ttl) else { return };
        moment.signals.push(Signal {
            id: String::new(),
            event: None,
            account: name.clone(),
            kind: kind.kind.clone(),
            risk: kind.risk,
            source: Source { uid: 0, name: None, loginuid: None },
            evidence: None,
            at: now,
            expires,
        });
        let since = self.numbers.known_since.get(&name).copied().unwrap_or(now);
        let wanted = outlook(&current.config, &current.bundle, &mut moment, epoch, since, now);
        let before = Extent::of(&current.generation);
        let room = self.neighbours.limit.is_some_and(|limit| before.within(&limit));
        let prepared = room && current.generation.prepare(&current.bundle, &name, &wanted).is_ok();
        if !prepared || self.kernel.extend(&current.generation, &before).is_err() {
            self.neighbours.waiting.clear();
        }
    }
}
