//! Ways for root to act under another uid than its own, each of which leaves some other view of the process as it was.

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;

/// Takes on an identity, then acts.
///
/// - `euid`: the effective uid alone; the real one stays root's.
/// - `thread`: every uid of one thread, by the raw system call; the rest of the process stays root's.
/// - `namespace`: that uid, in a user namespace of its own in which it is uid 0.
pub(crate) fn take(what: &str, uid: u32, act: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    match what {
        "euid" => {
            resuid(u32::MAX, uid, u32::MAX).context("cannot set the effective uid")?;
            act()
        }
        "thread" => {
            let thread = std::thread::spawn(move || {
                resuid(uid, uid, uid).context("cannot set a thread's uids")?;
                act()
            });
            match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("the thread panicked"),
            }
        }
        "namespace" => {
            resuid(uid, uid, uid).context("cannot set the uids")?;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).context("cannot make a user namespace")?;
            // A process that changed its uid owns its files in /proc only once it is dumpable again.
            nix::sys::prctl::set_dumpable(true).context("cannot make the process dumpable")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("cannot map the uid")?;
            act()
        }
        other => bail!("there is no identity `{other}`"),
    }
}

/// The raw call: the C library's would change every thread.
pub(crate) fn resuid(real: u32, effective: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: a system call on integers; no memory is touched.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) }).map(drop)
}
