//! The past events of an account, kept so that a repetition is recognised after the signal itself has ended.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Source, shifted};

/// How many past events of one account are remembered against replay.
pub const REMEMBERED_PER_ACCOUNT: usize = 1024;

/// A received event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Event {
    id: String,
    source: Source,
    until: Timestamp,
}

/// The events, written as a list of them. Whether one is among them is asked with each signal, on its way to the kernel, and
/// most are not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Remembered {
    /// Oldest first.
    events: VecDeque<Event>,
    /// How many there are whose id has this hash.
    hashes: HashMap<u64, usize>,
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

impl Remembered {
    /// Whether the source sent this event before.
    pub(super) fn holds(&self, source: &Source, id: &str, now: Timestamp) -> bool {
        self.hashes.contains_key(&hash(id))
            && self.events.iter().any(|past| now < past.until && past.id == id && past.source.same(source))
    }

    /// Remembers an event until then. Where there is no room, a flood forgets its own past first: it must not make another
    /// source's events replayable.
    pub(super) fn push(&mut self, id: &str, source: &Source, until: Timestamp) {
        if self.events.len() >= REMEMBERED_PER_ACCOUNT {
            let oldest = self.events.iter().position(|past| past.source.same(source)).unwrap_or(0);
            if let Some(gone) = self.events.remove(oldest) {
                forget(&mut self.hashes, &gone.id);
            }
        }
        *self.hashes.entry(hash(id)).or_default() += 1;
        self.events.push_back(Event { id: id.to_owned(), source: source.clone(), until });
    }

    /// Forgets what need not be known any more.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let hashes = &mut self.hashes;
        self.events.retain(|event| {
            let holds = now < event.until;
            if !holds {
                forget(hashes, &event.id);
            }
            holds
        });
    }

    /// Moves every instant by a step of the wall clock.
    pub(super) fn shift(&mut self, by: SignedDuration) {
        for event in &mut self.events {
            event.until = shifted(event.until, by);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

fn forget(hashes: &mut HashMap<u64, usize>, id: &str) {
    let hash = hash(id);
    if let Some(count) = hashes.get_mut(&hash) {
        *count -= 1;
        if *count == 0 {
            hashes.remove(&hash);
        }
    }
}

impl Serialize for Remembered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.events.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Remembered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let events = VecDeque::<Event>::deserialize(deserializer)?;
        let mut hashes = HashMap::new();
        for event in &events {
            *hashes.entry(hash(&event.id)).or_default() += 1;
        }
        Ok(Self { events, hashes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Caller;
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn source(uid: u32) -> Source {
        Caller { uid, ..Caller::default() }.source()
    }

    fn until(seconds: i64) -> Timestamp {
        NOW + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn an_event_is_known_from_its_source_until_its_time_and_after_it_was_read_again() {
        let mut remembered = Remembered::default();
        remembered.push("a", &source(1), until(10));
        remembered.push("a", &source(2), until(20));
        let read: Remembered = serde_json::from_str(&serde_json::to_string(&remembered).unwrap()).unwrap();
        assert_eq!(read, remembered);
        for known in [&remembered, &read] {
            assert!(known.holds(&source(1), "a", NOW) && !known.holds(&source(1), "a", until(10)));
            assert!(known.holds(&source(2), "a", until(10)));
            assert!(!known.holds(&source(3), "a", NOW) && !known.holds(&source(1), "b", NOW));
        }
        remembered.expire(until(10));
        assert!(remembered.holds(&source(2), "a", NOW), "one of two with this id");
        remembered.shift(SignedDuration::from_secs(5));
        remembered.expire(until(20));
        assert!(remembered.holds(&source(2), "a", until(24)));
        remembered.expire(until(25));
        assert_eq!(remembered, Remembered::default(), "nothing is left of what was forgotten");
    }

    #[test]
    fn a_flood_forgets_its_own_past() {
        let mut remembered = Remembered::default();
        remembered.push("first", &source(1), until(10));
        for event in 0..REMEMBERED_PER_ACCOUNT {
            remembered.push(&event.to_string(), &source(2), until(10));
        }
        assert!(remembered.holds(&source(1), "first", NOW));
        assert!(!remembered.holds(&source(2), "0", NOW) && remembered.holds(&source(2), "1", NOW));
        for event in 0..=REMEMBERED_PER_ACCOUNT {
            remembered.push(&format!("other {event}"), &source(1), until(10));
        }
        assert!(!remembered.holds(&source(1), "first", NOW) && remembered.holds(&source(2), "1", NOW));
        assert_eq!(remembered.events.len(), REMEMBERED_PER_ACCOUNT);
        assert_eq!(remembered.hashes.values().sum::<usize>(), REMEMBERED_PER_ACCOUNT);
    }
}
