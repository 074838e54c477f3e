//! Whatever became of a log's files, opening it repairs or refuses it, reading it ends, and verifying it says what is wrong.

use std::fs;

use writ_fuzz::drive;

use super::tests::{Log, ORIGIN, lines};
use super::{Follow, Layout, Trust, verify};

#[test]
fn fuzz_log_files() {
    let whole = Log::with(&lines(0..3), 1 << 20);
    let read = |name: &str| fs::read(whole.dir().join(name)).unwrap();
    let (_, segment) = Layout::new(&whole.dir()).segments().unwrap().into_iter().next().unwrap();
    let seeds = [fs::read(segment).unwrap(), read("checkpoint")];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    drive("log files", &seeds, |input| {
        // Each input once as the lines and once as the checkpoint of an otherwise whole log.
        for part in 0..2 {
            let log = Log::with(&lines(0..3), 1 << 20);
            let (_, segment) = Layout::new(&log.dir()).segments().unwrap().into_iter().next().unwrap();
            fs::write(if part == 0 { segment } else { log.dir().join("checkpoint") }, input).unwrap();
            let mut follow = Follow::from_start(&log.dir());
            while let Ok(Some(_)) = follow.next_line() {}
            let _ = verify(&log.dir(), &Trust::default());
            let _ = log.open_as(ORIGIN);
        }
        false
    });
}
