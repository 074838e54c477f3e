//! The live negative self-test: a process that must be refused tries to connect. A hook that is attached and never fires
//! looks like one that works, until somebody tries.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use nix::unistd::{Uid, setresuid};
use serde::{Deserialize, Serialize};
use writ_abi::{ClauseList, DecisionEvent};
use writ_core::record::{Body, Decision, Lifecycle};
use writ_core::table::Identities;

use super::Engine;
use crate::kernel::CgroupMount;
use crate::process;

/// The uid that every generation refuses: no user has it (`nobody` of the 32-bit range less a few).
pub(crate) const UID: u32 = 4_294_967_281;
/// The account number it leads to. It has no slot, so the tables refuse it whatever policy says.
const ACCOUNT: u16 = 0xfffd;

/// What a self-test found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// When.
    pub at: Timestamp,
    /// Whether the kernel refused what it must refuse.
    pub passed: bool,
    /// What was tried and what came of it.
    pub detail: String,
}

/// Adds the identity that must be refused.
pub(crate) fn add_identity(identities: &mut Identities) {
    identities.users.insert(UID, (0, ClauseList::direct(ACCOUNT).0));
}

impl Engine {
    /// Records an event of the self-test as what it is; false if the event is somebody else's.
    pub(crate) fn took_self_test(&mut self, event: &DecisionEvent) -> bool {
        if event.account != ACCOUNT {
            return false;
        }
        let judged = Decision::from_event(event, writ_core::record::Context::default());
        let (Body::Decision(decision) | Body::Observation(decision)) = judged else { return false };
        let passed = event.errno != 0;
        let result =
            format!("{} by uid {UID}: {}", decision.action, decision.errno.as_deref().unwrap_or("let through"));
        self.note_lifecycle(Lifecycle::SelfTest { passed, results: vec![result], kernel: decision.kernel });
        true
    }

    /// Keeps the outcome for `status`.
    pub(crate) fn self_tested(&mut self, outcome: Outcome) {
        if !outcome.passed {
            tracing::error!(detail = outcome.detail, "the self-test FAILED: the kernel does not refuse what it must");
            self.note_lifecycle(Lifecycle::SelfTest {
                passed: false,
                results: vec![outcome.detail.clone()],
                kernel: None,
            });
            self.flush();
        }
        self.self_test = Some(outcome);
    }
}

/// Runs the self-test in a process of its own, inside the judged cgroup.
pub(crate) fn run(cgroup: &Path) -> Outcome {
    let at = Timestamp::now();
    let spawned = Command::new("/proc/self/exe")
        .arg("self-test-probe")
        .arg(cgroup)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output();
    match spawned {
        Err(error) => Outcome { at, passed: false, detail: format!("the probe could not be started: {error}") },
        Ok(output) => {
            let detail = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Outcome {
                at,
                passed: output.status.success(),
                detail: if detail.is_empty() { "the probe said nothing".into() } else { detail },
            }
        }
    }
}

/// Moves this process into the judged cgroup, unless it is somewhere below it already, as a service on a host that is
/// judged as a whole is: its unit may not even be allowed to write to cgroups.
fn enter(cgroup: &Path) -> std::io::Result<()> {
    let mount = CgroupMount::find(Some(&cgroup.display().to_string()))?;
    let inside = mount.relative(&mount.attached);
    let own = process::cgroup_of(std::process::id()).unwrap_or_default();
    if !own.is_empty() && Path::new(&own).starts_with(&inside) {
        return Ok(());
    }
    let mut procs = fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
    procs.write_all(std::process::id().to_string().as_bytes())
}

/// The probe: enters the cgroup, becomes the uid that must be refused, and tries. True if it was refused.
pub(crate) fn probe(cgroup: &Path) -> (bool, String) {
    if let Err(error) = enter(cgroup) {
        return (false, format!("the probe could not enter `{}`: {error}", cgroup.display()));
    }
    let uid = Uid::from_raw(UID);
    if let Err(error) = setresuid(uid, uid, uid) {
        return (false, format!("the probe could not become uid {UID}: {error}"));
    }
    let tried = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.connect(("127.0.0.1", 9)));
    match tried {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            (true, format!("a forbidden connect was refused: {error}"))
        }
        Err(error) => (false, format!("a forbidden connect failed, but not by refusal: {error}")),
        Ok(()) => (false, "A FORBIDDEN CONNECT SUCCEEDED: nothing is enforced here".into()),
    }
}
