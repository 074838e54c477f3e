//! The agent's own life: what `type` lifecycle records say, by `event`.

use serde::{Deserialize, Serialize};

use super::{Caller, SignalRecord, Time};

/// One event of the agent's life.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Lifecycle {
    /// Enforcement was put in force by this process.
    Start {
        /// Digest of the policy set in force.
        policy_digest: String,
        /// Requested mode.
        mode: super::EffectiveMode,
        /// What the kernel covers, by hook, e.g. `cgroup/connect4`.
        coverage: Vec<String>,
        /// What is weaker than configured, in words.
        degraded: Vec<String>,
        /// The running kernel.
        kernel_release: String,
    },
    /// A running enforcement was taken over from an earlier process.
    Adopt {
        /// Digest of the policy set in force.
        policy_digest: String,
        /// Generation found.
        generation: u32,
        /// Host-wide mode; absent in records of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<super::EffectiveMode>,
        /// What is weaker than configured, in words.
        degraded: Vec<String>,
        /// The running kernel.
        kernel_release: String,
    },
    /// The daemon ended; enforcement stays in force.
    Stop {
        /// Why: `signal`, `uninstall`, or in words.
        reason: String,
    },
    /// Another policy set was put in force.
    Reload {
        /// Digest before.
        before: String,
        /// Digest after.
        after: String,
        /// Who asked; absent for SIGHUP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Caller>,
        /// Generation in force.
        generation: u32,
        /// Accounts that were declared before and are no more: their processes are not judged any longer.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        undeclared: Vec<String>,
    },
    /// A configuration was refused; the last good one stays.
    ReloadRefused {
        /// Digest in force.
        policy_digest: String,
        /// Who asked; absent for SIGHUP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Caller>,
        /// What is wrong, as `check` says it.
        problems: Vec<String>,
    },
    /// Totals of this boot, every five minutes: `seen = recorded + lost`, once nothing is in flight.
    Heartbeat {
        /// Attempts of managed accounts judged.
        seen: u64,
        /// Attempts recorded, those counted into another record included.
        recorded: u64,
        /// Attempts lost and counted.
        lost: u64,
        /// Attempts still in the ring.
        #[serde(default, skip_serializing_if = "is_zero")]
        in_flight: u64,
    },
    /// A refusal that had to happen was tried.
    SelfTest {
        /// Whether it happened, everywhere it had to.
        passed: bool,
        /// Each hook with its result.
        results: Vec<String>,
        /// The kernel's number of the attempt, where it was judged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kernel: Option<super::Kernel>,
    },
    /// Programs were found detached: somebody took enforcement away under the daemon.
    Detached {
        /// The programs.
        programs: Vec<String>,
        /// When all of them were last seen attached: what happened since was not judged.
        since: Time,
        /// Those that could not be attached again, and why; empty: all of them judge again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed: Vec<String>,
    },
    /// The log was repaired when it was opened.
    LogRepair {
        /// What was done, in words.
        repairs: Vec<String>,
        /// Bytes of a torn last line that were cut off.
        cut_bytes: u64,
        /// Whole lines that no checkpoint covered and that were kept.
        unsigned_tail: u64,
        /// Where the damaged log was moved to, if it could not be continued.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set_aside: Option<String>,
    },
    /// Writing failed for a while; the losses have records of their own.
    WriteFailed {
        /// What the system said, the last time.
        error: String,
        /// When it began.
        since: Time,
        /// Records lost meanwhile.
        lost: u64,
    },
    /// Old segments were removed.
    Pruned {
        /// Index of the first record that is still there.
        first_index: u64,
        /// The files removed.
        files: Vec<String>,
    },
    /// Someone asked for what they may not do.
    Refused {
        /// The operation.
        operation: String,
        /// Who asked.
        by: Caller,
        /// The account it was about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        /// Why it was refused.
        reason: String,
        /// How many refusals of the same caller this stands for: of a flood, only the first are recorded one by one.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        count: u64,
    },
    /// Observe mode by an approver's order; the kernel ends it.
    BreakGlass {
        /// The account; absent: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        /// When it ends.
        expires: Time,
        /// Who ordered it.
        by: super::Approver,
        /// Why.
        reason: String,
        /// Whether it was in force already: an earlier daemon had recorded it, and this one found it when it started.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resumed: bool,
    },
    /// Observe mode by an approver's order is over: its time was.
    BreakGlassEnded {
        /// The account; absent: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        /// When the kernel ended it.
        ended: Time,
        /// Who had ordered it.
        by: super::Approver,
        /// Why.
        reason: String,
    },
    /// The wall clock was set; everything that ends by time was moved along, and keeps its length.
    ClockSet {
        /// By how much, in milliseconds; below zero: back.
        step_ms: i64,
    },
    /// A statement about an account: received, cleared, expired.
    Signal(Box<SignalRecord>),
    /// What the configuration names was looked up again on the host, and is in force as found.
    Resolved {
        /// Users and executables that appeared.
        found: Vec<String>,
        /// Users whose uid is somebody else's now.
        gone: Vec<String>,
        /// Users with another uid, executables with another file.
        replaced: Vec<String>,
    },
    /// Programs, maps and pins are being removed.
    Uninstall {
        /// Who asked.
        by: Caller,
    },
}

impl Lifecycle {
    /// The account it is about, if it is about one.
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Refused { account, .. }
            | Self::BreakGlass { account, .. }
            | Self::BreakGlassEnded { account, .. } => account.as_deref(),
            Self::Signal(signal) => Some(&signal.account),
            _ => None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(number: &u64) -> bool {
    *number == 1
}

fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
