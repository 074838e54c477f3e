//! Questions held for a person (`Prefer: wait=N`): how many at once, in all and for one asker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many questions are held at most. Each is a connection and a task that waits.
const MOST: usize = 256;
/// How many for one asker, so that one workload cannot take the places of all others.
const MOST_EACH: usize = 64;

/// The places.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    by: Arc<Mutex<HashMap<String, usize>>>,
}

/// One place; given back when it is dropped, as it is when the asker hangs up.
#[derive(Debug)]
pub(super) struct Place {
    held: Held,
    who: String,
}

impl Held {
    /// A place for one more question; `None`: it is answered at once.
    pub(super) fn take(&self, who: &str) -> Option<Place> {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        let own = by.get(who).copied().unwrap_or(0);
        if own >= MOST_EACH || by.values().sum::<usize>() >= MOST {
            return None;
        }
        by.insert(who.to_owned(), own + 1);
        Some(Place { held: self.clone(), who: who.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by = self.held.by.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_cannot_take_every_place_and_places_come_back() {
        let held = Held::default();
        let mut places: Vec<_> = (0..MOST_EACH).map(|_| held.take("a").unwrap()).collect();
        assert!(held.take("a").is_none());
        places.push(held.take("b").unwrap());
        places.swap_remove(0);
        places.push(held.take("a").unwrap());
        for who in 0..MOST {
            let Some(place) = held.take(&who.to_string()) else { break };
            places.push(place);
        }
        assert_eq!(places.len(), MOST);
        places.clear();
        assert!(held.by.lock().unwrap().is_empty());
    }
}
