//! Runs the demo as a process of its own and outlives it, so that Ctrl-C ends the story and not the clearing up.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// Holds back the signals that would end this program. Programs started meanwhile inherit that, so it is drawn after the
/// demo has been started.
pub(super) struct Curtain {
    held: SigSet,
    signals: SignalFd,
}

impl Curtain {
    pub(super) fn draw() -> Result<Self> {
        let mut held = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
            held.add(signal);
        }
        held.thread_block().context("cannot hold back signals")?;
        let signals = SignalFd::with_flags(&held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        Ok(Self { held, signals: signals.context("cannot watch for signals")? })
    }

    /// Waits for the demo. A signal for us is passed on; the signal, if there was one, is for [`Self::lift`].
    pub(super) fn wait(&self, demo: &mut Child) -> Result<(bool, Option<Signal>)> {
        let mut received = None;
        loop {
            if let Some(status) = demo.try_wait().context("cannot wait for the demo")? {
                return Ok((status.success(), received));
            }
            if let Some(info) = self.signals.read_signal().context("cannot watch for signals")? {
                let number = i32::try_from(info.ssi_signo).context("a signal's number is small")?;
                let signal = Signal::try_from(number).context("an unknown signal")?;
                received = Some(signal);
                let pid = i32::try_from(demo.id()).context("a process's number is small")?;
                // On a terminal it got the signal too, and may be gone.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets signals through again, and acts on the one that came.
    pub(super) fn lift(self, received: Option<Signal>) -> Result<()> {
        self.held.thread_unblock().context("cannot let signals through")?;
        if let Some(signal) = received {
            raise(signal).context("cannot act on a signal")?;
            bail!("interrupted by {signal}");
        }
        Ok(())
    }
}
