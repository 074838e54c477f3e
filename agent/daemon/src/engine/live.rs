//! What people, signals and time do to accounts: each operation changes the live state, then the kernel, then the log,
//! and only then answers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use jiff::Timestamp;
use nix::unistd::{Uid, User};
use writ_core::config::Config;
use writ_core::record::{
    AskedBy, Body, Caller as RecordCaller, EscalationState, Grant as GrantRecord, GrantState, Lifecycle, LoginUid,
    Process, SignalRecord, SignalState, Time,
};
use writ_core::signal::{Caller, Incoming, Outcome, Signal};
use writ_core::stance::{BreakGlass, BreakGlassRequest, Grant, GrantRequest, Offboarded, Received, RevocationCause};

use super::Engine;
use super::activate::ActivateError;
use super::evidence::approver;
use super::refresh::Why;
use crate::process::{describe, executable_of, loginuid_of};

/// Who asks, as the core and as records know it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actor {
    /// For decisions about what it may do.
    pub caller: Caller,
    /// Its process.
    pub pid: Option<u32>,
    /// Its executable.
    pub executable: Option<String>,
    /// Its process.
    pub process: Option<Arc<Asking>>,
    /// Which declared caller it is, if it is on another host.
    pub asked_by: Option<AskedBy>,
    /// When its question was received.
    pub asked: Option<Instant>,
}

/// The process that asks, described as records describe one when a record asks for it: no signal's does.
#[derive(Debug)]
pub(crate) struct Asking {
    pid: u32,
    cgroups: PathBuf,
    described: OnceLock<Process>,
}

impl Asking {
    /// A process that is there; `cgroups` is where cgroup2 is mounted.
    pub(crate) fn new(pid: u32, cgroups: &Path) -> Self {
        Self { pid, cgroups: cgroups.to_owned(), described: OnceLock::new() }
    }

    /// The process, as it was when this was first asked.
    pub(crate) fn described(&self) -> &Process {
        self.described.get_or_init(|| describe(self.pid, &self.cgroups))
    }
}

impl Actor {
    /// Somebody on another host, who is nobody here: no user, no group, no account yet.
    pub(crate) fn remote(address: &str) -> Self {
        let caller = Caller { uid: u32::MAX, name: Some(format!("https:{address}")), ..Caller::default() };
        Self { caller, ..Self::default() }
    }

    /// Somebody on this host who only has to be named: it has been let do what it asks for. The kernel allows a signal from root
    /// and from the daemon's own user.
    pub(crate) fn local(uid: u32, pid: u32) -> Self {
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        let caller = Caller { uid, name, loginuid: loginuid_of(pid), ..Caller::default() };
        Self { caller, pid: Some(pid), executable: executable_of(pid), ..Self::default() }
    }

    /// What it did as the reason why stances change.
    pub(super) fn why(&self, cause: &str, id: Option<String>, reason: Option<String>) -> Why {
        Why { cause: cause.to_owned(), id, reason, by: Some(self.recorded()), asked: self.asked }
    }

    /// The actor as records name it.
    pub(crate) fn recorded(&self) -> RecordCaller {
        RecordCaller {
            uid: self.caller.uid,
            loginuid: self.caller.loginuid.map_or(LoginUid::Unattributed, LoginUid::Uid),
            user: self.caller.name.clone(),
            pid: self.pid,
            executable: self.executable.clone(),
        }
    }
}

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The caller may not.
    #[error("{0}")]
    NotPermitted(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as asked.
    #[error("{0}")]
    Invalid(String),
    /// What was asked is incomplete or makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// It is done in the daemon, and the kernel's tables could not be changed: what was in force still is.
    #[error("the kernel could not be told: {0}")]
    Kernel(String),
    /// It is in force, and a restart would not know.
    #[error(
        "it is done and in force, but could not be kept: a restart would forget it. It is tried again every second, and \
         `status` is degraded (`state-unkept`) until it succeeds: {0}"
    )]
    Unkept(String),
    /// Nothing is in force.
    #[error("no configuration is in force")]
    NotReady,
}

impl From<ActivateError> for Refusal {
    fn from(error: ActivateError) -> Self {
        match error {
            ActivateError::Refused(findings) => {
                let text = findings.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ");
                Self::Kernel(text)
            }
            ActivateError::Install(error) => Self::Kernel(error.to_string()),
        }
    }
}

pub(super) type Done<T> = Result<T, Refusal>;

impl Engine {
    pub(crate) fn config(&self) -> Done<Arc<Config>> {
        self.current().map(|current| Arc::clone(&current.config)).ok_or(Refusal::NotReady)
    }

    /// Takes or refuses a signal.
    ///
    /// # Errors
    /// It was refused, which is recorded; or the kernel could not be told.
    pub(crate) fn signal(&mut self, incoming: &Incoming, actor: &Actor) -> Done<Received> {
        let config = self.config()?;
        let received = self.live.receive(incoming, &actor.caller, Timestamp::now(), &config);
        let Some(signal) = received.outcome.accepted().cloned() else {
            let reason = received.outcome.code().to_owned();
            self.note_refused("signal", actor, Some(incoming.account.clone()), &reason);
            let told = received.outcome.told(&incoming.kind);
            return match &received.outcome {
                Outcome::Duplicate { .. } | Outcome::OutOfOrder { .. } => Ok(received),
                Outcome::Unauthorised { .. } => Err(Refusal::NotPermitted(told)),
                Outcome::UnknownKind | Outcome::Incomplete if !actor.caller.is_operator(&config.agent.operators) => {
                    Err(Refusal::NotPermitted(told))
                }
                Outcome::Incomplete | Outcome::Malformed { .. } => Err(Refusal::Malformed(told)),
                // Which accounts there are is not for everybody to find out.
                Outcome::UnknownAccount if !actor.caller.is_operator(&config.agent.operators) => {
                    Err(Refusal::NotPermitted(told))
                }
                Outcome::UnknownAccount => Err(Refusal::NotFound(config.no_such_account(&incoming.account))),
                _ => Err(Refusal::Invalid(told)),
            };
        };
        // Before the kernel: a daemon that dies in between has lost nothing, and drift that it saw itself nobody sends again.
        self.keep_signal(&received);
        let why = actor.why("signal", Some(signal.id.clone()), signal.evidence.clone());
        let refreshed = self.refresh(&signal.account, &why);
        let record = self.note(signal_record(&signal, SignalState::Received, Some(actor), None));
        for grant in &received.grants {
            self.note(grant_record(grant, GrantState::Revoked, None));
        }
        for escalation in &received.approvals {
            self.note_escalation(escalation, EscalationState::Expired, None);
        }
        // Whatever became of the stance: a session that began before the rotation is not to go on.
        self.end_earlier_sessions(&signal, &record);
        refreshed?;
        self.kept()?;
        Ok(received)
    }

    /// Ends a signal before its time.
    ///
    /// # Errors
    /// There is none, or the caller may not.
    pub(crate) fn clear_signal(&mut self, id: &str, reason: &str, actor: &Actor) -> Done<Signal> {
        use writ_core::stance::ClearRefusal;
        let config = self.config()?;
        let cleared = self.live.clear_signal(id, reason, &actor.caller, Timestamp::now(), &config);
        let signal = cleared.map_err(|refusal| match refusal {
            ClearRefusal::Unknown(_) => Refusal::NotFound(refusal.to_string()),
            ClearRefusal::NotPermitted(_) => self.not_permitted("signal clear", actor, None, refusal.to_string()),
            ClearRefusal::NoReason => Refusal::Invalid(refusal.to_string()),
        })?;
        self.save_live();
        self.note(signal_record(&signal, SignalState::Cleared, Some(actor), Some(reason)));
        let why = actor.why("signal-cleared", Some(signal.id.clone()), Some(reason.into()));
        self.refresh(&signal.account, &why)?;
        self.flush();
        self.kept()?;
        Ok(signal)
    }

    /// Keeps an accepted signal: in the journal, which outlives this process at once and a power cut with the next fsync. One
    /// that ended grants or approvals for good has the whole state written.
    fn keep_signal(&mut self, received: &Received) {
        if let Some(signal) = received.outcome.accepted() {
            self.deadline.bring_forward(signal.expires);
        }
        let journalled = match &received.outcome {
            Outcome::Accepted(accepted) if received.grants.is_empty() && received.approvals.is_empty() => {
                !self.live_journal.full() && self.live_journal.append(accepted).is_ok()
            }
            _ => false,
        };
        if !journalled {
            self.save_live();
        }
    }

    pub(super) fn not_permitted(
        &mut self,
        operation: &str,
        actor: &Actor,
        account: Option<String>,
        reason: String,
    ) -> Refusal {
        self.note_refused(operation, actor, account, &reason);
        Refusal::NotPermitted(reason)
    }

    /// Makes a grant.
    ///
    /// # Errors
    /// It may not be made, or the kernel could not be told: then there is no grant.
    pub(crate) fn grant(&mut self, request: &GrantRequest, actor: &Actor) -> Done<Grant> {
        use writ_core::stance::GrantRefusal;
        let config = self.config()?;
        let made = self.live.create_grant(request, &actor.caller, Timestamp::now(), &config);
        let grant = made.map_err(|refusal| match refusal {
            GrantRefusal::Approver(_) => {
                self.not_permitted("grant create", actor, Some(request.account.clone()), refusal.to_string())
            }
            GrantRefusal::UnknownAccount(name) => Refusal::NotFound(config.no_such_account(&name)),
            GrantRefusal::UnknownDestination(name) => {
                let missing = config.no_such_destination(&name);
                Refusal::Invalid(format!("{missing} (or write ADDRESS[/LEN]:PORT[/PROTOCOL])"))
            }
            _ => Refusal::Invalid(refusal.to_string()),
        })?;
        self.save_live();
        let why = actor.why("grant", Some(grant.id.clone()), Some(grant.reason.clone()));
        let mark = self.waiting.len();
        self.note(grant_record(&grant, GrantState::Created, None));
        let made = self.kept().and_then(|()| Ok(self.refresh(&grant.account, &why)?));
        if let Err(error) = made {
            self.waiting.truncate(mark); // Nothing was written since: there is no grant.
            let _ = self.live.revoke_grant(
                &grant.id,
                "the kernel could not be told",
                &actor.caller,
                Timestamp::now(),
                &config,
            );
            self.save_live();
            return Err(match error {
                Refusal::Unkept(why) => Refusal::Kernel(format!("there is no grant: it could not be kept: {why}")),
                error => error,
            });
        }
        self.flush();
        Ok(grant)
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// There is none, or the caller may not.
    pub(crate) fn revoke_grant(&mut self, id: &str, reason: &str, actor: &Actor) -> Done<Grant> {
        use writ_core::stance::RevokeRefusal;
        let config = self.config()?;
        let revoked = self.live.revoke_grant(id, reason, &actor.caller, Timestamp::now(), &config);
        let grant = revoked.map_err(|refusal| match refusal {
            RevokeRefusal::Approver(_) => self.not_permitted("grant revoke", actor, None, refusal.to_string()),
            _ => Refusal::NotFound(refusal.to_string()),
        })?;
        self.save_live();
        let why = actor.why("grant-revoked", Some(grant.id.clone()), Some(reason.into()));
        self.note(grant_record(&grant, GrantState::Revoked, Some(actor)));
        self.refresh(&grant.account, &why)?;
        self.flush();
        self.kept()?;
        Ok(grant)
    }

    /// Ends an account's access until it is reinstated.
    ///
    /// # Errors
    /// It may not be ended, or the kernel could not be told.
    pub(crate) fn offboard(&mut self, account: &str, reason: &str, actor: &Actor) -> Done<Offboarded> {
        let config = self.config()?;
        let done = self.live.offboard(account, reason, &actor.caller, Timestamp::now(), &config);
        let (offboarded, grants, escalations) =
            done.map_err(|refusal| self.offboarding_refused("account offboard", account, actor, refusal))?;
        self.save_live();
        for grant in &grants {
            self.note(grant_record(grant, GrantState::Revoked, Some(actor)));
        }
        for escalation in &escalations {
            self.note_escalation(escalation, EscalationState::Expired, Some(reason));
        }
        let why = actor.why("offboard", None, Some(reason.into()));
        self.refresh(account, &why)?;
        self.flush();
        self.kept()?;
        Ok(offboarded)
    }

    /// Undoes an offboarding.
    ///
    /// # Errors
    /// It may not be undone, or the kernel could not be told.
    pub(crate) fn reinstate(&mut self, account: &str, reason: &str, actor: &Actor) -> Done<Offboarded> {
        let config = self.config()?;
        let done = self.live.reinstate(account, reason, &actor.caller, &config);
        let was = done.map_err(|refusal| self.offboarding_refused("account reinstate", account, actor, refusal))?;
        self.save_live();
        let why = actor.why("reinstate", None, Some(reason.into()));
        self.refresh(account, &why)?;
        self.flush();
        self.kept()?;
        Ok(was)
    }

    fn offboarding_refused(
        &mut self,
        operation: &str,
        account: &str,
        actor: &Actor,
        refusal: writ_core::stance::OffboardingRefusal,
    ) -> Refusal {
        use writ_core::stance::OffboardingRefusal;
        let text = refusal.to_string();
        match refusal {
            OffboardingRefusal::Approver(_) => self.not_permitted(operation, actor, Some(account.to_owned()), text),
            OffboardingRefusal::UnknownAccount(name) => Refusal::NotFound(match self.config() {
                Ok(config) => config.no_such_account(&name),
                Err(_) => text,
            }),
            _ => Refusal::Invalid(text),
        }
    }

    /// Breaks glass: verdicts are only observed until it ends by itself, in the kernel.
    ///
    /// # Errors
    /// The caller may not, or the kernel could not be told.
    pub(crate) fn break_glass(&mut self, request: &BreakGlassRequest, actor: &Actor) -> Done<BreakGlass> {
        use writ_core::stance::BreakGlassRefusal;
        let config = self.config()?;
        let begun = self.live.begin_break_glass(request, &actor.caller, Timestamp::now(), &config);
        let broken = begun.map_err(|refusal| match refusal {
            BreakGlassRefusal::Approver(_) => {
                self.not_permitted("break-glass", actor, request.account.clone(), refusal.to_string())
            }
            BreakGlassRefusal::UnknownAccount(name) => Refusal::NotFound(config.no_such_account(&name)),
            _ => Refusal::Invalid(refusal.to_string()),
        })?;
        self.save_live();
        tracing::warn!(account = request.account.as_deref().unwrap_or("all"), until = %broken.until, reason = broken.reason, "GLASS BROKEN: verdicts are only observed");
        self.note_break_glass(&broken, false);
        let why = actor.why("break-glass", None, Some(broken.reason.clone()));
        match &broken.account {
            Some(account) => self.refresh(account, &why)?,
            None => self.refresh_all(&why)?,
        }
        self.flush();
        self.kept()?;
        Ok(broken)
    }
}

impl Engine {
    /// Records that glass is broken: when it is, and again by each daemon that finds it so.
    pub(super) fn note_break_glass(&mut self, broken: &BreakGlass, resumed: bool) {
        self.note_lifecycle(Lifecycle::BreakGlass {
            account: broken.account.clone(),
            expires: Time(broken.until),
            by: approver(&broken.by),
            reason: broken.reason.clone(),
            resumed,
        });
    }

    /// Records that it is whole again.
    pub(super) fn note_break_glass_ended(&mut self, broken: &BreakGlass) {
        self.note_lifecycle(Lifecycle::BreakGlassEnded {
            account: broken.account.clone(),
            ended: Time(broken.until),
            by: approver(&broken.by),
            reason: broken.reason.clone(),
        });
    }
}

pub(super) fn signal_record(signal: &Signal, state: SignalState, actor: Option<&Actor>, reason: Option<&str>) -> Body {
    Body::Lifecycle(Box::new(Lifecycle::Signal(Box::new(SignalRecord {
        signal: signal.id.clone(),
        state,
        account: signal.account.clone(),
        kind: signal.kind.clone(),
        risk: signal.risk,
        expires: Time(signal.expires),
        source: signal.source.name.clone().unwrap_or_else(|| signal.source.uid.to_string()),
        by: actor.map(Actor::recorded),
        evidence: signal.evidence.clone(),
        reason: reason.map(str::to_owned),
    }))))
}

pub(super) fn grant_record(grant: &Grant, state: GrantState, actor: Option<&Actor>) -> Body {
    let (because, signal) = match grant.revoked.as_ref().map(|revocation| &revocation.cause) {
        Some(RevocationCause::Person { reason, .. }) => (Some(reason.clone()), None),
        Some(RevocationCause::Drift { signal, kind }) => (Some(format!("drift: {kind}")), Some(signal.clone())),
        Some(RevocationCause::Offboarded) => (Some("offboarded".to_owned()), None),
        None => (None, None),
    };
    Body::Grant(Box::new(GrantRecord {
        grant: grant.id.clone(),
        state,
        account: grant.account.clone(),
        destination: grant.destination.to_string(),
        expires: Time(grant.expires),
        approver: approver(&grant.approver),
        reason: grant.reason.clone(),
        ended_because: because,
        ended_by: actor.map(Actor::recorded),
        signal,
    }))
}
