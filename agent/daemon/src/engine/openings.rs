//! What is known of open sessions without reading the kernel's whole list: which decision let each through, and which sockets an
//! account had sessions on.
//!
//! The list is walked bucket by bucket, half a millisecond in which a kernel that is not preempted lets nothing else run on that
//! processor: too long beside a signal. So the first look after a change asks for the sockets that are known here, and the one that follows the grace
//! period, which must miss none, reads the list.

use std::collections::{HashMap, HashSet};
use std::io;

use writ_abi::{SESSION_NOBODY, Session};

use super::Engine;
use super::sessions::Cause;

/// How many decisions are remembered before those whose session has ended are forgotten.
const REMEMBERED: usize = 16_384;
/// How many sockets are asked for one by one; more are as quickly read from the list.
const MOST_ASKED: usize = 256;

/// Sessions by socket cookie, as decisions, looks at the list and finds made them known. Some have closed since.
#[derive(Debug)]
pub(crate) struct Openings {
    /// When, in boot-time nanoseconds, and the record's id.
    decisions: HashMap<u64, (u64, String)>,
    /// When those that have ended are next forgotten.
    most: usize,
    /// By account; `None` until the list was read.
    sockets: Option<HashMap<u16, HashSet<u64>>>,
}

impl Default for Openings {
    fn default() -> Self {
        Self { decisions: HashMap::new(), most: REMEMBERED, sockets: None }
    }
}

impl Openings {
    /// Decisions that an earlier daemon recorded: socket cookie, when, id.
    pub(super) fn recall(&mut self, opened: impl IntoIterator<Item = (u64, u64, String)>) {
        self.decisions.extend(opened.into_iter().map(|(cookie, opened, id)| (cookie, (opened, id))));
    }

    /// Id of the decision that let a session through, if it is known.
    pub(super) fn decision_of(&self, session: &Session) -> Option<&str> {
        let known = self.decisions.get(&session.cookie).filter(|(opened, _)| *opened == session.opened);
        known.map(|(_, id)| id.as_str())
    }

    fn remember(&mut self, cookie: u64, opened: u64, accounts: impl IntoIterator<Item = u16>, decision: &str) {
        self.decisions.insert(cookie, (opened, decision.to_owned()));
        if let Some(sockets) = &mut self.sockets {
            note(sockets, cookie, accounts);
        }
    }

    /// Takes up the list as it is: whatever is not on it has ended.
    fn renew(&mut self, sessions: &[Session]) {
        let sockets = self.sockets.insert(HashMap::new());
        for session in sessions {
            note(sockets, session.cookie, session.accounts);
        }
    }

    /// Forgets the decisions of what has ended.
    fn forget(&mut self, sessions: &[Session]) {
        let live: HashSet<u64> = sessions.iter().map(|session| session.cookie).collect();
        self.decisions.retain(|cookie, _| live.contains(cookie));
        self.most = (self.decisions.len() * 2).max(REMEMBERED);
    }

    /// The sockets on which these accounts may have sessions; `None` if there are too many, or the list was never read.
    fn sockets_of(&self, accounts: impl IntoIterator<Item = u16>) -> Option<HashSet<u64>> {
        let sockets = self.sockets.as_ref()?;
        let of_them: Vec<_> = accounts.into_iter().filter_map(|account| sockets.get(&account)).collect();
        let few = of_them.iter().map(|sockets| sockets.len()).sum::<usize>() <= MOST_ASKED;
        few.then(|| of_them.into_iter().flatten().copied().collect())
    }
}

fn note(sockets: &mut HashMap<u16, HashSet<u64>>, cookie: u64, accounts: impl IntoIterator<Item = u16>) {
    for account in accounts.into_iter().filter(|account| *account != SESSION_NOBODY) {
        sockets.entry(account).or_default().insert(cookie);
    }
}

impl Engine {
    /// Remembers which decision let a connect of these accounts through.
    pub(super) fn remember_opened(
        &mut self,
        cookie: u64,
        opened: u64,
        accounts: impl IntoIterator<Item = u16>,
        decision: &str,
    ) {
        if self.openings.decisions.len() >= self.openings.most {
            match self.kernel.sessions() {
                Ok(sessions) => {
                    self.openings.forget(&sessions);
                    self.openings.renew(&sessions);
                }
                Err(error) => {
                    tracing::error!(%error, "live sessions could not be listed; which decisions opened them is forgotten");
                    self.openings = Openings::default();
                }
            }
        }
        self.openings.remember(cookie, opened, accounts, decision);
    }

    /// The sessions that are judged for a cause: at the `last` look every one there is, before that those that are known here.
    ///
    /// # Errors
    /// The list cannot be read.
    pub(super) fn sessions_for(&mut self, cause: &Cause, last: bool) -> io::Result<Vec<Session>> {
        let known = cause.accounts().filter(|_| !last).and_then(|accounts| self.openings.sockets_of(accounts));
        if let Some(sockets) = known {
            return Ok(sockets.into_iter().filter_map(|cookie| self.kernel.session(cookie)).collect());
        }
        let sessions = self.kernel.sessions()?;
        self.openings.renew(&sessions);
        Ok(sessions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::NO_SESSION;

    fn session(cookie: u64, accounts: &[u16]) -> Session {
        let mut session = Session { cookie, opened: cookie * 10, ..NO_SESSION };
        session.accounts = [SESSION_NOBODY; 4];
        for (place, account) in session.accounts.iter_mut().zip(accounts) {
            *place = *account;
        }
        session
    }

    fn sockets(openings: &Openings, accounts: &[u16]) -> Option<Vec<u64>> {
        let mut sockets: Vec<u64> = openings.sockets_of(accounts.iter().copied())?.into_iter().collect();
        sockets.sort_unstable();
        Some(sockets)
    }

    #[test]
    fn until_the_list_was_read_nothing_is_known_of_an_accounts_sockets() {
        let mut openings = Openings::default();
        openings.remember(1, 10, [3], "a");
        assert_eq!(sockets(&openings, &[3]), None, "there may be others");
        openings.renew(&[]);
        assert_eq!(sockets(&openings, &[3]), Some(Vec::new()), "it has ended");
    }

    #[test]
    fn an_accounts_sockets_are_those_on_the_list_and_those_let_through_since() {
        let mut openings = Openings::default();
        openings.renew(&[session(1, &[3]), session(2, &[4, 3]), session(5, &[4])]);
        openings.remember(6, 60, [3, SESSION_NOBODY], "f");
        assert_eq!(sockets(&openings, &[3]), Some(vec![1, 2, 6]));
        assert_eq!(sockets(&openings, &[3, 4]), Some(vec![1, 2, 5, 6]));
        assert_eq!(sockets(&openings, &[SESSION_NOBODY]), Some(Vec::new()));
        openings.renew(&[session(6, &[3])]);
        assert_eq!(sockets(&openings, &[3, 4]), Some(vec![6]));
    }

    #[test]
    fn many_sockets_are_read_from_the_list_instead() {
        let mut openings = Openings::default();
        openings.renew(&[]);
        for cookie in 0..MOST_ASKED as u64 {
            openings.remember(cookie, 1, [3], "a");
        }
        assert_eq!(sockets(&openings, &[3]).map(|sockets| sockets.len()), Some(MOST_ASKED));
        openings.remember(MOST_ASKED as u64, 1, [4], "a");
        assert!(sockets(&openings, &[3]).is_some() && sockets(&openings, &[3, 4]).is_none());
    }

    #[test]
    fn a_session_is_opened_by_the_decision_of_its_own_moment_until_it_has_ended() {
        let mut openings = Openings::default();
        openings.recall([(1, 10, "a".to_owned())]);
        openings.remember(2, 20, [3], "b");
        assert_eq!(openings.decision_of(&session(1, &[3])), Some("a"));
        assert_eq!(openings.decision_of(&Session { opened: 11, ..session(1, &[3]) }), None, "another connect");
        openings.forget(&[session(2, &[3])]);
        assert_eq!(
            (openings.decision_of(&session(1, &[3])), openings.decision_of(&session(2, &[3]))),
            (None, Some("b"))
        );
    }
}
