//! The sessions as the kernel lists them: one map, filled by the connect programs and emptied as sockets close.

use std::io;
use std::os::fd::AsFd;

use writ_abi::Session;

use super::bytes::Plain;
use super::object::Kernel;
use super::syscall::{delete_key, lookup_key, read_hash, replace_key, update_key};

impl Kernel {
    /// Every session.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn sessions(&self) -> io::Result<Vec<Session>> {
        let nothing = Plain(NO_SESSION);
        Ok(read_hash(self.sessions.fd().as_fd(), nothing)?.into_iter().map(|session| session.0).collect())
    }

    /// One session, if its socket is still open.
    pub(crate) fn session(&self, cookie: u64) -> Option<Session> {
        lookup_key(self.sessions.fd().as_fd(), cookie, Plain(NO_SESSION)).ok().map(|session| session.0)
    }

    /// Lists a session, or what is now known of it.
    ///
    /// # Errors
    /// The map is full.
    fn list_session(&self, session: &Session) -> io::Result<()> {
        update_key(self.sessions.fd().as_fd(), session.cookie, &Plain(*session))
    }

    /// Says on the list what is now known of a session. One that closed meanwhile is not listed anew.
    ///
    /// # Errors
    /// It is not on the list.
    pub(crate) fn relist_session(&self, session: &Session) -> io::Result<()> {
        replace_key(self.sessions.fd().as_fd(), session.cookie, &Plain(*session))
    }

    /// Lists a session that no connect put on the list. From here on the egress program judges the packets of its socket, and
    /// the list loses it as that closes, where the socket belongs to the judged cgroup.
    ///
    /// # Errors
    /// A map cannot be written, or is full.
    pub(crate) fn list_found_session(&mut self, session: &Session) -> io::Result<()> {
        self.look_for_found_sessions(true)?;
        self.list_session(session)
    }

    /// Whether the programs look for the sessions of sockets that no connect hook saw.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(crate) fn look_for_found_sessions(&mut self, look: bool) -> io::Result<()> {
        self.found.set(0, u64::from(look), 0).map_err(io::Error::other)
    }

    /// Takes a session from the list. What is kept with its socket stays, and its packets are judged all the same.
    pub(crate) fn unlist_session(&self, session: &Session) {
        // Its socket may have been let through to somewhere since, which is another session.
        if self.session(session.cookie).is_some_and(|listed| listed.opened == session.opened) {
            self.unlist_closed(session.cookie);
        }
    }

    /// The same for a socket that is closed, whose cookie is nobody's any more.
    pub(crate) fn unlist_closed(&self, cookie: u64) {
        // The kernel took it off meanwhile: as good.
        let _ = delete_key(self.sessions.fd().as_fd(), cookie);
    }
}

pub(crate) const NO_SESSION: Session = Session {
    opened: 0,
    held: 0,
    sequence: 0,
    cookie: 0,
    netns: 0,
    executable_inode: 0,
    address: writ_abi::Address::NONE,
    epochs: [0; 4],
    accounts: [writ_abi::SESSION_NOBODY; 4],
    generation: 0,
    executable_device: 0,
    cpu: 0,
    pid: 0,
    port: 0,
    account: writ_abi::SESSION_NOBODY,
    protocol: 0,
    state: 0,
    room: writ_abi::ROOM_NONE,
    moved: 0,
    source: writ_abi::Address::NONE,
    source_port: 0,
    reserved: [0; 3],
};
