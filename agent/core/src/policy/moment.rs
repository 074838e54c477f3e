//! Time as policies see it: `now`, `hour`, `minute`, `weekday`, and the instants at which a comparison of them changes.

use std::collections::BTreeSet;

use cedar_policy::pst::{Expr, Literal, UnaryOp};
use cedar_policy::{Context, Entities, EntityUid, EvalResult, Expression, Request};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::inputs::TimeAtoms;

/// What the context says about time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Moment {
    /// Milliseconds since the epoch.
    pub(crate) now: i64,
    pub(crate) hour: i8,
    pub(crate) minute: i8,
    /// 1 is Monday, 7 Sunday.
    pub(crate) weekday: i8,
}

impl Moment {
    pub(crate) fn at(now: Timestamp, zone: &TimeZone) -> Self {
        let local = zone.to_datetime(now);
        Self {
            now: now.as_millisecond(),
            hour: local.hour(),
            minute: local.minute(),
            weekday: local.date().weekday().to_monday_one_offset(),
        }
    }
}

/// The value of every atom at one moment: moments with the same class are the same to the policies.
pub(crate) type MomentClass = (usize, Vec<bool>, Vec<bool>, Vec<bool>);

impl TimeAtoms {
    /// The class of a moment.
    pub(crate) fn class(&self, moment: &Moment) -> MomentClass {
        (
            self.now.range(..=moment.now).count(),
            self.hours.iter().map(|mask| mask >> moment.hour & 1 == 1).collect(),
            self.minutes.iter().map(|mask| mask >> moment.minute & 1 == 1).collect(),
            self.weekdays.iter().map(|mask| mask >> moment.weekday & 1 == 1).collect(),
        )
    }

    /// The first instant after `now` at which the class may be another; `None` if it never is.
    pub(crate) fn next_boundary(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let literal = self.now.range(now.as_millisecond().saturating_add(1)..).next();
        let literal = literal.and_then(|instant| Timestamp::from_millisecond(*instant).ok());
        let calendar = self.next_calendar_boundary(now, zone);
        literal.into_iter().chain(calendar).min()
    }

    fn next_calendar_boundary(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.hours.is_empty() && self.minutes.is_empty() && self.weekdays.is_empty() {
            return None;
        }
        let hours = if self.minutes.is_empty() { changes(&self.hours, 24) } else { (0..24).collect() };
        let minutes = changes(&self.minutes, 60);
        let today = zone.to_datetime(now).date();
        let class = |instant| {
            let (_, hours, minutes, weekdays) = self.class(&Moment::at(instant, zone));
            (hours, minutes, weekdays)
        };
        let current = class(now);
        // A week holds every combination; the ninth day covers a clock that was set back meanwhile.
        for day in 0..9 {
            let Ok(date) = today.checked_add(day.days()) else { break };
            let mut candidates = BTreeSet::new();
            for hour in &hours {
                for minute in &minutes {
                    // A wall-clock time that a change of the clock skips or repeats stands for both instants.
                    let local = zone.to_ambiguous_timestamp(date.at(*hour, *minute, 0, 0));
                    candidates.extend(local.earlier());
                    candidates.extend(local.later());
                }
            }
            if let (Some(first), Some(last)) = (candidates.first().copied(), candidates.last().copied()) {
                candidates.extend(zone.following(first).map(|change| change.timestamp()).take_while(|at| *at <= last));
            }
            if let Some(found) = candidates.into_iter().find(|at| *at > now && class(*at) != current) {
                return Some(found);
            }
        }
        None
    }

    /// One moment for each class that can be met from `now` on, as if the calendar were free to be anything: `None` if
    /// there are more than `limit`. (That is a superset of what is met, and a fallback built on it is only stricter.)
    pub(crate) fn reachable(&self, now: &Moment, until: Option<i64>, limit: usize) -> Option<Vec<Moment>> {
        let hours = distinct(24, |hour| self.hours.iter().map(|mask| mask >> hour & 1 == 1).collect());
        let minutes = distinct(60, |minute| self.minutes.iter().map(|mask| mask >> minute & 1 == 1).collect());
        let days = distinct(7, |day| self.weekdays.iter().map(|mask| mask >> (day + 1) & 1 == 1).collect());
        let end = until.unwrap_or(i64::MAX);
        let nows =
            std::iter::once(now.now).chain(self.now.range(now.now.saturating_add(1)..).copied().filter(|at| *at < end));
        let nows: Vec<i64> = nows.collect();
        if nows.len() * hours.len() * minutes.len() * days.len() > limit {
            return None;
        }
        let mut moments = Vec::new();
        for now in nows {
            for hour in &hours {
                for minute in &minutes {
                    moments.extend(days.iter().map(|day| Moment {
                        now,
                        hour: *hour,
                        minute: *minute,
                        weekday: day + 1,
                    }));
                }
            }
        }
        Some(moments)
    }
}

/// The first value of each distinct signature.
fn distinct(count: i8, signature: impl Fn(i8) -> Vec<bool>) -> Vec<i8> {
    let mut seen = BTreeSet::new();
    (0..count).filter(|value| seen.insert(signature(*value))).collect()
}

/// The values at which some mask changes, 0 included.
fn changes<M: Copy + Into<u64>>(masks: &BTreeSet<M>, count: i8) -> Vec<i8> {
    let differs = |value: i8| {
        masks.iter().any(|mask| {
            let mask: u64 = (*mask).into();
            mask >> value & 1 != mask >> (value - 1) & 1
        })
    };
    (0..count).filter(|value| *value == 0 || differs(*value)).collect()
}

/// The milliseconds of a literal `datetime("…")`, by Cedar's own reading of it.
pub(crate) fn literal(expression: &Expr) -> Option<i64> {
    let Expr::UnaryOp { op: UnaryOp::Datetime, expr } = expression else { return None };
    let Expr::Literal(Literal::String(written)) = &**expr else { return None };
    let quoted = written.escape_debug();
    let difference: Expression =
        format!("datetime(\"{quoted}\").durationSince(datetime(\"1970-01-01\")).toMilliseconds()").parse().ok()?;
    let nobody: EntityUid = "Team::\"\"".parse().ok()?;
    let request = Request::new(nobody.clone(), nobody.clone(), nobody, Context::empty(), None).ok()?;
    match cedar_policy::eval_expression(&request, &Entities::empty(), &difference).ok()? {
        EvalResult::Long(milliseconds) => Some(milliseconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn working_hours_end_and_begin_where_the_literals_say() {
        let atoms = TimeAtoms { hours: [0x7f, 0x7_ffff].into(), ..TimeAtoms::default() };
        let next = |now| atoms.next_boundary(instant(now), &TimeZone::UTC).unwrap().to_string();
        assert_eq!(next("2026-11-23T06:59:59Z"), "2026-11-23T07:00:00Z");
        assert_eq!(next("2026-11-23T07:00:00Z"), "2026-11-23T19:00:00Z");
        assert_eq!(next("2026-11-23T19:00:00Z"), "2026-11-24T00:00:00Z");
    }

    #[test]
    fn a_weekday_window_reaches_over_the_weekend() {
        let atoms = TimeAtoms { weekdays: [0b0011_1110].into(), ..TimeAtoms::default() };
        let next = |now| atoms.next_boundary(instant(now), &TimeZone::UTC).unwrap().to_string();
        assert_eq!(next("2026-11-23T12:00:00Z"), "2026-11-28T00:00:00Z");
        assert_eq!(next("2026-11-28T00:00:00Z"), "2026-11-30T00:00:00Z");
    }

    #[test]
    fn the_earlier_of_calendar_and_literal_is_next() {
        let atoms = TimeAtoms {
            now: [instant("2026-11-23T08:30:00Z").as_millisecond()].into(),
            hours: [0x7f].into(),
            ..TimeAtoms::default()
        };
        let next = atoms.next_boundary(instant("2026-11-23T08:00:00Z"), &TimeZone::UTC).unwrap();
        assert_eq!(next.to_string(), "2026-11-23T08:30:00Z");
    }

    #[test]
    fn boundaries_follow_the_clock_of_the_zone_through_its_changes() {
        // Central Europe: one hour later by night in March, one hour earlier in October.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let atoms = TimeAtoms { hours: [0x7f, 0x3].into(), ..TimeAtoms::default() };
        let next = |now| atoms.next_boundary(instant(now), &zone).unwrap().to_string();
        assert_eq!(next("2026-11-23T05:59:59Z"), "2026-11-23T06:00:00Z", "seven o'clock in winter");
        assert_eq!(next("2026-07-01T04:00:00Z"), "2026-07-01T05:00:00Z", "seven o'clock in summer");
        assert_eq!(next("2026-03-29T00:30:00Z"), "2026-03-29T01:00:00Z", "two o'clock is skipped");
        assert_eq!(next("2026-10-24T23:30:00Z"), "2026-10-25T00:00:00Z", "two o'clock, the first time");
    }
}
