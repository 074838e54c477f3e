//! Waiting for a condition until a deadline: a test that guesses how long something takes is slow, or wrong, or both.

use std::time::{Duration, Instant};

/// How long anything on a slow, emulated, shared machine may take before it counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(150);

const INTERVAL: Duration = Duration::from_millis(10);

/// Polls until the condition gives a value; panics with what was waited for.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, condition) {
        Some(value) => value,
        None => panic!("waited {} s in vain: {what}", PATIENCE.as_secs()),
    }
}

/// Polls until the condition gives a value or the time is over; the condition is asked at least once.
pub fn within<T>(patience: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}
