//! The decision point: the same policy and live state that judge connects answer questions, and each one is recorded.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use writ_abi::{Address, Reason, Slot, Verdict};
use writ_core::config::{Mode, OnRecordLoss};
use writ_core::policy::{AccountState, ActionRequest, Attempt, Bundle, Evaluation};
use writ_core::record::{Body, Context, Decision, Destination, PolicyRef, Request, Time, Would};
use writ_core::stance::{Escalation, EscalationStatus, Situation, Target};

use super::clock::Clocks;
use super::escalate::connect_target;
use super::evidence::{approval, describe};
use super::explain::Moment;
use super::question::{Answered, Asked, quoted};
use super::{Actor, Engine, Refusal};

/// How long an answer may be relied on at most; the change stream says when it ends earlier.
const MOST_VALID: SignedDuration = SignedDuration::from_secs(300);

/// What policy said, with everything it used.
#[derive(Clone)]
struct Judged {
    evaluation: Evaluation,
    reason_code: String,
    /// Why the question could not be judged.
    problem: Option<String>,
    attempt: Option<Attempt>,
    destination: Option<Destination>,
    request: Request,
    moment: Option<Moment>,
    situation: Option<Situation>,
    mode: Mode,
    until: Option<Timestamp>,
    /// Whether no record means no access.
    needs_record: bool,
}

impl Judged {
    /// Whether it is only observed. What could not be judged is refused, in observe mode too.
    fn observed(&self) -> bool {
        self.mode == Mode::Observe && self.problem.is_none()
    }

    /// Refused whatever policy says, and, as in the kernel, whatever the mode: observing is no way around it.
    fn refuse(&mut self, why: Reason) {
        self.evaluation = refused();
        self.mode = Mode::Enforce;
        why.code().clone_into(&mut self.reason_code);
    }
}

impl Engine {
    /// Answers a question, as it stands now, and records it.
    ///
    /// # Errors
    /// The caller may not ask it, which is recorded too.
    pub(crate) fn decide(&mut self, asked: &Asked, actor: &Actor) -> Result<Answered, Refusal> {
        if !self.may_ask(asked.account(), &asked.subject.kind, actor)? {
            let account = asked.account().map(str::to_owned);
            let whom = asked.principal();
            self.note_refused("evaluate", actor, account, &format!("may not ask about {whom}"));
            return Err(Refusal::NotPermitted(format!(
                "the caller may not ask about {whom}: accounts ask about themselves, root and operators about all, and \
                 a policy can permit Action::\"evaluate\""
            )));
        }
        let clocks = Clocks::read();
        let judged = self.judge(asked, actor, clocks.wall)?;
        let observed = judged.observed();
        let verdict = judged.evaluation.verdict;
        let decision = verdict == Verdict::Allow || observed;
        let body = self.decision_of(asked, actor, &judged, &clocks);
        let policies: Vec<PolicyRef> = body.policies.clone();
        let (executable, account) = (executable_of(asked, actor), body.account.clone());
        let itself = asked.account().is_some_and(|name| actor.caller.is(name));
        let refused = (!observed && self.current().is_some_and(|now| now.config.accounts.contains_key(&account)))
            .then(|| body.clone());
        let record = if observed { Body::Observation(Box::new(body)) } else { Body::Decision(Box::new(body)) };
        let index = self.log.size() + self.waiting.len() as u64;
        // As of the moment that policy was asked about: deciding again compares the two.
        let was = (decision && judged.needs_record).then(|| record.clone());
        let id = self.note_at(clocks.wall, record);
        let without_record = was.map(|was| self.refusal_instead(asked, actor, &judged, (was, &id), &clocks));
        if let Some(body) = refused {
            self.denials.keep_answer(&id, clocks.wall, &body, itself, executable.clone());
        }
        let mut escalation = None;
        if verdict == Verdict::Escalate && !observed {
            let target = match &judged.attempt {
                Some(attempt) => connect_target(attempt, executable.as_deref()),
                None => Some(action_target(&judged.request)),
            };
            escalation = self.escalate(&account, target, judged.evaluation.policies.clone(), &id);
        }
        let context = self.context_of(&judged, (&id, index), &policies, escalation.as_ref(), clocks.wall);
        let waits = escalation.filter(|known| known.status == EscalationStatus::Pending);
        Ok(Answered { decision, context, escalation: waits.map(|known| known.id), without_record })
    }

    /// What is answered, and recorded in place of the yes, should the yes find no place in the log: the log may fail for
    /// the first time under this very record.
    fn refusal_instead(
        &mut self,
        asked: &Asked,
        actor: &Actor,
        judged: &Judged,
        (was, id): (Body, &str),
        clocks: &Clocks,
    ) -> Map<String, Value> {
        let mut refusal = judged.clone();
        refusal.refuse(Reason::RecordLoss);
        let body = self.decision_of(asked, actor, &refusal, clocks);
        let context = self.context_of(&refusal, (id, 0), &[], None, clocks.wall);
        self.instead_of(was, id, clocks.wall, Body::Decision(Box::new(body)));
        context
    }

    /// Whether a caller may ask about a subject: itself, anyone as root or operator, or whom policy lets it ask about.
    ///
    /// # Errors
    /// Nothing is in force.
    pub(crate) fn may_ask(&self, account: Option<&str>, kind: &str, actor: &Actor) -> Result<bool, Refusal> {
        let current = self.current().ok_or(Refusal::NotReady)?;
        if actor.caller.is_operator(&current.config.agent.operators)
            || account.is_some_and(|name| actor.caller.is(name))
        {
            return Ok(true);
        }
        let resource = match account {
            Some(account) => format!("ServiceAccount::{}", quoted(account)),
            None => format!("SubjectType::{}", quoted(kind)),
        };
        let now = Timestamp::now();
        let permitted = |caller: &String| {
            let moment = Moment::of(&self.live, &current.config, caller, self.base.digest(), now);
            let situation = moment.situation(&current.config.signals, now);
            let request = ActionRequest {
                principal: &format!("ServiceAccount::{}", quoted(caller)),
                action: "Action::\"evaluate\"",
                resource: &resource,
                context: &json!({}),
                entities: &json!([]),
                approvals: &BTreeSet::new(),
            };
            let answer = current.bundle.authorize(&request, &situation.state);
            !situation.offboarded && answer.is_ok_and(|answer| answer.evaluation.verdict == Verdict::Allow)
        };
        // The strictest of the accounts that its views lead to, as for connects.
        Ok(!actor.caller.accounts.is_empty() && actor.caller.accounts.iter().all(permitted))
    }

    fn judge(&self, asked: &Asked, actor: &Actor, now: Timestamp) -> Result<Judged, Refusal> {
        let current = self.current().ok_or(Refusal::NotReady)?;
        let config = &current.config;
        let account = asked.account().and_then(|name| config.accounts.get(name));
        let moment = account.map(|account| Moment::of(&self.live, config, &account.name, self.base.digest(), now));
        let situation = moment.as_ref().map(|moment| moment.situation(&config.signals, now));
        let mut mode = account.map_or(config.agent.mode, |account| account.effective_mode(config.agent.mode));
        if situation.as_ref().is_some_and(|situation| situation.break_glass_until.is_some()) {
            mode = Mode::Observe;
        }
        let state = situation.as_ref().map_or_else(|| AccountState::quiet(now), |situation| situation.state.clone());
        let ends = moment.as_ref().and_then(|moment| moment.live(&config.signals).expiries(now).first().copied());
        let glass = situation.as_ref().and_then(|situation| situation.break_glass_until);
        let mut judged = Judged {
            evaluation: refused(),
            reason_code: Reason::Policy.code().to_owned(),
            problem: None,
            attempt: None,
            destination: None,
            request: Request {
                principal: asked.principal(),
                action: asked.action_uid(),
                resource: asked.resource.uid(),
                ..Request::default()
            },
            moment,
            situation,
            mode,
            until: earliest(ends, glass),
            needs_record: account.is_some_and(|account| account.on_record_loss == OnRecordLoss::Deny),
        };
        let outcome = match (asked.action.as_str(), asked.account(), account) {
            (_, Some(name), None) => Err(format!("service account `{name}` is not declared")),
            ("connect", _, Some(account)) => self.judge_connect(asked, actor, &account.name, &state, &mut judged),
            ("connect", ..) => Err("only service accounts connect".to_owned()),
            _ => self.judge_action(asked, &state, &mut judged),
        };
        match outcome {
            Ok(evaluation) => {
                evaluation.reason.code().clone_into(&mut judged.reason_code);
                judged.evaluation = evaluation;
            }
            Err(problem) => {
                "invalid-request".clone_into(&mut judged.reason_code);
                judged.problem = Some(problem);
                // As it was asked.
                judged.request.context = asked.cedar_context();
                judged.request.entities = asked.entities();
            }
        }
        if judged.needs_record && self.log_failure.is_some() {
            judged.refuse(Reason::RecordLoss);
        }
        if judged.situation.as_ref().is_some_and(|situation| situation.offboarded) {
            judged.refuse(Reason::Offboarded);
        }
        Ok(judged)
    }

    fn judge_connect(
        &self,
        asked: &Asked,
        actor: &Actor,
        account: &str,
        state: &AccountState,
        judged: &mut Judged,
    ) -> Result<Evaluation, String> {
        let (given, port, protocol) = asked.endpoint()?;
        let current = self.current().ok_or("nothing is in force")?;
        let bundle = &current.bundle;
        let ip = bundle.canonical(given);
        let attempt = Attempt::Connect {
            ip,
            port,
            protocol,
            new_destination: self.is_new(account, ip, state.now),
            executable: executable_of(asked, actor),
        };
        judged.destination = Some(Destination {
            address: ip.to_string(),
            port,
            protocol: protocol.name().to_owned(),
            name: None,
            groups: bundle.groups_of(ip, port, protocol).into_iter().collect(),
        });
        judged.until = earliest(judged.until, bundle.next_boundary(account, state.now));
        let judgement = bundle.evaluate_written(account, state, &attempt);
        let (evaluation, written) = judgement.ok_or_else(|| format!("no policy set has the account `{account}`"))?;
        judged.request = written.into();
        judged.attempt = Some(attempt);
        Ok(evaluation)
    }

    fn judge_action(&self, asked: &Asked, state: &AccountState, judged: &mut Judged) -> Result<Evaluation, String> {
        let current = self.current().ok_or("nothing is in force")?;
        let target = action_target(&judged.request);
        let account = asked.account().map_or_else(|| asked.principal(), str::to_owned);
        let (approvals, approved_until) = self.approved_for(&account, &target, state.now);
        let request = ActionRequest {
            principal: &judged.request.principal,
            action: &judged.request.action,
            resource: &judged.request.resource,
            context: &Value::Object(asked.cedar_context()),
            entities: &Value::Array(asked.entities()),
            approvals: &approvals,
        };
        let answer = current.bundle.authorize(&request, state).map_err(|error| error.to_string())?;
        judged.request.context = answer.context;
        judged.request.entities = answer.entities;
        judged.until = earliest(judged.until, earliest(answer.until, approved_until));
        Ok(answer.evaluation)
    }

    /// Whether the account has not been there: as the kernel remembers it, and never while its baseline is learnt.
    pub(super) fn is_new(&self, account: &str, ip: std::net::IpAddr, now: Timestamp) -> bool {
        let Some(current) = self.current() else { return true };
        let learning = current.config.accounts.get(account).and_then(|account| account.learning);
        let since = self.numbers.known_since.get(account).copied().unwrap_or(now);
        let until =
            learning.and_then(|span| SignedDuration::try_from(span).ok()).and_then(|span| since.checked_add(span).ok());
        if until.is_some_and(|until| now < until) {
            return false;
        }
        let octets = Address::from(ip).octets();
        current.generation.account(account).is_none_or(|index| !self.kernel.has_seen(index, octets))
    }

    fn decision_of(&self, asked: &Asked, actor: &Actor, judged: &Judged, clocks: &Clocks) -> Decision {
        let account = asked.account().map_or_else(|| asked.principal(), str::to_owned);
        let current = self.current();
        let refer = |ids: &[String]| current.map(|current| references(&current.bundle, ids)).unwrap_or_default();
        let evaluation = &judged.evaluation;
        let determining = if evaluation.errors.is_empty() { &evaluation.policies } else { &evaluation.errors };
        let mut context = Context { account: account.clone(), policies: refer(determining), ..Context::default() };
        if let (Some(moment), Some(situation)) = (&judged.moment, &judged.situation) {
            describe(&mut context, moment, situation, clocks.wall);
        }
        if evaluation.verdict == Verdict::Allow && context.grant.is_none() {
            let target = match &judged.attempt {
                Some(attempt @ Attempt::Connect { executable, .. }) => connect_target(attempt, executable.as_deref()),
                _ => Some(action_target(&judged.request)),
            };
            context.grant = target.and_then(|target| {
                let approved = self.live.escalations().approved(&account, &target, self.base.digest(), clocks.wall);
                approval(approved, &target, clocks.wall)
            });
        }
        let stance_digest = current.and_then(|current| {
            let index = current.generation.account(&account)?;
            let slot = current.generation.slots.get(index as usize).copied().map(Slot)?;
            current.generation.digests.get(slot.stance() as usize).cloned()
        });
        let itself = asked.account().is_some_and(|name| actor.caller.is(name));
        let policy_digest = current.map(|current| current.policy_digest_of(&account).to_owned()).unwrap_or_default();
        Decision {
            owner: current.and_then(|current| current.config.accounts.get(&account)?.owner.clone()),
            account,
            identified_by: vec![if itself { "caller" } else { "subject" }.to_owned()],
            also_matched: Vec::new(),
            verdict: evaluation.verdict.into(),
            effective_mode: if judged.observed() { Mode::Observe } else { Mode::Enforce }.into(),
            action: asked.action.clone(),
            destination: judged.destination.clone(),
            given_address: None,
            asked_by: actor.asked_by.clone(),
            process: actor.process.as_deref().map(|process| process.described().clone()),
            policies: context.policies,
            policy_digest,
            stance_digest: stance_digest.unwrap_or_default(),
            risk: context.risk,
            signals: context.signals,
            grant: context.grant,
            request: judged.request.clone(),
            kernel: None,
            reason_code: judged.reason_code.clone(),
            errno: None,
            would: (evaluation.would != evaluation.verdict)
                .then(|| Would { verdict: evaluation.would.into(), policies: refer(&evaluation.would_policies) }),
            already_open: None,
            count: 1,
            boot_time_ns: clocks.boot_ns,
        }
    }

    fn context_of(
        &self,
        judged: &Judged,
        (id, index): (&str, u64),
        policies: &[PolicyRef],
        escalation: Option<&Escalation>,
        now: Timestamp,
    ) -> Map<String, Value> {
        let Some(current) = self.current() else { return Map::new() };
        let evaluation = &judged.evaluation;
        let mut context = Map::new();
        let mut put = |name: &str, value: Value| drop(context.insert(name.to_owned(), value));
        put("decision_id", id.into());
        put("verdict", writ_core::record::Verdict::from(evaluation.verdict).name().into());
        put("effective_mode", if judged.observed() { "observe" } else { "enforce" }.into());
        put("reason_codes", json!([judged.reason_code]));
        let reasons: Vec<&str> = policies.iter().filter_map(|policy| policy.reason.as_deref()).collect();
        if !reasons.is_empty() {
            put("reason_user", json!({ "en": reasons.join("; ") }));
        }
        let ids: Vec<&str> = policies.iter().map(|policy| policy.id.as_str()).collect();
        let account = judged.moment.as_ref().map_or("", |moment| &moment.account);
        put("policy", json!({ "digest": current.policy_digest_of(account), "ids": ids }));
        if let Some(situation) = &judged.situation {
            put("risk", json!({ "score": situation.state.risk }));
        }
        let latest = now.saturating_add(MOST_VALID).unwrap_or(now);
        let valid_until = earliest(judged.until, Some(latest)).unwrap_or(latest);
        put("valid_until", json!(Time(valid_until)));
        if evaluation.verdict == Verdict::Allow {
            let (scope, max_ttl) = narrowest(&current.bundle, &evaluation.policies);
            if let Some(scope) = scope {
                put("scope", scope.into_iter().collect::<Vec<_>>().join(" ").into());
            }
            if let Some(max_ttl) = max_ttl {
                put("max_ttl_seconds", max_ttl.as_secs().into());
                let expires = SignedDuration::try_from(max_ttl).ok().and_then(|ttl| now.checked_add(ttl).ok());
                put("expires", json!(Time(expires.unwrap_or(now))));
            }
        }
        if let Some(escalation) = escalation {
            let status = escalation.status;
            put("escalation", json!({ "id": escalation.id, "status": status, "expires": Time(escalation.expires) }));
        }
        if let Some(problem) = &judged.problem {
            put("error", json!({ "status": 400, "message": problem }));
        }
        put("record", json!({ "log_origin": self.log.origin(), "index": index }));
        context
    }
}

/// What a question is known by to whoever approves it.
fn action_target(request: &Request) -> Target {
    Target::Action {
        principal: request.principal.clone(),
        action: request.action.clone(),
        resource: request.resource.clone(),
    }
}

/// The executable that would connect: the caller's own, or the one that the asker names.
fn executable_of(asked: &Asked, actor: &Actor) -> Option<String> {
    if asked.account().is_some_and(|name| actor.caller.is(name)) {
        return actor.executable.clone();
    }
    asked.subject.properties.get("executable").and_then(Value::as_str).map(str::to_owned)
}

fn refused() -> Evaluation {
    Evaluation {
        verdict: Verdict::Deny,
        would: Verdict::Deny,
        reason: Reason::Policy,
        policies: Vec::new(),
        would_policies: Vec::new(),
        errors: Vec::new(),
    }
}

fn references(bundle: &Bundle, ids: &[String]) -> Vec<PolicyRef> {
    ids.iter().map(|id| PolicyRef::new(id, bundle.policy(id))).collect()
}

/// What the deciding permits have in common: the scopes that all allow, and the shortest time.
fn narrowest(bundle: &Bundle, ids: &[String]) -> (Option<BTreeSet<String>>, Option<Duration>) {
    let policies: Vec<_> = ids.iter().filter_map(|id| bundle.policy(id)).collect();
    let scopes = policies.iter().filter_map(|policy| policy.scope.clone());
    let scope = scopes.reduce(|narrow, scope| narrow.intersection(&scope).cloned().collect());
    (scope, policies.iter().filter_map(|policy| policy.max_ttl).min())
}

/// The earlier of two instants, where there are any.
fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
