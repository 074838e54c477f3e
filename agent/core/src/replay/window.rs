//! The time windows of a moment: what the policies that looked at the time tell apart, and where the moment was in it.

use jiff::Timestamp;

use super::archive::Archived;
use super::attempt::Attempt;
use crate::policy::{Moment, TimeAtoms};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// What one policy asks of the time, and what it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// The policy.
    pub policy: String,
    /// The span that the moment was in, as the policy's comparisons cut the day, the week or all time: `hours 8–17`.
    pub within: String,
    /// All spans that it tells apart.
    pub of: Vec<String>,
}

impl Archived {
    /// The windows that an attempt was judged by: those of its determining policies, or, where these do not look at the
    /// time, of every policy that can match the account and does. Empty: nothing depended on the time.
    pub fn windows(&self, attempt: &Attempt<'_>) -> Vec<Window> {
        let Some(moment) = attempt.moment() else { return Vec::new() };
        let all = self.timed(&attempt.account);
        let would = attempt.would.iter().flat_map(|would| &would.policies);
        let deciding: Vec<&str> = attempt.policies.iter().chain(would).map(|policy| policy.id.as_ref()).collect();
        let decides = all.iter().any(|(id, _)| deciding.contains(&id.as_str()));
        let chosen = all.iter().filter(|(id, _)| !decides || deciding.contains(&id.as_str()));
        chosen.flat_map(|(id, atoms)| of_policy(id, atoms, &moment)).collect()
    }
}

impl Attempt<'_> {
    /// The time as policies saw it, in words: `Thursday, 14:03, 2026-11-26T14:03:12.345Z`.
    pub fn time_in_words(&self) -> Option<String> {
        let moment = self.moment()?;
        let day = DAYS.get(usize::try_from(moment.weekday - 1).ok()?)?;
        Some(format!("{day}, {:02}:{:02}, {}", moment.hour, moment.minute, instant(moment.now)))
    }
}

fn of_policy(policy: &str, atoms: &TimeAtoms, moment: &Moment) -> Vec<Window> {
    let bit = |mask: u64, value: i8| mask >> value & 1 == 1;
    let mut found = Vec::new();
    let mut add = |place: Option<usize>, of: Vec<String>| {
        if let Some(within) = place.and_then(|place| of.get(place)).filter(|_| of.len() > 1) {
            found.push(Window { policy: policy.to_owned(), within: within.clone(), of });
        }
    };
    let hours: Vec<u64> = atoms.hours.iter().map(|mask| u64::from(*mask)).collect();
    let minutes: Vec<u64> = atoms.minutes.iter().copied().collect();
    let weekdays: Vec<u64> = atoms.weekdays.iter().map(|mask| u64::from(*mask)).collect();
    let number = |value: i8| value.to_string();
    let day = |value: i8| DAYS.get(usize::try_from(value - 1).unwrap_or(7)).map_or("?", |name| name).to_owned();
    let mut calendar =
        |masks: &[u64], values: std::ops::RangeInclusive<i8>, at: i8, what: &str, name: &dyn Fn(i8) -> String| {
            if masks.is_empty() {
                return;
            }
            let class = |value: i8| -> Vec<bool> { masks.iter().map(|mask| bit(*mask, value)).collect() };
            let mut spans: Vec<(i8, i8)> = Vec::new();
            for value in values {
                match spans.last_mut().filter(|(first, _)| class(*first) == class(value)) {
                    Some((_, last)) => *last = value,
                    None => spans.push((value, value)),
                }
            }
            let place = spans.iter().position(|(first, last)| (*first..=*last).contains(&at));
            let written = spans.iter().map(|(first, last)| match (first == last, what) {
                (true, "") => name(*first),
                (true, what) => format!("{what} {}", name(*first)),
                (false, "") => format!("{}–{}", name(*first), name(*last)),
                (false, what) => format!("{what}s {}–{}", name(*first), name(*last)),
            });
            add(place, written.collect());
        };
    calendar(&weekdays, 1..=7, moment.weekday, "", &day);
    calendar(&hours, 0..=23, moment.hour, "hour", &number);
    calendar(&minutes, 0..=59, moment.minute, "minute", &number);
    if !atoms.now.is_empty() {
        let ends: Vec<i64> = atoms.now.iter().copied().collect();
        let mut written = Vec::new();
        for place in 0..=ends.len() {
            let from = place.checked_sub(1).and_then(|before| ends.get(before));
            written.push(match (from, ends.get(place)) {
                (None, Some(until)) => format!("before {}", instant(*until)),
                (Some(from), Some(until)) => format!("from {} until {}", instant(*from), instant(*until)),
                (Some(from), None) => format!("from {} on", instant(*from)),
                (None, None) => "always".to_owned(),
            });
        }
        add(Some(atoms.now.range(..=moment.now).count()), written);
    }
    found
}

fn instant(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spans_a_policy_tells_apart_and_the_one_it_was() {
        // `hour >= 8 && hour < 18`, `weekday <= 5`, until the end of 2026.
        let atoms = TimeAtoms {
            hours: [0xff_ff00, 0x3_ffff].into(),
            weekdays: [0b0011_1110].into(),
            now: ["2027-01-01T00:00:00Z".parse::<Timestamp>().unwrap().as_millisecond()].into(),
            ..TimeAtoms::default()
        };
        let now = "2026-11-26T19:30:00Z".parse::<Timestamp>().unwrap();
        let moment = Moment { now: now.as_millisecond(), hour: 19, minute: 30, weekday: 4 };
        let told: Vec<String> = of_policy("p", &atoms, &moment)
            .into_iter()
            .map(|window| format!("{}: {} of {}", window.policy, window.within, window.of.join(", ")))
            .collect();
        assert_eq!(
            told,
            [
                "p: Monday–Friday of Monday–Friday, Saturday–Sunday",
                "p: hours 18–23 of hours 0–7, hours 8–17, hours 18–23",
                "p: before 2027-01-01T00:00:00Z of before 2027-01-01T00:00:00Z, from 2027-01-01T00:00:00Z on",
            ]
        );
        assert_eq!(of_policy("p", &TimeAtoms::default(), &moment), []);
    }
}
