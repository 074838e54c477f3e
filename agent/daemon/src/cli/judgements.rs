//! Every decision and observation of a log, in parallel, each with the archived policy set it was decided by.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSlice as _;
use writ_core::record::Head;
use writ_core::replay::{ArchiveError, Archived, Attempt, Memo};

use super::output;
use crate::log::{Layout, archive_get};

/// Lines that one thread takes in one go: enough that it meets the same questions again.
const CHUNK: (usize, usize) = (512, 16_384);

/// Archived policy sets, read once each.
pub(super) struct Archive {
    layout: Layout,
    known: Mutex<HashMap<String, Set>>,
}

/// One archived set, or why it cannot be used.
pub(super) type Set = Arc<Result<Archived, ArchiveError>>;

impl Archive {
    /// The archive of a log directory.
    pub(super) fn of(log: &Path) -> Self {
        Self { layout: Layout::new(log), known: Mutex::default() }
    }

    /// The set that a digest names.
    pub(super) fn get(&self, digest: &str) -> Set {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = known.get(digest) {
            return Arc::clone(set);
        }
        let fetch = |digest: &str| match archive_get(&self.layout, digest) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err("it is not there".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let set = Arc::new(Archived::read(digest, &fetch));
        known.insert(digest.to_owned(), Arc::clone(&set));
        set
    }
}

/// What one thread has at hand: the sets it met, each with the answers given so far.
pub(super) struct Desk<'a> {
    archive: &'a Archive,
    sets: HashMap<String, (Set, Memo)>,
}

impl Desk<'_> {
    /// The set that an attempt was decided by.
    pub(super) fn set(&mut self, digest: &str) -> (&Result<Archived, ArchiveError>, &mut Memo) {
        let archive = self.archive;
        if !self.sets.contains_key(digest) {
            self.sets.insert(digest.to_owned(), (archive.get(digest), Memo::default()));
        }
        let (set, memo) = self.sets.entry(digest.to_owned()).or_insert_with(|| (archive.get(digest), Memo::default()));
        (set, memo)
    }
}

/// A line of the log as far as these commands look at it.
pub(super) enum Line<'a> {
    /// A decision or observation.
    Judged(Box<Attempt<'a>>),
    /// Any other record.
    Other,
    /// No record.
    Unreadable(String),
}

/// Goes through a whole log. Each thread collects into its own `T`; they are merged in log order.
pub(super) fn fold<T: Default + Send>(
    log: &Path,
    archive: &Archive,
    take: impl Fn(&mut T, &mut Desk<'_>, u64, Line<'_>) + Sync,
    merge: impl Fn(T, T) -> T,
) -> anyhow::Result<T> {
    let layout = Layout::new(log);
    if !layout.records().is_dir() {
        return Err(output::no_log(log));
    }
    let segments = layout.segments()?;
    let bytes = segments.iter().filter_map(|(_, path)| path.metadata().ok()).map(|data| data.len()).sum();
    let bar = progress(bytes);
    let mut whole = T::default();
    for (first, path) in segments {
        let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines: Vec<&[u8]> = content.split(|byte| *byte == b'\n').collect();
        // What follows the last newline is nothing, or is being written.
        lines.pop();
        let share = lines.len() / (2 * rayon::current_num_threads()).max(1);
        let chunk = share.clamp(CHUNK.0, CHUNK.1);
        let parts: Vec<T> = lines
            .par_chunks(chunk)
            .enumerate()
            .map(|(number, lines)| {
                let mut desk = Desk { archive, sets: HashMap::new() };
                let mut part = T::default();
                for (index, line) in (first + (number * chunk) as u64..).zip(lines) {
                    take(&mut part, &mut desk, index, read(line));
                }
                bar.inc(lines.iter().map(|line| line.len() as u64 + 1).sum());
                part
            })
            .collect();
        whole = parts.into_iter().fold(whole, &merge);
    }
    bar.finish_and_clear();
    Ok(whole)
}

fn read(line: &[u8]) -> Line<'_> {
    // Lines are written with their type in front; a line that is not is still read rightly, only slower.
    let start = line.get(..64).unwrap_or(line);
    let says = |kind: &[u8]| start.windows(kind.len()).any(|part| part == kind);
    if !says(b"\"type\":\"decision\"") && !says(b"\"type\":\"observation\"") {
        match Head::of(line) {
            Ok(head) if matches!(head.r#type.as_ref(), "decision" | "observation") => {}
            Ok(_) => return Line::Other,
            Err(error) => return Line::Unreadable(error.to_string()),
        }
    }
    match Attempt::of(line) {
        Ok(attempt) => Line::Judged(Box::new(attempt)),
        Err(error) => Line::Unreadable(error.to_string()),
    }
}

fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
