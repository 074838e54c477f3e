//! When something ends next by time alone: known, brought forward by what is new, or to be looked up among all accounts.

use jiff::Timestamp;

/// What the engine's own thread waits for. It may be too early, never too late.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    /// The instant, if anything ends; `None` while it has to be looked up.
    next: Option<Option<Timestamp>>,
    /// Whether it is earlier than what is waited for.
    moved: bool,
}

impl Deadline {
    /// Anything may end at another time than before: it is looked up.
    pub(super) fn forget(&mut self) {
        self.next = None;
    }

    /// Something more ends then. What was to end next may not any more: whoever comes for it finds nothing, and looks up what
    /// is next.
    pub(super) fn bring_forward(&mut self, at: Timestamp) {
        if let Some(known) = &mut self.next
            && known.is_none_or(|known| at < known)
        {
            *known = Some(at);
            self.moved = true;
        }
    }

    /// The instant, or else what is found when looked up.
    pub(super) fn or_look_up(&mut self, look_up: impl FnOnce() -> Option<Timestamp>) -> Option<Timestamp> {
        self.moved = false;
        *self.next.get_or_insert_with(look_up)
    }

    /// Not before then, whatever has ended: it was tried, and failed.
    pub(super) fn put_off(&mut self, until: Option<Timestamp>) {
        self.next = Some(until);
    }

    /// Whether the engine's own thread would wait for something else than it does.
    pub(super) fn is_news(&self) -> bool {
        self.next.is_none() || self.moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn not_asked() -> Option<Timestamp> {
        panic!("it is known")
    }

    #[test]
    fn what_ends_sooner_is_news_and_waited_for_without_looking_it_up() {
        let mut deadline = Deadline::default();
        assert!(deadline.is_news());
        assert_eq!(deadline.or_look_up(|| Some(at(50))), Some(at(50)));
        assert!(!deadline.is_news());
        deadline.bring_forward(at(60));
        assert!(!deadline.is_news());
        deadline.bring_forward(at(40));
        assert!(deadline.is_news());
        assert_eq!(deadline.or_look_up(not_asked), Some(at(40)));
        assert!(!deadline.is_news());
    }

    #[test]
    fn the_first_thing_that_ends_is_news() {
        let mut deadline = Deadline::default();
        assert_eq!(deadline.or_look_up(|| None), None);
        deadline.bring_forward(at(60));
        assert!(deadline.is_news());
        assert_eq!(deadline.or_look_up(not_asked), Some(at(60)));
    }

    #[test]
    fn what_is_forgotten_is_looked_up_whatever_came_since() {
        let mut deadline = Deadline::default();
        deadline.or_look_up(|| Some(at(50)));
        deadline.forget();
        deadline.bring_forward(at(60));
        assert!(deadline.is_news());
        assert_eq!(deadline.or_look_up(|| Some(at(45))), Some(at(45)));
    }
}
