//! Who asks for a reload by a hangup: the kernel says so with the signal (sigaction(2)), and tokio does not pass it on.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The last sender: uid in the upper half, pid in the lower one. Two at once are one reload, by the later one.
static SENDER: AtomicU64 = AtomicU64::new(0);

/// The hangups that this process is sent.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// Takes hangups from here on.
    ///
    /// # Errors
    /// The signal cannot be taken.
    pub(crate) fn taken() -> io::Result<Self> {
        let note = |info: &libc::siginfo_t| {
            // SAFETY: `si_pid` and `si_uid` lie at one place in what every way of sending SIGHUP fills in: a process, or the
            // kernel for a terminal, which leaves zeroes.
            let (pid, uid) = unsafe { (info.si_pid(), info.si_uid()) };
            SENDER.store(u64::from(uid) << 32 | u64::from(pid.cast_unsigned()), Ordering::Relaxed);
        };
        // Before tokio's own action, which runs after this one: whoever is woken finds the sender.
        // SAFETY: the action stores one word, which is safe in a signal handler.
        unsafe { signal_hook_registry::register_sigaction(libc::SIGHUP, note)? };
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next one, and says who sent it: pid, 0 of the kernel itself, and uid.
    pub(crate) async fn next(&mut self) -> (u32, u32) {
        self.0.recv().await;
        let sender = SENDER.load(Ordering::Relaxed);
        (sender as u32, (sender >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hangup_says_who_sent_it() {
        let mut hangups = Hangups::taken().unwrap();
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGHUP).unwrap();
        assert_eq!(hangups.next().await, (std::process::id(), nix::unistd::getuid().as_raw()));
    }
}
