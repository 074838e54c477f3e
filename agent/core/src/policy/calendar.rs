//! What an account's policies tell apart of time: the class of a moment, the instants at which it changes, the classes to come.
//!
//! Laid out when policies are compiled: a signal asks for all of it on its way to the kernel.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::inputs::TimeAtoms;
use super::moment::Moment;

/// Moments with the same class are the same to the policies: how many comparisons of `now` are past, and the classes of hour,
/// minute and weekday.
pub(crate) type MomentClass = (usize, u8, u8, u8);

/// The comparisons of time that policies make, by the values they are true for.
#[derive(Clone, Debug)]
pub(crate) struct Calendar {
    now: BTreeSet<i64>,
    hours: Cycle<24>,
    minutes: Cycle<60>,
    /// From Monday.
    weekdays: Cycle<7>,
}

/// One of the numbers that come around.
#[derive(Clone, Debug)]
struct Cycle<const VALUES: usize> {
    /// The class of each value: two have the same if every comparison is true for both or for neither.
    classes: [u8; VALUES],
    /// The first value of each class.
    firsts: Vec<i8>,
    /// The values that are in another class than the one before, 0 included.
    changes: Vec<i8>,
}

impl<const VALUES: usize> Cycle<VALUES> {
    /// Of masks with one bit for each value.
    fn new(masks: &BTreeSet<u64>) -> Self {
        let mut signatures: Vec<Vec<bool>> = Vec::new();
        let mut cycle = Self { classes: [0; VALUES], firsts: Vec::new(), changes: Vec::new() };
        let mut before = None;
        for (value, own) in (0i8..).zip(&mut cycle.classes) {
            let signature: Vec<bool> = masks.iter().map(|mask| mask >> value & 1 == 1).collect();
            let class = signatures.iter().position(|known| *known == signature).unwrap_or_else(|| {
                signatures.push(signature);
                cycle.firsts.push(value);
                signatures.len() - 1
            });
            *own = u8::try_from(class).unwrap_or(u8::MAX); // There are at most 60.
            if before != Some(class) {
                cycle.changes.push(value);
            }
            before = Some(class);
        }
        cycle
    }

    fn class(&self, value: i8) -> u8 {
        usize::try_from(value).ok().and_then(|value| self.classes.get(value)).copied().unwrap_or(u8::MAX)
    }

    /// Whether any two values are told apart.
    fn matters(&self) -> bool {
        self.firsts.len() > 1
    }
}

impl Calendar {
    pub(crate) fn new(atoms: &TimeAtoms) -> Self {
        Self {
            now: atoms.now.clone(),
            hours: Cycle::new(&atoms.hours.iter().map(|mask| u64::from(*mask)).collect()),
            minutes: Cycle::new(&atoms.minutes),
            // Bit 1 is Monday.
            weekdays: Cycle::new(&atoms.weekdays.iter().map(|mask| u64::from(mask >> 1)).collect()),
        }
    }

    /// The class of a moment.
    pub(crate) fn class(&self, moment: &Moment) -> MomentClass {
        (
            self.now.range(..=moment.now).count(),
            self.hours.class(moment.hour),
            self.minutes.class(moment.minute),
            self.weekdays.class(moment.weekday - 1),
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
        if !(self.hours.matters() || self.minutes.matters() || self.weekdays.matters()) {
            return None;
        }
        let every: Vec<i8>;
        let hours = if self.minutes.matters() {
            every = (0..24).collect();
            &every
        } else {
            &self.hours.changes
        };
        let class = |instant| {
            let (_, hour, minute, weekday) = self.class(&Moment::at(instant, zone));
            (hour, minute, weekday)
        };
        let (today, current) = (zone.to_datetime(now).date(), class(now));
        let mut candidates = Vec::new();
        // A week holds every combination; the ninth day covers a clock that was set back meanwhile.
        for day in 0..9 {
            let Ok(date) = today.checked_add(day.days()) else { break };
            candidates.clear();
            for hour in hours {
                for minute in &self.minutes.changes {
                    // A wall-clock time that a change of the clock skips or repeats stands for both instants.
                    let local = zone.to_ambiguous_timestamp(date.at(*hour, *minute, 0, 0));
                    candidates.extend(local.earlier());
                    candidates.extend(local.later());
                }
            }
            if let (Some(first), Some(last)) = (candidates.iter().min().copied(), candidates.iter().max().copied()) {
                candidates.extend(zone.following(first).map(|change| change.timestamp()).take_while(|at| *at <= last));
            }
            candidates.sort_unstable();
            if let Some(found) = candidates.iter().find(|at| **at > now && class(**at) != current) {
                return Some(*found);
            }
        }
        None
    }

    /// One moment for each class that can be met from `now` on, as if the calendar were free to be anything: `None` if
    /// there are more than `limit`. (That is a superset of what is met, and a fallback built on it is only stricter.)
    pub(crate) fn reachable(&self, now: &Moment, until: Option<i64>, limit: usize) -> Option<Vec<Moment>> {
        let (hours, minutes, days) = (&self.hours.firsts, &self.minutes.firsts, &self.weekdays.firsts);
        let end = until.unwrap_or(i64::MAX);
        let later = self.now.range(now.now.saturating_add(1)..).copied().filter(|at| *at < end);
        let nows: Vec<i64> = std::iter::once(now.now).chain(later).collect();
        if nows.len() * hours.len() * minutes.len() * days.len() > limit {
            return None;
        }
        let mut moments = Vec::new();
        for now in nows {
            for hour in hours {
                for minute in minutes {
                    let of_day = |day: &i8| Moment { now, hour: *hour, minute: *minute, weekday: day + 1 };
                    moments.extend(days.iter().map(of_day));
                }
            }
        }
        Some(moments)
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
        let calendar = Calendar::new(&TimeAtoms { hours: [0x7f, 0x7_ffff].into(), ..TimeAtoms::default() });
        let next = |now| calendar.next_boundary(instant(now), &TimeZone::UTC).unwrap().to_string();
        assert_eq!(next("2026-11-23T06:59:59Z"), "2026-11-23T07:00:00Z");
        assert_eq!(next("2026-11-23T07:00:00Z"), "2026-11-23T19:00:00Z");
        assert_eq!(next("2026-11-23T19:00:00Z"), "2026-11-24T00:00:00Z");
    }

    #[test]
    fn a_weekday_window_reaches_over_the_weekend() {
        let calendar = Calendar::new(&TimeAtoms { weekdays: [0b0011_1110].into(), ..TimeAtoms::default() });
        let next = |now| calendar.next_boundary(instant(now), &TimeZone::UTC).unwrap().to_string();
        assert_eq!(next("2026-11-23T12:00:00Z"), "2026-11-28T00:00:00Z");
        assert_eq!(next("2026-11-28T00:00:00Z"), "2026-11-30T00:00:00Z");
    }

    #[test]
    fn the_earlier_of_calendar_and_literal_is_next() {
        let calendar = Calendar::new(&TimeAtoms {
            now: [instant("2026-11-23T08:30:00Z").as_millisecond()].into(),
            hours: [0x7f].into(),
            ..TimeAtoms::default()
        });
        let next = calendar.next_boundary(instant("2026-11-23T08:00:00Z"), &TimeZone::UTC).unwrap();
        assert_eq!(next.to_string(), "2026-11-23T08:30:00Z");
    }

    #[test]
    fn boundaries_follow_the_clock_of_the_zone_through_its_changes() {
        // Central Europe: one hour later by night in March, one hour earlier in October.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let calendar = Calendar::new(&TimeAtoms { hours: [0x7f, 0x3].into(), ..TimeAtoms::default() });
        let next = |now| calendar.next_boundary(instant(now), &zone).unwrap().to_string();
        assert_eq!(next("2026-11-23T05:59:59Z"), "2026-11-23T06:00:00Z", "seven o'clock in winter");
        assert_eq!(next("2026-07-01T04:00:00Z"), "2026-07-01T05:00:00Z", "seven o'clock in summer");
        assert_eq!(next("2026-03-29T00:30:00Z"), "2026-03-29T01:00:00Z", "two o'clock is skipped");
        assert_eq!(next("2026-10-24T23:30:00Z"), "2026-10-25T00:00:00Z", "two o'clock, the first time");
    }

    #[test]
    fn moments_are_classed_as_their_comparisons_say_and_each_class_is_met_once() {
        let atoms = TimeAtoms {
            now: [1_000, 2_000].into(),
            // Before seven and from nineteen on; before seven alone; minutes from thirty on; Saturday and Sunday.
            hours: [0xf8_007f, 0x7f].into(),
            minutes: [0x0fff_ffff_c000_0000].into(),
            weekdays: [0b1100_0000].into(),
        };
        let calendar = Calendar::new(&atoms);
        let signature = |moment: &Moment| {
            let bit = |mask: u64, value: i8| mask >> value & 1 == 1;
            let hours = atoms.hours.iter().map(|mask| bit((*mask).into(), moment.hour));
            let minutes = atoms.minutes.iter().map(|mask| bit(*mask, moment.minute));
            let weekdays = atoms.weekdays.iter().map(|mask| bit((*mask).into(), moment.weekday));
            let past = atoms.now.iter().filter(|at| **at <= moment.now).count();
            (past, hours.chain(minutes).chain(weekdays).collect::<Vec<bool>>())
        };
        let mut known = std::collections::BTreeMap::new();
        for now in [0, 1_500, 2_000] {
            for (hour, minute, weekday) in
                (0..24).flat_map(|hour| (0..60).flat_map(move |minute| (1..=7).map(move |day| (hour, minute, day))))
            {
                let moment = Moment { now, hour, minute, weekday };
                let class = calendar.class(&moment);
                assert_eq!(*known.entry(signature(&moment)).or_insert(class), class);
            }
        }
        let classes: BTreeSet<_> = known.values().collect();
        assert_eq!((known.len(), classes.len()), (36, 36), "what is told apart is told apart by its class");
        let start = Moment { now: 0, hour: 12, minute: 0, weekday: 1 };
        let met = calendar.reachable(&start, None, 64).unwrap();
        let met_classes: BTreeSet<_> = met.iter().map(|moment| calendar.class(moment)).collect();
        assert_eq!((met.len(), met_classes.len()), (36, 36));
        assert_eq!(calendar.reachable(&start, Some(2_000), 64).unwrap().len(), 24, "up to then");
        assert_eq!(calendar.reachable(&start, None, 35), None);
    }
}
