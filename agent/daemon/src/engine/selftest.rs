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

/// The unit that makes the test where the daemon itself is not allowed to.
const UNIT: &str = "writ-self-test.service";
/// There if systemd runs this host (`sd_booted(3)`).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// The probe's exit code where it may not become [`UID`].
const CANNOT_CHANGE_USER: u8 = 77;

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
        self.degraded_by("self-test-failed", !outcome.passed);
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
    let (passed, detail) = match spawned {
        Err(error) => (false, format!("the probe could not be started: {error}")),
        Ok(output)
            if output.status.code() == Some(i32::from(CANNOT_CHANGE_USER)) && Path::new(SYSTEMD_RUNS).exists() =>
        {
            by_unit()
        }
        Ok(output) => (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned()),
    };
    Outcome { at, passed, detail: if detail.is_empty() { "the probe said nothing".into() } else { detail } }
}

/// Runs the probe as a unit of its own: the daemon's unit may neither change its user nor open an IP socket.
fn by_unit() -> (bool, String) {
    let started = Command::new("systemctl").args(["start", UNIT]).stdin(Stdio::null()).output();
    match started {
        Err(error) => (false, format!("`systemctl start {UNIT}` could not be run: {error}")),
        Ok(output) if output.status.success() => (true, format!("a forbidden connect was refused ({UNIT})")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default();
            (false, format!("{UNIT} failed; `journalctl -u {UNIT}` says what it met: {said}"))
        }
    }
}

/// Moves this process into the judged cgroup, unless it is somewhere below it already, as a service on a host that is
/// judged as a whole is: its unit may not even be allowed to write to cgroups.
fn enter(cgroup: Option<&str>) -> std::io::Result<()> {
    let mount = CgroupMount::find(cgroup)?;
    let inside = mount.relative(&mount.attached);
    let own = process::cgroup_of(std::process::id()).unwrap_or_default();
    if !own.is_empty() && Path::new(&own).starts_with(&inside) {
        return Ok(());
    }
    let mut procs = fs::OpenOptions::new().write(true).open(mount.attached.join("cgroup.procs"))?;
    procs.write_all(std::process::id().to_string().as_bytes())
}

/// What the probe met.
pub(crate) struct Probed {
    /// Its exit code: 0 if the connect was refused.
    pub code: u8,
    /// What was tried and what came of it.
    pub detail: String,
}

/// The probe: enters the cgroup, becomes the uid that must be refused, and tries.
pub(crate) fn probe(cgroup: Option<&str>) -> Probed {
    let failed = |detail: String| Probed { code: 1, detail };
    if let Err(error) = enter(cgroup) {
        return failed(format!("the probe could not enter `{}`: {error}", cgroup.unwrap_or("the root cgroup")));
    }
    let uid = Uid::from_raw(UID);
    if let Err(error) = setresuid(uid, uid, uid) {
        return Probed { code: CANNOT_CHANGE_USER, detail: format!("the probe could not become uid {UID}: {error}") };
    }
    let tried = UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.connect(("127.0.0.1", 9)));
    match tried {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Probed { code: 0, detail: format!("a forbidden connect was refused: {error}") }
        }
        Err(error) => failed(format!("a forbidden connect failed, but not by refusal: {error}")),
        Ok(()) => failed("A FORBIDDEN CONNECT SUCCEEDED: nothing is enforced here".into()),
    }
}
