//! Finding records in a log: one by its id, many by a filter.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use writ_core::record::{Head, Time, time_of_id};

use super::lookup::Lookup;
use super::output;
use crate::log::{Follow, Layout, SegmentLines};

/// How much later than its time a record may be written: what waited in the ring while no daemon ran.
const SLACK: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Which records are wanted; what is absent matches everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) account: Option<String>,
    pub(super) verdict: Option<String>,
    pub(super) kind: Option<String>,
    /// As records write it, so that text can be compared.
    pub(super) since: Option<String>,
}

impl Filter {
    /// Whether a line is wanted. What cannot be read is wanted where nothing is asked of it: it must not be hidden.
    pub(super) fn matches(&self, line: &[u8]) -> bool {
        if self.account.is_none() && self.verdict.is_none() && self.kind.is_none() && self.since.is_none() {
            return true;
        }
        let Ok(head) = Head::of(line) else { return false };
        let wanted =
            |asked: &Option<String>, found: Option<&str>| asked.as_deref().is_none_or(|text| found == Some(text));
        wanted(&self.account, head.account.as_deref())
            && wanted(&self.verdict, head.verdict.as_deref())
            && wanted(&self.kind, Some(&head.r#type))
            && self.since.as_deref().is_none_or(|since| head.time.as_ref() >= since)
    }
}

/// `--since`: a duration before now (`15m`, `2h`, `7d`), a date, or an RFC 3339 time.
pub(super) fn since(text: &str) -> anyhow::Result<String> {
    let timestamp = if let Ok(timestamp) = text.parse::<Timestamp>() {
        timestamp
    } else if let Ok(midnight) = format!("{text}T00:00:00Z").parse::<Timestamp>() {
        midnight
    } else {
        let span = text.parse::<jiff::Span>().map_err(|_| {
            output::usage(format!(
                "`{text}` is neither a time (`2026-01-31T08:00:00Z`, `2026-01-31`) nor a duration (`15m`, `7d`)"
            ))
        })?;
        // A day is 24 hours, whatever clocks were put forward or back meanwhile.
        let then = Timestamp::now().to_zoned_datetime(TimeZone::UTC).checked_sub(span.abs());
        then.map_err(|_| output::usage(format!("`{text}` is longer ago than dates go back: no record is that old")))?
            .timestamp()
    };
    Ok(Time(timestamp).to_string())
}

/// A record found by its id.
pub(super) struct Found {
    pub(super) index: u64,
    pub(super) line: Vec<u8>,
}

/// The record with this id. The tree's entry bundles know where it is; where they do not, the segments are read, those
/// first that were written around its time.
pub(super) fn by_id(log: &Path, id: &str) -> anyhow::Result<Option<Found>> {
    if let Some((index, line)) = Lookup::open(log)?.by_id(id) {
        return Ok(Some(Found { index, line }));
    }
    let layout = Layout::new(log);
    let segments = layout.segments()?;
    let mut order: Vec<usize> = (0..segments.len()).collect();
    if let Some(time) = time_of_id(id) {
        let time = Time(time).to_string();
        let first_times: Vec<Option<String>> = segments.iter().map(|(_, path)| first_time(path)).collect();
        // The last segment that begins before the id's time; its neighbours next.
        let near =
            first_times.iter().rposition(|begin| begin.as_ref().is_some_and(|begin| *begin <= time)).unwrap_or(0);
        order.sort_by_key(|place| place.abs_diff(near));
    }
    let needle = format!("\"id\":\"{id}\"");
    for place in order {
        let Some((first, path)) = segments.get(place) else { continue };
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for (number, line) in (0u64..).zip(content.split(|byte| *byte == b'\n')) {
            // The id comes first in each line; parsing every line would take a hundred times longer.
            let head = line.get(..needle.len() + 1).unwrap_or_default();
            if head.ends_with(needle.as_bytes()) && Head::of(line).is_ok_and(|head| head.id == id) {
                return Ok(Some(Found { index: first + number, line: line.to_vec() }));
            }
        }
    }
    Ok(None)
}

fn first_time(segment: &Path) -> Option<String> {
    let mut lines = SegmentLines::open(segment).ok()?;
    let line = lines.next_line().ok()??;
    Head::of(line).ok().map(|head| head.time.into_owned())
}

/// A line with its index.
type Line = (u64, Vec<u8>);

/// The last records that match with their indices, oldest first, and the index to go on from.
pub(super) fn last(log: &Path, filter: &Filter, count: usize) -> anyhow::Result<(Vec<Line>, u64)> {
    let segments = Layout::new(log).segments()?;
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut next = None;
    for (first, path) in segments.iter().rev() {
        let mut lines = SegmentLines::open(path)?;
        let mut index = *first;
        let mut here = Vec::new();
        while let Ok(Some(line)) = lines.next_line() {
            if filter.matches(line) {
                here.push((index, line.to_vec()));
            }
            index += 1;
        }
        next = next.or(Some(index));
        let surplus = (here.len() + found.len()).saturating_sub(count).min(here.len());
        here.drain(..surplus);
        here.append(&mut found);
        found = here;
        if found.len() >= count {
            break;
        }
    }
    Ok((found, next.unwrap_or(0)))
}

/// Index of a record before which none is as late as this time, as far as the segments' beginnings tell.
pub(super) fn begin(log: &Path, since: &str) -> anyhow::Result<u64> {
    // Records are written in the order in which they reach the daemon, which after a restart is a little behind the clock.
    let Ok(since) = since.parse::<Timestamp>().and_then(|at| at.checked_sub(SLACK)) else { return Ok(0) };
    let since = Time(since).to_string();
    let segments = Layout::new(log).segments()?;
    let begins: Vec<Option<String>> = segments.iter().map(|(_, path)| first_time(path)).collect();
    // A clock that was set back leaves them out of order: then everything is looked at.
    if !begins.iter().flatten().is_sorted() {
        return Ok(0);
    }
    let before = segments.iter().zip(&begins).rev().find(|(_, begins)| begins.as_ref().is_some_and(|at| *at < since));
    Ok(before.map_or(0, |((first, _), _)| *first))
}

/// Every line from the oldest.
pub(super) fn each(log: &Path, mut take: impl FnMut(u64, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut follow = Follow::from_start(log);
    while let Some((index, line)) = follow.next_line()? {
        take(index, &line)?;
    }
    Ok(())
}
