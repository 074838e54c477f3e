//! The drop directory: files that configuration management leaves become signals of the files' owners.
//!
//! A file is read whole and taken line by line, so many lines a second, then removed; what cannot be taken is moved to
//! `rejected/`, named and recorded. Repeats under one id change nothing, so a file that is dropped again, or read again after a
//! crash, does no harm.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::unistd::{Group, Uid, User, getgrouplist};
use writ_core::signal::{Caller, Incoming};

use super::drop_directory::{Aside, Directory, Found};
use super::{Actor, Engine, Refusal};
use crate::statement::statement;

/// How many lines are taken in one second, so that a flood of them holds nothing else up. Each owner has an equal share.
const LINES: usize = 256;
/// A longer line counts as several.
const LINE: usize = 4_096;
/// How many files are taken in one second.
const FILES: usize = 64;
/// How many owners' files are underway at once; each of them is in memory.
const OWNERS: usize = 16;
/// How long one second's lines may take, whatever each of them sets off.
const LONGEST: Duration = Duration::from_millis(100);

/// A file of which some lines are still to be taken.
#[derive(Debug)]
struct Underway {
    name: String,
    found: Found,
    actor: Actor,
    /// Where the next line begins.
    at: usize,
    /// Its number.
    number: usize,
    /// How many lines were refused, and what was wrong with the first.
    refused: u64,
    first: Option<String>,
}

/// What is underway in the drop directory, by the file's owner.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    underway: BTreeMap<u32, Underway>,
}

impl Underway {
    fn new(name: String, found: Found, actor: Actor) -> Self {
        Self { name, found, actor, at: 0, number: 1, refused: 0, first: None }
    }

    /// The next line that is not blank, and its number.
    fn next_line(&mut self) -> Option<(usize, String)> {
        while let Some(rest) = self.found.text.get(self.at..).filter(|rest| !rest.is_empty()) {
            let line = rest.split_inclusive('\n').next().unwrap_or(rest);
            let number = self.number;
            self.at += line.len();
            self.number += 1;
            if !line.trim().is_empty() {
                return Some((number, line.trim_end().to_owned()));
            }
        }
        None
    }
}

/// Whose files are taken in this second: those of which some are underway, and then others.
fn whose(underway: &BTreeMap<u32, Underway>, waiting: &BTreeMap<u32, Vec<String>>) -> Vec<u32> {
    let others = waiting.keys().filter(|uid| !underway.contains_key(uid));
    underway.keys().chain(others).copied().take(OWNERS).collect()
}

/// What a line costs of an owner's share.
fn cost(line: &str) -> usize {
    1 + line.len() / LINE
}

impl Engine {
    /// Takes what lies in the directory, as much of it as one second has room for.
    pub(super) fn take_dropped(&mut self) {
        let Some(path) = self.current().and_then(|current| current.config.agent.paths.drop.clone()) else {
            self.dropped = Dropped::default();
            return;
        };
        let opened = Directory::open(Path::new(&path), Uid::effective());
        let (directory, mut waiting) = match opened.and_then(|opened| Ok((opened.waiting()?, opened))) {
            Ok((waiting, directory)) => (directory, waiting),
            Err(why) => {
                if !self.degraded.iter().any(|reason| reason == "drop-directory") {
                    tracing::error!(directory = path, why, "the drop directory cannot be used");
                }
                self.degraded_by("drop-directory", true);
                return;
            }
        };
        self.degraded_by("drop-directory", false);
        let owners = whose(&self.dropped.underway, &waiting);
        let sharers = u32::try_from(owners.len()).unwrap_or(u32::MAX).max(1);
        let mut removed: BTreeMap<String, u64> = BTreeMap::new();
        for uid in owners {
            let mut names = VecDeque::from(waiting.remove(&uid).unwrap_or_default());
            if let Some(known) = self.dropped.underway.get(&uid) {
                names.retain(|name| *name != known.name);
            }
            self.take_share(&directory, uid, names, sharers, &mut removed);
        }
        for (why, count) in removed {
            tracing::warn!(
                count,
                why,
                "bad dropped files could not be kept in `rejected`, and are gone unless that failed too"
            );
        }
    }

    /// Takes an owner's files until its share of lines, files or time is used up.
    fn take_share(
        &mut self,
        directory: &Directory,
        uid: u32,
        mut names: VecDeque<String>,
        sharers: u32,
        removed: &mut BTreeMap<String, u64>,
    ) {
        let (mut left, mut files) = (LINES / sharers as usize, FILES / sharers as usize);
        let until = Instant::now() + LONGEST / sharers;
        while left > 0 && Instant::now() < until {
            let Some(mut file) = self.dropped.underway.remove(&uid) else {
                let Some(name) = names.pop_front().filter(|_| files > 0) else { return };
                files -= 1;
                left -= 1;
                self.begin(directory, uid, name, removed);
                continue;
            };
            let Some((number, line)) = file.next_line() else {
                self.finish(directory, &file, removed);
                continue;
            };
            left = left.saturating_sub(cost(&line));
            if let Err(why) = self.take_line(&line, file.found.written, &file.actor) {
                let problem = format!("{}:{number}: {why}", file.name);
                self.note_refused("signal drop", &file.actor, None, &problem);
                file.refused += 1;
                file.first.get_or_insert(problem);
            }
            self.dropped.underway.insert(uid, file);
        }
    }

    fn begin(&mut self, directory: &Directory, uid: u32, name: String, removed: &mut BTreeMap<String, u64>) {
        match directory.read(&name) {
            Ok(found) => {
                let actor = self.owner(found.uid);
                self.dropped.underway.insert(uid, Underway::new(name, found, actor));
            }
            Err(why) => {
                let nobody = Actor { caller: Caller { uid: u32::MAX, ..Caller::default() }, ..Actor::default() };
                let problem = format!("{name}: {why}");
                self.note_refused("signal drop", &nobody, None, &problem);
                tracing::warn!(problem, "a dropped file was refused");
                put_aside(directory, &name, removed);
            }
        }
    }

    /// Removes a file that was taken, or moves it aside if some of it was bad.
    fn finish(&mut self, directory: &Directory, file: &Underway, removed: &mut BTreeMap<String, u64>) {
        if file.refused > 0 {
            let first = file.first.as_deref().unwrap_or_default();
            tracing::warn!(file = file.name, lines = file.refused, first, "lines of a dropped file were refused");
        }
        if !directory.holds(&file.name, file.found.which) {
            return; // Its owner has put another in its place meanwhile, which is read as such, or taken it back.
        }
        if file.refused > 0 {
            put_aside(directory, &file.name, removed);
        } else if let Err(error) = directory.remove(&file.name) {
            tracing::error!(
                error,
                file = file.name,
                "a dropped file cannot be removed; it is read again, to no effect"
            );
        }
    }

    /// Sends the signal that a line is.
    fn take_line(&mut self, line: &str, written: Timestamp, actor: &Actor) -> Result<(), String> {
        let body = statement(line)?;
        let ttl = body.ttl.as_deref().map(writ_core::config::duration).transpose();
        let incoming = Incoming {
            id: body.id,
            account: body.account,
            kind: body.kind,
            risk: body.risk,
            ttl: ttl.map_err(|fault| format!("`ttl`: {}", fault.message))?,
            evidence: body.evidence,
            // What is read twice is the same statement twice.
            at: Some(body.at.unwrap_or(written)),
        };
        match self.signal(&incoming, actor) {
            Ok(_) => Ok(()),
            Err(Refusal::Kernel(why)) => Err(why),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    /// The owner of a file as a sender. There is no process, so only its uid can lead to accounts.
    fn owner(&self, uid: u32) -> Actor {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let of = |user: &User| {
            let name = std::ffi::CString::new(user.name.clone()).ok()?;
            let groups = getgrouplist(&name, user.gid).ok()?;
            Some(groups.into_iter().filter_map(|gid| Some(Group::from_gid(gid).ok()??.name)).collect())
        };
        let groups = user.as_ref().and_then(of).unwrap_or_default();
        let accounts = self.accounts_of(&[uid], None, &[]);
        let caller = Caller {
            uid,
            loginuid: None,
            name: user.map(|user| user.name),
            groups,
            accounts,
            origins: Vec::new(),
            transmitter: false,
        };
        Actor { caller, ..Actor::default() }
    }
}

/// Moves a bad file aside; one that could only be removed is counted, by the reason.
fn put_aside(directory: &Directory, name: &str, removed: &mut BTreeMap<String, u64>) {
    match directory.put_aside(name) {
        Aside::Moved => {}
        Aside::Removed(why) | Aside::Stuck(why) => *removed.entry(why).or_default() += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underway(name: &str, text: &str) -> Underway {
        let found = Found { text: text.to_owned(), uid: 7, written: Timestamp::UNIX_EPOCH, which: (0, 0) };
        Underway::new(name.to_owned(), found, Actor::default())
    }

    #[test]
    fn lines_go_on_where_they_were_left_none_twice_and_none_left_out() {
        let mut file = underway("a.jsonl", "one\r\n\n  \ntwo\nthree");
        let taken: Vec<(usize, String)> = std::iter::from_fn(|| file.next_line()).collect();
        assert_eq!(taken, [(1, "one".to_owned()), (4, "two".to_owned()), (5, "three".to_owned())]);
        assert_eq!(file.next_line(), None);
        assert_eq!(underway("b.jsonl", "").next_line(), None);
    }

    #[test]
    fn a_line_as_long_as_a_file_may_be_takes_a_seconds_share() {
        assert_eq!(cost("{}"), 1);
        assert!(cost(&"x".repeat(1 << 20)) > LINES);
    }

    #[test]
    fn an_owner_with_many_files_leaves_others_their_share() {
        let started = BTreeMap::from([(7, underway("a.jsonl", "x"))]);
        let many = (0..1_000).map(|number| format!("{number}.json")).collect();
        let waiting = BTreeMap::from([(0, vec!["z.json".to_owned()]), (7, many)]);
        assert_eq!(whose(&started, &waiting), [7, 0]);
    }
}
