//! How many connections one user may keep open: nobody can take the API's room from another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixStream;

/// How many connections one user has at most, and how many all users but root have together. Root is not limited: whoever
/// has to put things right gets in.
const MOST_PER_USER: usize = 32;
const MOST: usize = 512;
/// What is answered to one too many, whatever it asks.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nconnection: close\r\n\
content-length: 138\r\n\r\n{\"error\":{\"code\":\"too-many-connections\",\"message\":\"this user has as many connections \
open as it may\",\"hint\":\"close some, then try again\"}}";

/// Open connections by user, and those that were refused.
#[derive(Debug, Default)]
struct Open {
    users: HashMap<u32, usize>,
    refused: u64,
}

/// The counts, shared with every open connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits(Arc<Mutex<Open>>);

impl Limits {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of this user, if it may have one more.
    pub(super) fn admit(&self, uid: u32) -> Option<Place> {
        let mut open = self.open();
        let mine = open.users.get(&uid).copied().unwrap_or(0);
        let others: usize = open.users.iter().filter(|(uid, _)| **uid != 0).map(|(_, count)| *count).sum();
        if uid != 0 && (mine >= MOST_PER_USER || others >= MOST) {
            open.refused += 1;
            return None;
        }
        open.users.insert(uid, mine + 1);
        drop(open);
        Some(Place { limits: self.clone(), uid })
    }

    /// How many connections were refused.
    pub(super) fn refused(&self) -> u64 {
        self.open().refused
    }
}

/// One connection's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    limits: Limits,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limits.open();
        if let Some(count) = open.users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.users.remove(&self.uid);
            }
        }
    }
}

/// Tells one too many so, as far as it goes out at once: nobody is waited for.
pub(super) fn turn_away(stream: &UnixStream) {
    drop(stream.try_write(TOO_MANY));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_no_place_of_another_and_places_come_back() {
        let limits = Limits::default();
        let mut mine: Vec<Place> = (0..MOST_PER_USER).filter_map(|_| limits.admit(7)).collect();
        assert_eq!(mine.len(), MOST_PER_USER);
        assert!(limits.admit(7).is_none());
        assert!(limits.admit(8).is_some(), "another user is not concerned");
        mine.pop();
        assert!(limits.admit(7).is_some());
        let everybody: Vec<Place> = (100..).map_while(|uid| limits.admit(uid)).collect();
        assert!(everybody.len() + mine.len() <= MOST);
        assert!(limits.admit(0).is_some(), "root always gets in");
        drop(everybody);
        assert!(limits.admit(9).is_some());
        assert_eq!(limits.refused(), 2);
    }

    #[test]
    fn the_answer_to_one_too_many_is_whole() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
