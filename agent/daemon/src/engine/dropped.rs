//! The drop directory: files that configuration management leaves become signals of the files' owners.
//!
//! Each file is taken whole, then removed; what cannot be taken is moved to `rejected/`, named and recorded. Repeats under one
//! id change nothing, so a file that is dropped again, or read again after a crash, does no harm.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use jiff::Timestamp;
use libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::{Group, Uid, User, getgrouplist};
use writ_core::signal::{Caller, Incoming};

use super::{Actor, Engine, Refusal};
use crate::statement::statement;

/// How many files are taken in one second, so that a flood of them holds nothing else up.
const AT_ONCE: usize = 64;
/// The largest file.
const LARGEST: u64 = 1 << 20;

impl Engine {
    /// Takes what lies in the directory.
    pub(super) fn take_dropped(&mut self) {
        let Some(directory) = self.current().and_then(|current| current.config.agent.paths.drop.clone()) else {
            return;
        };
        let directory = Path::new(&directory);
        let entries = match safe(directory).and_then(|()| fs::read_dir(directory).map_err(|error| error.to_string())) {
            Ok(entries) => entries,
            Err(why) => {
                if !self.degraded.iter().any(|reason| reason == "drop-directory") {
                    tracing::error!(directory = %directory.display(), why, "the drop directory cannot be used");
                }
                self.degraded_by("drop-directory", true);
                return;
            }
        };
        self.degraded_by("drop-directory", false);
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            // A file on its way has another name: it is renamed when it is whole.
            .filter(|name| !name.starts_with('.') && (name.ends_with(".json") || name.ends_with(".jsonl")))
            .collect();
        names.sort();
        for name in names.iter().take(AT_ONCE) {
            self.take_file(directory, name);
        }
    }

    fn take_file(&mut self, directory: &Path, name: &str) {
        let path = directory.join(name);
        let mut actor = Actor { caller: Caller { uid: u32::MAX, ..Caller::default() }, ..Actor::default() };
        let problems = match open(&path) {
            Ok((text, uid, written)) => {
                actor = self.owner(uid);
                self.take_lines(name, &text, written, &actor)
            }
            Err(why) => vec![format!("{name}: {why}")],
        };
        if problems.is_empty() {
            if let Err(error) = fs::remove_file(&path) {
                tracing::error!(%error, file = %path.display(), "a dropped file cannot be removed; it is read again, to no effect");
            }
            return;
        }
        let rejected = directory.join("rejected");
        let moved = fs::create_dir_all(&rejected).and_then(|()| fs::rename(&path, rejected.join(name)));
        if let Err(error) = moved {
            tracing::error!(%error, file = %path.display(), "a bad file cannot be moved aside");
            let _ = fs::remove_file(&path);
        }
        for problem in problems {
            tracing::warn!(problem, "a dropped file was refused, and moved to `rejected`");
            self.note_refused("signal drop", &actor, None, &problem);
        }
    }

    /// Sends a signal for each line; what is wrong, by line. A line that is refused does not hold up those after it.
    fn take_lines(&mut self, name: &str, text: &str, written: Timestamp, actor: &Actor) -> Vec<String> {
        let mut problems = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let sent = statement(line).and_then(|body| {
                let ttl = body.ttl.as_deref().map(writ_core::config::duration).transpose();
                Ok(Incoming {
                    id: body.id,
                    account: body.account,
                    kind: body.kind,
                    risk: body.risk,
                    ttl: ttl.map_err(|fault| format!("`ttl`: {}", fault.message))?,
                    evidence: body.evidence,
                    // What is read twice is the same statement twice.
                    at: Some(body.at.unwrap_or(written)),
                })
            });
            let why = match sent {
                Ok(incoming) => match self.signal(&incoming, actor) {
                    Ok(_) => continue,
                    Err(Refusal::Kernel(why)) => why,
                    Err(refusal) => refusal.to_string(),
                },
                Err(why) => why,
            };
            problems.push(format!("{name}:{number}: {why}"));
        }
        problems
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
        let accounts = self.accounts_of(&[uid], 0);
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

/// Whether a directory can be trusted to hold what its files' owners put there.
fn safe(directory: &Path) -> Result<(), String> {
    let found = fs::symlink_metadata(directory).map_err(|error| error.to_string())?;
    if !found.is_dir() {
        return Err("it is no directory".into());
    }
    if found.uid() != 0 {
        return Err("it does not belong to root: its owner could put anybody's files there".into());
    }
    if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        return Err(
            "others may write to it and it is not sticky (chmod +t): they could replace each other's files".into()
        );
    }
    Ok(())
}

/// The text of a file, its owner, and when it was written.
fn open(path: &Path) -> Result<(String, u32, Timestamp), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut options = File::options();
    // Neither links are followed nor pipes waited for.
    let file = options.read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC).open(path).map_err(text)?;
    let found = file.metadata().map_err(text)?;
    if !found.is_file() {
        return Err("not a plain file".into());
    }
    if found.nlink() != 1 {
        return Err("it has another name: whoever linked it here need not be its owner".into());
    }
    if found.mode() & 0o022 != 0 {
        return Err("others than its owner may write to it: it cannot be attributed".into());
    }
    if found.len() > LARGEST {
        return Err(format!("it has {} bytes; {LARGEST} is the limit", found.len()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(text)?;
    let content = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let written = Timestamp::new(found.mtime(), i32::try_from(found.mtime_nsec()).unwrap_or(0));
    Ok((content, found.uid(), written.map_err(|error| error.to_string())?))
}
