//! Drives a parser with mutations of real inputs for a bounded time, and says how to repeat what made it panic.
//!
//! Inputs are cut, spliced, repeated, overwritten with what parsers trip over, and mutated again when the parser takes longer
//! over them or accepts them: not guided by coverage, which no stable compiler offers, but by what the parser itself tells.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Milliseconds for each target where `WRIT_FUZZ_MS` says nothing: what `cargo test` spends on it.
const DEFAULT_MS: u64 = 1_500;
/// Inputs that are kept to mutate further.
const KEPT: usize = 512;
/// No input is longer.
const LONGEST: usize = 64 << 10;
/// What parsers trip over.
const TOKENS: [&[u8]; 24] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80",
    b"\r\n",
    b"\n\n",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[[[[[[[[",
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"0x",
    b"/",
    b"::ffff:1.2.3.4",
    b"/129",
    b"99999999999h",
    b"e\xcc\x81",
    b"\xf0\x9f\x92\xa9",
    b"permit(principal,action,resource);",
    b"2026-13-45T99:99:99Z",
];

/// A small generator (xorshift64*): the same seed gives the same inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.next() % limit as u64) as usize }
    }
}

/// What one target was driven with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driven {
    /// Inputs.
    pub inputs: u64,
    /// Inputs that the parser accepted.
    pub accepted: u64,
}

/// Calls `target` with mutations of `seeds` until the time is up. It returns whether it accepted the input; what it must not
/// do is panic. `WRIT_FUZZ_MS` sets the time in milliseconds, `WRIT_FUZZ_SEED` the seed. Without a time every run goes through the
/// same inputs, as far as it comes; with one, what takes the parser long is followed too, which no two runs do alike.
///
/// # Panics
/// When the target does, after printing the input as Rust writes it.
pub fn drive(name: &str, seeds: &[&[u8]], target: impl Fn(&[u8]) -> bool) -> Driven {
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let asked = number("WRIT_FUZZ_MS");
    let time = Duration::from_millis(asked.unwrap_or(DEFAULT_MS));
    let seed = number("WRIT_FUZZ_SEED").unwrap_or(0x9e37_79b9_7f4a_7c15);
    let mut random = Random(seed | 1);
    let mut kept: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    kept.push(Vec::new());
    let mut driven = Driven { inputs: 0, accepted: 0 };
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    // The inputs as they are first: a parser that refuses them all is not tested by their mutations.
    let mut next = 0;
    while began.elapsed() < time || next < kept.len().min(seeds.len()) {
        let input =
            if next < seeds.len() { kept.get(next).cloned().unwrap_or_default() } else { mutated(&kept, &mut random) };
        next += 1;
        let started = Instant::now();
        let accepted = match catch_unwind(AssertUnwindSafe(|| target(&input))) {
            Ok(accepted) => accepted,
            Err(panic) => {
                eprintln!("fuzz target `{name}` (seed {seed}) panicked on b\"{}\"", input.escape_ascii());
                resume_unwind(panic)
            }
        };
        let took = started.elapsed();
        driven.inputs += 1;
        driven.accepted += u64::from(accepted);
        let telling = accepted || (asked.is_some() && took > slowest);
        slowest = slowest.max(took);
        if telling && next > seeds.len() && !kept.contains(&input) {
            if kept.len() < KEPT {
                kept.push(input);
            } else {
                // The first ones, which are real, stay.
                let place = seeds.len() + random.below(KEPT - seeds.len());
                if let Some(place) = kept.get_mut(place) {
                    *place = input;
                }
            }
        }
    }
    println!("fuzz target `{name}`: {} inputs, {} accepted", driven.inputs, driven.accepted);
    driven
}

fn mutated(kept: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = kept.get(random.below(kept.len())).cloned().unwrap_or_default();
    for _ in 0..=random.below(6) {
        mutate(&mut input, kept, random);
    }
    input.truncate(LONGEST);
    input
}

fn mutate(input: &mut Vec<u8>, kept: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let to = (at + random.below(16)).min(input.len());
    match random.below(8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        2 => drop(input.drain(at..to)),
        3 => input.truncate(at),
        4 => {
            let token = TOKENS.get(random.below(TOKENS.len())).copied().unwrap_or_default();
            drop(input.splice(at..to, token.iter().copied()));
        }
        5 => {
            let token = TOKENS.get(random.below(TOKENS.len())).copied().unwrap_or_default();
            drop(input.splice(at..at, token.iter().copied()));
        }
        6 => {
            // A piece of itself once more.
            let piece: Vec<u8> = input.get(at..to).unwrap_or_default().to_vec();
            let place = random.below(input.len() + 1);
            drop(input.splice(place..place, piece));
        }
        _ => {
            // The head of this and the tail of another.
            let other = kept.get(random.below(kept.len())).map(Vec::as_slice).unwrap_or_default();
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(other.get(from..).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_panics_is_found() {
        let found = catch_unwind(|| {
            drive("three letters", &[b"abd"], |input| {
                if input.starts_with(b"ab") && input.len() > 5 {
                    panic!("found");
                }
                input.len() > 2
            })
        });
        assert!(found.is_err());
    }

    #[test]
    fn the_real_inputs_come_first() {
        let seen = std::cell::RefCell::new(Vec::new());
        drive("seeds", &[b"one", b"two"], |input| {
            seen.borrow_mut().push(input.to_vec());
            true
        });
        assert_eq!(seen.borrow().get(..2).unwrap(), [b"one".to_vec(), b"two".to_vec()]);
    }
}
