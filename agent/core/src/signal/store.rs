//! Live signals of every account, bounded, and the rule by which an incoming one is taken or refused.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::admission::{admit, admit_replacement};
use super::remembered::Remembered;
use super::{Accepted, Caller, Clipped, Incoming, Outcome, Signal, Source, after, shifted};
use crate::config::{Config, SignalKind};

/// How far ahead of this host's clock a sender's may be.
pub const SKEW: Duration = Duration::from_secs(5);
/// How many signals of one account are live at most.
pub const LIVE_PER_ACCOUNT: usize = 1024;
/// How many of them may come from one source, so that no source can use up the room of the others.
pub const LIVE_PER_SOURCE: usize = 128;
/// The longest time to live of a signal whose kind is not declared.
pub const UNDECLARED_MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long an event is remembered at least.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// The live signals of every account. One source has at most one live signal of a kind about an account: the latest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Snapshot")]
pub struct SignalStore {
    accounts: BTreeMap<String, AccountSignals>,
    /// Which account a live signal's id belongs to.
    #[serde(skip)]
    ids: BTreeMap<String, String>,
}

/// [`SignalStore`] as it is written.
#[derive(Deserialize)]
struct Snapshot {
    #[serde(default)]
    accounts: BTreeMap<String, AccountSignals>,
}

impl From<Snapshot> for SignalStore {
    fn from(snapshot: Snapshot) -> Self {
        let mut store = Self { accounts: snapshot.accounts, ids: BTreeMap::new() };
        for (account, signals) in &store.accounts {
            store.ids.extend(signals.live.iter().map(|signal| (signal.id.clone(), account.clone())));
        }
        store
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct AccountSignals {
    live: Vec<Signal>,
    #[serde(default)]
    remembered: Remembered,
}

impl SignalStore {
    /// Takes or refuses one signal.
    pub fn receive(&mut self, incoming: &Incoming, caller: &Caller, now: Timestamp, config: &Config) -> Outcome {
        if let Some(field) = incoming.malformed() {
            return Outcome::Malformed { field };
        }
        let Some(account) = config.accounts.get(&incoming.account) else { return Outcome::UnknownAccount };
        let operator = caller.is_operator(&config.agent.operators) && !caller.stems_from(&account.name);
        let undeclared;
        let kind = match config.signals.get(&incoming.kind) {
            Some(kind) => kind,
            None if !operator => return Outcome::UnknownKind,
            None => match undeclared_kind(incoming) {
                Some(kind) => {
                    undeclared = kind;
                    &undeclared
                }
                None => return Outcome::Incomplete,
            },
        };
        if let Err(reason) = admit(caller, kind, account, config) {
            return Outcome::Unauthorised { reason };
        }
        let claimed = incoming.at.unwrap_or(now);
        if claimed > after(now, SKEW) {
            return Outcome::FutureDated { at: claimed };
        }
        // A clock that runs ahead within the skew must not lock out the same source's next statement.
        let at = claimed.min(now);

        let (evidence, evidence_clipped) = incoming.kept_evidence();
        let ttl = incoming.ttl.unwrap_or(kind.ttl);
        let stated = incoming.risk.unwrap_or(kind.risk).min(100);
        let clipped =
            Clipped { ttl: ttl > kind.ttl, risk: !operator && stated > kind.risk, evidence: evidence_clipped };
        let assigned = incoming.assigned_id(caller, at);
        let event = incoming.id.clone().unwrap_or_else(|| assigned.clone());
        let id = if self.ids.contains_key(&event) { assigned } else { event.clone() };
        let signal = Signal {
            event: (id != event).then(|| event.clone()),
            id,
            account: account.name.clone(),
            kind: incoming.kind.clone(),
            risk: if clipped.risk { kind.risk } else { stated },
            source: caller.source(),
            evidence,
            at,
            expires: after(at, ttl.min(kind.ttl)),
        };
        self.place(signal, &event, clipped, caller, now, config)
    }

    fn place(
        &mut self,
        signal: Signal,
        event: &str,
        clipped: Clipped,
        caller: &Caller,
        now: Timestamp,
        config: &Config,
    ) -> Outcome {
        let held = self.accounts.entry(signal.account.clone()).or_default();
        if held.knows(&signal.source, event, now) {
            return Outcome::Duplicate { id: event.to_owned() };
        }
        if !signal.is_live(now) {
            return Outcome::Stale { expired: signal.expires };
        }
        let same = |live: &Signal| live.kind == signal.kind && live.source.same(&signal.source);
        let mut replaced = None;
        let mut evicted = None;
        if let Some(index) = held.live.iter().position(same) {
            if let Some(live) = held.live.get(index).filter(|live| live.is_live(now)) {
                if !signal.supersedes(live) {
                    return Outcome::OutOfOrder { live: live.id.clone() };
                }
                if let Err(reason) = admit_replacement(caller, &signal, live) {
                    return Outcome::Unauthorised { reason };
                }
            }
            replaced = Some(held.live.swap_remove(index));
        } else if let Err(limit) = held.room_for(&signal, config).map(|gone| evicted = gone) {
            return Outcome::Overflow { limit };
        }
        for gone in replaced.iter().chain(&evicted) {
            self.ids.remove(&gone.id);
        }
        held.remember(&signal, event, now);
        held.live.push(signal.clone());
        held.live.sort_by(|a, b| a.id.cmp(&b.id));
        self.ids.insert(signal.id.clone(), signal.account.clone());
        Outcome::Accepted(Box::new(Accepted { signal, replaced, evicted, clipped }))
    }

    /// Takes an accepted signal again, as a journal kept it; what it moved is moved again.
    pub(crate) fn retake(&mut self, accepted: &Accepted, now: Timestamp) {
        let Accepted { signal, replaced, evicted, .. } = accepted;
        let held = self.accounts.entry(signal.account.clone()).or_default();
        for gone in replaced.iter().chain(evicted).chain([signal]) {
            held.live.retain(|live| live.id != gone.id);
            self.ids.remove(&gone.id);
        }
        held.remember(signal, signal.event(), now);
        held.live.push(signal.clone());
        held.live.sort_by(|a, b| a.id.cmp(&b.id));
        self.ids.insert(signal.id.clone(), signal.account.clone());
    }

    /// Ends a signal before its time. Who may is the caller's matter; the event stays remembered, so that replaying it
    /// does not bring it back.
    pub fn clear(&mut self, id: &str) -> Option<Signal> {
        let account = self.ids.remove(id)?;
        let live = &mut self.accounts.get_mut(&account)?.live;
        let index = live.iter().position(|signal| signal.id == id)?;
        Some(live.remove(index))
    }

    /// Removes and returns what has ended.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Signal> {
        let mut ended = Vec::new();
        for held in self.accounts.values_mut() {
            ended.extend(held.live.extract_if(.., |signal| !signal.is_live(now)));
            held.remembered.expire(now);
        }
        for signal in &ended {
            self.ids.remove(&signal.id);
        }
        self.accounts.retain(|_, held| !held.live.is_empty() || !held.remembered.is_empty());
        ended.sort_by(|a, b| (a.expires, &a.id).cmp(&(b.expires, &b.id)));
        ended
    }

    /// The live signals of an account, by id.
    pub fn live<'a>(&'a self, account: &str, now: Timestamp) -> impl Iterator<Item = &'a Signal> + Clone + use<'a> {
        self.accounts.get(account).into_iter().flat_map(|held| &held.live).filter(move |signal| signal.is_live(now))
    }

    /// The live signals of every account, by account and id.
    pub fn all(&self, now: Timestamp) -> impl Iterator<Item = &Signal> {
        self.accounts.values().flat_map(|held| &held.live).filter(move |signal| signal.is_live(now))
    }

    /// A live signal by its id.
    pub fn get(&self, id: &str, now: Timestamp) -> Option<&Signal> {
        let account = self.ids.get(id)?;
        self.live(account, now).find(|signal| signal.id == id)
    }

    /// When the next signal ends, or has ended and is not removed yet.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.accounts.values().flat_map(|held| &held.live).map(|signal| signal.expires).min()
    }

    /// Moves every instant by a step of the wall clock, so that lifetimes keep their length.
    pub fn shift(&mut self, by: SignedDuration) {
        for held in self.accounts.values_mut() {
            for signal in &mut held.live {
                signal.at = shifted(signal.at, by);
                signal.expires = shifted(signal.expires, by);
            }
            held.remembered.shift(by);
        }
    }
}

impl AccountSignals {
    fn knows(&self, source: &Source, event: &str, now: Timestamp) -> bool {
        self.live.iter().any(|signal| signal.event() == event && signal.source.same(source))
            || self.remembered.holds(source, event, now)
    }

    fn remember(&mut self, signal: &Signal, event: &str, now: Timestamp) {
        let until = signal.expires.max(after(now, MEMORY));
        self.remembered.push(event, &signal.source, until);
    }

    /// Makes room: nothing to do, or one lesser signal gives way, or the limit that stands against it.
    ///
    /// Only a signal of lower risk gives way, and none that a policy may ask for by name: what is dropped can neither
    /// lower the risk nor open anything, and a flood of harmless signals cannot keep a grave one out.
    fn room_for(&mut self, signal: &Signal, config: &Config) -> Result<Option<Signal>, usize> {
        let from_source = self.live.iter().filter(|live| live.source.same(&signal.source)).count();
        let limit = if from_source >= LIVE_PER_SOURCE {
            LIVE_PER_SOURCE
        } else if self.live.len() >= LIVE_PER_ACCOUNT {
            LIVE_PER_ACCOUNT
        } else {
            return Ok(None);
        };
        let least = (self.live.iter().enumerate())
            .filter(|(_, live)| limit == LIVE_PER_ACCOUNT || live.source.same(&signal.source))
            .filter(|(_, live)| live.risk < signal.risk)
            .filter(|(_, live)| config.signals.get(&live.kind).is_none_or(|kind| !kind.flag && !kind.freshness))
            .min_by_key(|(_, live)| (live.risk, live.expires))
            .map(|(index, _)| index);
        least.map(|index| Some(self.live.remove(index))).ok_or(limit)
    }
}

/// The kind an operator's signal of an undeclared name stands for: what it says itself, no flag, no freshness.
fn undeclared_kind(incoming: &Incoming) -> Option<SignalKind> {
    Some(SignalKind {
        kind: incoming.kind.clone(),
        risk: incoming.risk?,
        ttl: incoming.ttl?.min(UNDECLARED_MAX_TTL),
        flag: false,
        from: Vec::new(),
        freshness: false,
        ends_sessions: incoming.kind == crate::config::CREDENTIAL_ROTATED,
        at: None,
    })
}
