//! From the kernel's events to lines in the log: named, explained, written in order, and counted when they cannot be.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use writ_abi::{DecisionEvent, Family, Hook, Protocol, Reason, Verdict};
use writ_core::policy::Attempt;
use writ_core::record::{
    Body, Context, Decision, GrantRef, IdSource, Lifecycle, LoginUid, PolicyRef, Record, Request, SignalRef, Time,
    alike, record_id,
};
use writ_core::stance::{Escalation, Situation, Target};

use super::Engine;
use super::clock::Clocks;
use super::escalate::connect_target;
use super::explain::{Moment, Names};
use super::persist::Explained as Kept;
use super::repeats::{Basis, Repeat};

/// How many events are taken from the ring in one go, some two milliseconds.
const BATCH: usize = 128;
/// How many are, while somebody asks: a fifth of a millisecond.
const FEW: usize = 16;
/// An event's attempt as Cedar is asked about it, and what is said of it.
pub(super) struct Explained {
    pub(super) attempt: Attempt,
    pub(super) context: Context,
}

impl Engine {
    /// Takes what the ring holds and writes it. Returns whether more is waiting.
    pub(crate) fn pump(&mut self) -> bool {
        let more = self.take_while(|_| true);
        self.flush();
        more
    }

    /// The same of a ring that was empty a moment ago, unless somebody asks: then a few at most, which are written with the
    /// records of what is asked.
    pub(super) fn pump_unless_asked(&mut self) -> bool {
        let more = self.take_while(|engine| !engine.asked.is_set());
        if !self.asked.is_set() {
            self.flush();
        }
        more
    }

    /// Takes a few events, and a few more while that is wanted. Returns whether more is waiting.
    fn take_while(&mut self, wanted: impl Fn(&Self) -> bool) -> bool {
        if self.waiting.full() {
            self.flush();
            if self.waiting.full() {
                return false;
            }
        }
        let (mut taken, mut more) = (0, true);
        while more && taken < BATCH && (taken == 0 || wanted(self)) {
            more = self.take_few();
            taken += FEW;
        }
        self.raise_drift();
        more
    }

    fn take_few(&mut self) -> bool {
        let clocks = Clocks::read();
        let drained = self.kernel.drain(FEW);
        for event in &drained.processes {
            self.processes.exec(event);
            self.look_at_exec(event);
        }
        self.account_for(&drained.decisions, &clocks);
        for malformed in &drained.malformed {
            // Its number is missing from the sequence, so it is counted as lost there; this says why.
            tracing::error!(%malformed, "a ring entry could not be read");
        }
        drained.more
    }

    pub(super) fn take(&mut self, event: &DecisionEvent, clocks: &Clocks) {
        if self.took_self_test(event) {
            return;
        }
        let at = clocks.wall_of(event.at);
        let source = IdSource::Kernel { cpu: event.cpu, sequence: event.sequence };
        let id = record_id(at, self.boot, source);
        let basis = self.basis(event);
        let alike = alike(event);
        let known = basis.as_ref().and_then(|basis| self.repeats.take(&alike, basis, at));
        let (repeat, keeps) = match known {
            Some(mut repeat) => {
                repeat.record.id = id;
                repeat.record.time = Time(at);
                if let Body::Decision(judged) | Body::Observation(judged) = &mut repeat.record.body {
                    judged.again(event, at);
                }
                (repeat, true)
            }
            None => self.work_out(event, at, id, basis),
        };
        let Repeat { record, attempt, .. } = &*repeat;
        if let Some(judged) = record.body.judged() {
            let executable = judged.process.as_ref().and_then(|process| process.executable.as_deref());
            self.look_at_attempt(&judged.account, event, executable);
            self.last_executable = executable.map(str::to_owned);
        }
        self.denials.keep(record);
        self.push(record);
        let connects = [Hook::Connect4 as u8, Hook::Connect6 as u8].contains(&event.hook);
        if connects && event.errno == 0 {
            let accounts = event.also.iter().copied().chain([event.account]);
            self.remember_opened(event.socket_cookie, event.at, accounts, &record.id);
        }
        if let Body::Decision(judged) = &record.body
            && judged.verdict == writ_core::record::Verdict::Escalate
        {
            let target = connect_target(attempt, self.last_executable.as_deref());
            let policies = judged.policies.iter().map(|policy| policy.id.clone()).collect();
            self.escalate(&judged.account, target, policies, &record.id);
        }
        if keeps {
            self.repeats.keep(alike, repeat);
        }
    }

    /// What the words of an event's record are taken from; `None` if it cannot be told any more.
    fn basis(&self, event: &DecisionEvent) -> Option<Basis> {
        let names = self.generations.iter().rev().find(|(number, _)| *number == event.generation);
        let moment = self.moments.get(&(event.account, event.epoch))?;
        Some(Basis::of(&names?.1, moment, &self.current()?.config, self.processes.renamed()))
    }

    /// The record of an attempt, and whether that of another one like it may be made from it.
    fn work_out(
        &mut self,
        event: &DecisionEvent,
        at: Timestamp,
        id: String,
        basis: Option<Basis>,
    ) -> (Box<Repeat>, bool) {
        let named = self.processes.name(event);
        let Explained { attempt, mut context } = self.explained(event, at);
        // What could not be named may be by the next time.
        let whole = named.executable.is_some() && named.cgroup.is_some();
        context.executable = named.executable;
        context.parents = named.parents;
        context.cgroup = named.cgroup;
        context.unit = named.unit;
        let record = Record::new(id, at, self.host.clone(), VERSION, Decision::from_event(event, context));
        let moment = self.moments.get(&(event.account, event.epoch)).map(Arc::clone);
        let keeps = whole && basis.is_some() && moment.is_some();
        (Box::new(Repeat::new(record, attempt, basis.unwrap_or_default(), moment.as_deref(), at)), keeps)
    }

    /// What an event is about, by name, without its process.
    pub(super) fn explained(&self, event: &DecisionEvent, at: Timestamp) -> Explained {
        let names = self.names_of(event.generation);
        let account = names
            .as_ref()
            .and_then(|names| names.legend.accounts.get(usize::from(event.account)).cloned())
            .unwrap_or_else(|| "unknown".to_owned());
        let moment = self.moments.get(&(event.account, event.epoch)).cloned();
        let attempt = attempt_of(event, names.as_deref());
        let situation = self.situation(moment.as_deref(), at);
        let mut context = Context { account, ..Context::default() };
        if let Some(names) = &names {
            self.explain(&mut context, names, event, &attempt, situation.as_ref());
        }
        if let Some(granted) = moment.as_ref().map(|moment| &moment.policy_digest).filter(|digest| !digest.is_empty()) {
            context.policy_digest.clone_from(granted);
        }
        if let (Some(moment), Some(situation)) = (&moment, &situation) {
            describe(&mut context, moment, situation, at);
            if event.verdict == Verdict::Allow as u8
                && context.grant.is_none()
                && let Attempt::Connect { executable, .. } = &attempt
                && let Some(target) = connect_target(&attempt, executable.as_deref())
            {
                context.grant = approval(moment.approved.iter(), &target, at);
            }
        }
        Explained { attempt, context }
    }

    /// The names of a generation; `None` if it is too old to be explained.
    fn names_of(&self, generation: u32) -> Option<Arc<Names>> {
        self.generations.iter().rev().find(|(number, _)| *number == generation).map(|(_, names)| Arc::clone(names))
    }

    fn situation(&self, moment: Option<&Moment>, at: Timestamp) -> Option<Situation> {
        let kinds = &self.current()?.config.signals;
        Some(moment?.situation(kinds, at))
    }

    /// What the tables and the policy set say about an event.
    fn explain(
        &self,
        context: &mut Context,
        names: &Names,
        event: &DecisionEvent,
        attempt: &Attempt,
        situation: Option<&Situation>,
    ) {
        let legend = &names.legend;
        context.policy_digest.clone_from(&legend.policy_digest);
        context.stance_digest = legend.digests.get(event.stance as usize).cloned().unwrap_or_default();
        context.also_matched =
            event.also.iter().filter_map(|index| legend.accounts.get(usize::from(*index)).cloned()).collect();
        let reference = |id: &String| PolicyRef::new(id, names.policy(id));
        let of_policy = Reason::from_bits(event.reason).is_some_and(Reason::is_of_policy);
        if let Some(explanation) = legend.explanations.get(event.explanation as usize).filter(|_| of_policy) {
            let determining = if explanation.errors.is_empty() { &explanation.policies } else { &explanation.errors };
            context.policies = determining.iter().map(reference).collect();
            context.would = explanation.would.iter().flatten().map(reference).collect();
        }
        if let Some(config) = self.current().map(|current| &current.config) {
            context.owner = config.accounts.get(&context.account).and_then(|account| account.owner.clone());
        }
        if let Attempt::Connect { ip, port, protocol, .. } = attempt {
            context.groups = names.bundle.groups_of(*ip, *port, *protocol).into_iter().collect();
        }
        if let Some(situation) = situation {
            let written = names.bundle.cedar_request(&context.account, &situation.state, attempt);
            context.request = written.map(Request::from).unwrap_or_default();
        }
    }

    /// Writes down something the daemon did or found, now.
    pub(crate) fn note(&mut self, body: Body) -> String {
        self.note_at(Timestamp::now(), body)
    }

    /// Writes down something the daemon decided as of this moment, which the record then has too.
    pub(super) fn note_at(&mut self, at: Timestamp, body: Body) -> String {
        self.note_shortened(at, body, Vec::new())
    }

    /// The same of something that does not say all there is to say: the names of the members that were cut short.
    pub(super) fn note_shortened(&mut self, at: Timestamp, body: Body, truncated: Vec<String>) -> String {
        self.agent_records += 1;
        let id = record_id(at, self.boot, IdSource::Agent(self.agent_records));
        let record = Record::new(id.clone(), at, self.host.clone(), VERSION, body);
        self.push(&Record { truncated, ..record });
        id
    }

    /// Writes down a lifecycle event.
    pub(crate) fn note_lifecycle(&mut self, lifecycle: Lifecycle) -> String {
        self.note(Body::Lifecycle(Box::new(lifecycle)))
    }

    pub(super) fn push(&mut self, record: &Record) {
        self.tally.count(&record.body);
        self.waiting.push(record);
    }

    /// Writes the lines that wait. What cannot be written stays, and is tried again.
    pub(crate) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let lines = self.waiting.lines();
        let first = self.log.size();
        match self.log.append(&lines) {
            Ok(first) => {
                self.changes.wrote(first, &lines);
                let written = lines.len();
                self.waiting.written(written);
            }
            Err(error) => {
                self.changes.wrote(first, lines.get(..error.written).unwrap_or(&[]));
                self.waiting.written(error.written);
                self.log_fails(error.to_string());
            }
        }
    }

    /// Keeps what is needed to read events that a later daemon will find in the ring.
    pub(crate) fn save_explained(&mut self) {
        let legends = self.generations.iter().rev().take(2).map(|(_, names)| names.legend.clone()).collect();
        let moments = self
            .moments
            .iter()
            .filter(|((_, epoch), moment)| {
                let newest = self.epochs.get(&moment.account).copied().unwrap_or(0);
                epoch.saturating_add(EPOCHS_KEPT) > newest
            })
            .map(|((account, epoch), moment)| (*account, *epoch, (**moment).clone()))
            .collect();
        if let Err(error) = self.store.save_explained(&Kept { legends, moments }, &mut self.explained_journal) {
            tracing::error!(%error, "what is needed to explain decisions made while the daemon is down could not be kept");
        }
    }
}

/// How many of an account's past stances are kept to explain events that were still on their way.
pub(crate) const EPOCHS_KEPT: u32 = 64;

/// This agent's version, as records carry it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The attempt as Cedar is asked about it.
fn attempt_of(event: &DecisionEvent, names: Option<&Names>) -> Attempt {
    if event.open_socket == 1 {
        return Attempt::OpenSocket { family: Family::from_bits(event.protocol).unwrap_or(Family::Other) };
    }
    let ip: IpAddr = event.address.into();
    Attempt::Connect {
        ip,
        port: event.port,
        protocol: Protocol::from_bits(event.protocol).unwrap_or(Protocol::Tcp),
        new_destination: event.new_destination == 1,
        // By class, as the kernel judged it: an unlisted executable is `unlisted`, whatever its path.
        executable: names.and_then(|names| names.legend.executables.get(&event.executable_class).cloned()),
    }
}

/// What held for the account, by value.
pub(super) fn describe(context: &mut Context, moment: &Moment, situation: &Situation, at: Timestamp) {
    context.risk = situation.state.risk;
    context.signals = moment
        .signals
        .iter()
        .filter(|signal| signal.is_live(at))
        .map(|signal| SignalRef {
            id: signal.id.clone(),
            kind: signal.kind.clone(),
            source: signal.source.name.clone().unwrap_or_else(|| signal.source.uid.to_string()),
            risk: signal.risk,
            age_seconds: at.duration_since(signal.at).as_secs().try_into().unwrap_or(0),
            expires: Time(signal.expires),
        })
        .collect();
    context.grant = moment
        .grants
        .iter()
        .find(|grant| context.policies.iter().any(|policy| policy.id == format!("grant:{}", grant.id)))
        .map(|grant| GrantRef {
            id: grant.id.clone(),
            approver: approver(&grant.approver),
            reason: grant.reason.clone(),
            expires: Time(grant.expires),
        });
}

/// The approval that held for exactly this attempt when it was let through, by value, as the grant that it is.
pub(super) fn approval<'a>(
    approved: impl Iterator<Item = &'a Escalation>,
    target: &Target,
    at: Timestamp,
) -> Option<GrantRef> {
    let approved = approved.into_iter().find(|approved| approved.target == *target && at < approved.expires)?;
    let answer = approved.answer.as_ref()?;
    Some(GrantRef {
        id: approved.id.clone(),
        approver: approver(&answer.approver),
        reason: answer.reason.clone(),
        expires: Time(approved.expires),
    })
}

/// An approver as records name one.
pub(crate) fn approver(approver: &writ_core::signal::Approver) -> writ_core::record::Approver {
    writ_core::record::Approver {
        uid: approver.uid,
        loginuid: approver.loginuid.map_or(LoginUid::Unattributed, LoginUid::Uid),
        user: approver.name.clone(),
        ticket: approver.ticket.clone(),
    }
}
