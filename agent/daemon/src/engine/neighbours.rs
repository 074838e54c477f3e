//! Rows for what may come next: each kind of signal that could arrive for an account, worked out on a thread that stands
//! back, so that its arrival is one slot write.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use writ_core::config::{Config, SignalKind};
use writ_core::signal::{Signal, Source};
use writ_core::table::{Generation, Preparation, Prepared};

use super::Engine;
use super::activate::outlook;
use crate::kernel::{Extent, stand_back};
use crate::stack::STACK;

/// How many accounts' rows are prepared for every kind of signal after a new generation. Beyond it the accounts whose state
/// changes are, one by one.
const MOST_WAITING: usize = 8_192;

/// What is still to be prepared: an account, and the kind of signal that may come for it.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    waiting: VecDeque<(String, String)>,
    /// How far the tables may reach: what may come must leave room for what does come.
    limit: Option<Extent>,
    /// Whoever works them out, once it was started.
    worker: Option<Worker>,
    /// What it works on.
    busy: Option<(String, String)>,
}

/// The thread, and how it is reached.
#[derive(Debug)]
struct Worker {
    asks: mpsc::Sender<Preparation>,
    made: mpsc::Receiver<Prepared>,
    /// Has the engine come back for more.
    done: Arc<Notify>,
}

impl Worker {
    fn start(done: Arc<Notify>) -> std::io::Result<Self> {
        let (asks, asked) = mpsc::channel::<Preparation>();
        let (answers, made) = mpsc::channel();
        let tell = Arc::clone(&done);
        std::thread::Builder::new().name("neighbours".into()).stack_size(STACK).spawn(move || {
            stand_back();
            for preparation in asked {
                if answers.send(preparation.work_out()).is_err() {
                    return;
                }
                tell.notify_one();
            }
        })?;
        Ok(Self { asks, made, done })
    }
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

    /// Whether there is something to prepare, and somebody to do it.
    pub(super) fn wait(&self) -> bool {
        !self.waiting.is_empty() && self.busy.is_none()
    }

    /// Starts the thread, which tells `done` about each row.
    pub(super) fn start(&mut self, done: Arc<Notify>) {
        match Worker::start(done) {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => tracing::warn!(%error, "rows for what may come are not prepared: signals take longer"),
        }
    }
}

impl Engine {
    /// Has the next neighbour worked out.
    pub(super) fn prepare_neighbour(&mut self) {
        let Some(next) = self.neighbours.waiting.pop_front() else { return };
        let preparation = self.preparation(&next.0, &next.1);
        let (limit, current) = (self.neighbours.limit, self.current.as_ref());
        let room = limit.zip(current).is_some_and(|(limit, now)| Extent::of(&now.generation).within(&limit));
        let Some(worker) = self.neighbours.worker.as_ref().filter(|_| room) else {
            self.neighbours.waiting.clear();
            return;
        };
        match preparation {
            // One after the other, with whatever came meanwhile in between.
            None => worker.done.notify_one(),
            Some(preparation) => match worker.asks.send(preparation) {
                Ok(()) => self.neighbours.busy = Some(next),
                Err(_) => self.neighbours.waiting.clear(),
            },
        }
    }

    /// Lays out what was worked out.
    pub(super) fn take_prepared(&mut self) {
        let Some(prepared) = self.neighbours.worker.as_ref().and_then(|worker| worker.made.try_recv().ok()) else {
            return;
        };
        let busy = self.neighbours.busy.take();
        let Some(current) = &mut self.current else { return };
        match current.generation.lay_out(&current.bundle, prepared) {
            // What it was worked out from has changed meanwhile.
            Ok(false) => self.neighbours.waiting.extend(busy),
            Ok(true) if self.kernel.extend(&current.generation).is_ok() => self.explain_prepared(),
            // Whatever is laid out and not in the kernel goes there before the next stance does, or that is refused.
            _ => self.neighbours.waiting.clear(),
        }
    }

    /// What it takes to prepare for a kind of signal; `None` if nothing has to be.
    fn preparation(&self, name: &str, kind: &str) -> Option<Preparation> {
        let current = self.current.as_ref()?;
        let index = current.indices.get(name).copied()?;
        let epoch = self.epochs.get(name).copied().unwrap_or(0);
        let mut moment = (**self.moments.get(&(index, epoch))?).clone();
        let kind = current.config.signals.get(kind)?;
        let ttl = SignedDuration::try_from(kind.ttl).ok()?;
        let now = Timestamp::now();
        let expires = now.checked_add(ttl).ok()?;
        moment.signals.push(Signal {
            id: String::new(),
            event: None,
            account: name.to_owned(),
            kind: kind.kind.clone(),
            risk: kind.risk,
            source: Source { uid: 0, name: None, loginuid: None },
            evidence: None,
            at: now,
            expires,
        });
        let since = self.numbers.known_since.get(name).copied().unwrap_or(now);
        let wanted = outlook(&current.config, &current.bundle, &mut moment, epoch, since, now);
        current.generation.preparation(&current.bundle, name, &wanted)
    }
}
