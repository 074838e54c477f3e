//! A unit that is started again and again, and acts with its first breath.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{SockType, SockaddrStorage, connect};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};

use super::identity::resuid;
use super::open;

/// Exit codes of the process inside: one bit for each thing that must not be.
const REACHED: i32 = 1;
const REFUSED: i32 = 2;
const BROKEN: i32 = 4;

/// Starts it so many times; how often what is forbidden was reached, and what is permitted refused.
pub(crate) fn restarts(count: u32, uid: u32, cgroup: &str, [forbidden, permitted]: [SocketAddr; 2]) -> Result<Value> {
    let (mut reached, mut refused) = (0, 0);
    for _ in 0..count {
        fs::create_dir(cgroup).with_context(|| format!("cannot make `{cgroup}`"))?;
        let mut procs = fs::File::options().write(true).open(format!("{cgroup}/cgroup.procs"))?;
        // SAFETY: this program has one thread here, so the child may do anything.
        let child = match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                if procs.write_all(b"0").is_err() || resuid(uid, uid, uid).is_err() {
                    std::process::exit(BROKEN);
                }
                let tried = |to| {
                    let socket = open(to, SockType::Datagram)?;
                    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
                };
                let mut code = 0;
                if tried(forbidden) != Err(Errno::EACCES) {
                    code |= REACHED;
                }
                if tried(permitted).is_err() {
                    code |= REFUSED;
                }
                std::process::exit(code)
            }
        };
        match waitpid(child, None).context("cannot wait")? {
            WaitStatus::Exited(_, code) if code & BROKEN == 0 => {
                reached += u32::from(code & REACHED != 0);
                refused += u32::from(code & REFUSED != 0);
            }
            other => bail!("the process inside ended with {other:?}"),
        }
        fs::remove_dir(cgroup).with_context(|| format!("cannot remove `{cgroup}`"))?;
    }
    Ok(json!({ "reached": reached, "refused": refused }))
}
