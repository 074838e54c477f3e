//! The routes under `/v1`: each reads its request, asks the engine as the caller it is, and answers.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRef, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use writ_core::signal::Incoming;
use writ_core::stance::{BreakGlassRequest, Escalation, GrantRequest, Offboarded};

use super::caller::{Looked, Peer};
use super::held::Held;
use super::limit::Limits;
use super::segment::{Segment, Wanted};
use super::{authzen, changes, ssf};
use crate::api::{
    self, ApproveBody, BreakGlassBody, Failure, GrantBody, Problem, ReasonBody, RevokeBody, SignalBody, SignalsQuery,
    SimulateBody,
};
use crate::engine::{Actor, Engine, Handle, Refusal};

/// An answer that is an error.
pub(super) struct Fault {
    status: StatusCode,
    problem: Box<Problem>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        // What to do in general; who knows better says so.
        let hint = match status {
            StatusCode::BAD_REQUEST => "nothing was changed; docs/openapi.yaml describes what each path takes",
            StatusCode::FORBIDDEN => "`approvers` and `operators` in writ.toml say who may",
            StatusCode::NOT_FOUND => "docs/openapi.yaml has every path",
            StatusCode::METHOD_NOT_ALLOWED => "docs/openapi.yaml has every path and its methods",
            StatusCode::TOO_MANY_REQUESTS => "close what is not used, and try again",
            StatusCode::UNPROCESSABLE_ENTITY => "nothing was changed: correct what the message names",
            StatusCode::SERVICE_UNAVAILABLE => "try again in a moment",
            _ => "what was in force still is; see the daemon's own messages",
        };
        let hint = Some(hint.to_owned());
        let problem = Problem { code: code.into(), message: message.into(), hint, findings: Vec::new() };
        Self { status, problem: Box::new(problem) }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", message)
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    pub(super) fn unidentified(error: &super::caller::Unidentified) -> Self {
        Self::new(StatusCode::FORBIDDEN, "unidentified", error.to_string())
    }

    pub(super) fn stopped() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping")
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotPermitted(_) => Self::new(StatusCode::FORBIDDEN, "not-permitted", text),
            Refusal::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not-found", text)
                .hint("the list of its kind names what there is (`writ account list`, `writ grant list`, …)"),
            Refusal::Invalid(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", text),
            Refusal::Malformed(_) => Self::new(StatusCode::BAD_REQUEST, "invalid-request", text),
            Refusal::Unkept(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "not-kept", text)
                .hint("make room in the state directory (`[paths] state`), or make it writable"),
            Refusal::Kernel(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "kernel", text),
            Refusal::NotReady => Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", text),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        answer(self.status, &Failure { error: *self.problem })
    }
}

pub(super) fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

type Answer = Result<Response, Fault>;

fn ok(body: &impl Serialize) -> Answer {
    Ok(answer(StatusCode::OK, body))
}

/// Reads a body. Its type is not asked of the header: on a local socket nothing depends on it.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| Fault::invalid(format!("the body is not what is asked for: {error}")))
}

fn ttl(text: &str) -> Result<Duration, Fault> {
    api::duration(text).map_err(|why| Fault::invalid(format!("`ttl`: {why}")))
}

/// Asks the engine as the caller.
async fn ask<R: Send + 'static>(
    engine: &Handle,
    peer: Peer,
    question: impl FnOnce(&mut Engine, &Actor) -> Result<R, Fault> + Send + 'static,
) -> Result<R, Fault> {
    engine.ask(as_caller(peer.look().await, question)).await.map_err(|_| Fault::stopped())?
}

/// A question asked as the caller.
fn as_caller<R>(
    caller: Looked,
    question: impl FnOnce(&mut Engine, &Actor) -> Result<R, Fault>,
) -> impl FnOnce(&mut Engine) -> Result<R, Fault> {
    move |engine| {
        if !caller.is_known() {
            // How the caller and its ancestors were started may still be in the ring.
            engine.pump();
        }
        match caller.actor(engine) {
            Ok(actor) => question(engine, &actor),
            Err(error) => Err(Fault::unidentified(&error)),
        }
    }
}

/// What requests are answered with.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) engine: Handle,
    pub(super) held: Held,
    pub(super) limits: Limits,
    pub(super) receiver: ssf::Receiver,
}

impl FromRef<Serving> for Handle {
    fn from_ref(serving: &Serving) -> Self {
        serving.engine.clone()
    }
}

impl FromRef<Serving> for Held {
    fn from_ref(serving: &Serving) -> Self {
        serving.held.clone()
    }
}

impl FromRef<Serving> for Limits {
    fn from_ref(serving: &Serving) -> Self {
        serving.limits.clone()
    }
}

impl FromRef<Serving> for ssf::Receiver {
    fn from_ref(serving: &Serving) -> Self {
        serving.receiver.clone()
    }
}

/// Every route.
pub(super) fn router(serving: Serving) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/metrics", get(metrics))
        .route("/v1/reload", post(reload))
        .route("/v1/self-test", post(self_test))
        .route("/v1/uninstall", post(uninstall))
        .route("/v1/why", get(why))
        .route("/v1/simulate", post(simulate))
        .route("/v1/signals", get(signals).post(send_signal))
        .route("/v1/signals/{id}/clear", post(clear_signal))
        .route("/v1/grants", get(grants).post(create_grant))
        .route("/v1/grants/{id}/revoke", post(revoke_grant))
        .route("/v1/escalations", get(escalations))
        .route("/v1/escalations/{id}/approve", post(approve))
        .route("/v1/escalations/{id}/deny", post(deny))
        .route("/v1/sessions", get(sessions))
        .route("/v1/accounts", get(accounts))
        .route("/v1/accounts/{name}", get(account))
        .route("/v1/accounts/{name}/offboard", post(offboard))
        .route("/v1/accounts/{name}/reinstate", post(reinstate))
        .route("/v1/break-glass", post(break_glass))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/ssf/events", post(ssf::events))
        .route("/access/v1/evaluation", post(authzen::evaluation))
        .route("/access/v1/evaluations", post(authzen::evaluations))
        .route("/.well-known/authzen-configuration", get(authzen::configuration))
        .fallback(|| async { Fault::new(StatusCode::NOT_FOUND, "not-found", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not answer that method")
        })
        .layer(axum::middleware::from_fn(authzen::take_in))
        .with_state(serving)
}

/// What only root, operators and approvers may read: it names every account and what each is doing.
fn readable(engine: &Engine, actor: &Actor) -> Result<(), Fault> {
    let Some(current) = engine.current() else { return Err(Refusal::NotReady.into()) };
    let agent = &current.config.agent;
    let approver = actor.caller.may_approve(&agent.approvers, None).is_ok();
    if approver || actor.caller.is_operator(&agent.operators) || actor.caller.named_in(&agent.approvers) {
        return Ok(());
    }
    Err(Refusal::NotPermitted("only root, operators and approvers may read this".into()).into())
}

async fn status(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let status = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        let status = engine.status().ok_or(Refusal::NotReady)?;
        Ok((status, engine.vantage().ok_or(Refusal::NotReady)?))
    });
    let (mut status, vantage) = status.await?;
    // Every process and cgroup is looked at: the engine's turn is too short for that.
    let looked = tokio::task::spawn_blocking(move || vantage.look()).await;
    status.surroundings = looked.unwrap_or_default();
    ok(&status)
}

async fn metrics(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(limits): State<Limits>,
) -> Answer {
    let refused = limits.refused();
    let page = ask(&engine, peer, move |engine, actor| {
        readable(engine, actor)?;
        let status = engine.status().ok_or(Refusal::NotReady)?;
        Ok(super::metrics::render(&status, &engine.tally, refused))
    });
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, super::metrics::CONTENT_TYPE)], page.await?).into_response())
}

async fn reload(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let reloaded = ask(&engine, peer, |engine, actor| {
        let config = engine.config()?;
        if !actor.caller.is_operator(&config.agent.operators) {
            engine.note_refused("reload", actor, None, "not an operator");
            return Err(Refusal::NotPermitted("only root and operators may reload".into()).into());
        }
        engine.reload(Some(actor)).map_err(|(message, findings)| {
            let mut fault = Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration-refused", message)
                .hint("the configuration in force is unchanged; `writ check` shows the same findings");
            fault.problem.findings = findings;
            fault
        })
    });
    ok(&reloaded.await?)
}

async fn self_test(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let cgroup = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        Ok(engine.kernel.cgroup().attached.clone())
    });
    let cgroup = cgroup.await?;
    let failed =
        |error: tokio::task::JoinError| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "self-test", error.to_string());
    let outcome = tokio::task::spawn_blocking(move || crate::engine::self_test(&cgroup)).await.map_err(failed)?;
    let kept = outcome.clone();
    engine.ask(move |engine| engine.self_tested(kept)).await.map_err(|_| Fault::stopped())?;
    ok(&outcome)
}

async fn uninstall(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let removed = ask(&engine, peer, |engine, actor| {
        if !actor.caller.is_root() {
            engine.note_refused("uninstall", actor, None, "not root");
            return Err(Refusal::NotPermitted("only root can remove enforcement".into()).into());
        }
        engine.uninstall(actor).map_err(Fault::from)
    });
    ok(&json!({ "removed": removed.await? }))
}

async fn simulate(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    let asked: SimulateBody = read(&body)?;
    let simulated = ask(&engine, peer, move |engine, actor| {
        readable(engine, actor)?;
        engine.simulate(&asked).map_err(Fault::from)
    });
    ok(&simulated.await?)
}

/// For anyone: it tells callers only what their own processes were refused.
async fn why(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    ok(&ask(&engine, peer, |engine, actor| {
        // What was decided a moment ago may still be in the ring.
        engine.pump();
        engine.why(actor).map_err(Fault::from)
    })
    .await?)
}

async fn signals(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Wanted(SignalsQuery { account }): Wanted<SignalsQuery>,
) -> Answer {
    let listed = ask(&engine, peer, move |engine, actor| {
        readable(engine, actor)?;
        engine.signals(account.as_deref()).map_err(Fault::from)
    });
    ok(&listed.await?)
}

async fn send_signal(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    let sent: SignalBody = read(&body)?;
    let incoming = Incoming {
        id: sent.id,
        account: sent.account,
        kind: sent.kind,
        risk: sent.risk,
        ttl: sent.ttl.as_deref().map(ttl).transpose()?,
        evidence: sent.evidence,
        at: sent.at,
    };
    let signal =
        as_caller(peer.look().await, move |engine, actor| engine.signal(&incoming, actor).map_err(Fault::from));
    // On this thread if it can be: until another one had woken up, what it forbids would still go on.
    ok(&engine.ask_brief(signal).await.map_err(|_| Fault::stopped())??)
}

async fn clear_signal(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Bytes,
) -> Answer {
    let given: ReasonBody = read(&body)?;
    let cleared =
        ask(&engine, peer, move |engine, actor| engine.clear_signal(&id, &given.reason, actor).map_err(Fault::from));
    ok(&cleared.await?)
}

async fn grants(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let listed = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        let now = jiff::Timestamp::now();
        // What a person approved is a permission like any other: whoever looks for what is open finds it here.
        let approved = engine.live.escalations().all(now).filter_map(Escalation::as_grant);
        Ok(engine.live.grants().all(now).cloned().chain(approved).collect::<Vec<_>>())
    });
    ok(&listed.await?)
}

async fn create_grant(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    let asked: GrantBody = read(&body)?;
    let request = GrantRequest {
        account: asked.account,
        destination: asked
            .to
            .parse()
            .map_err(|error: writ_core::stance::DestinationError| Fault::invalid(error.to_string()))?,
        executable: asked.executable,
        ttl: ttl(&asked.ttl)?,
        reason: asked.reason,
        ticket: asked.ticket,
    };
    let made = ask(&engine, peer, move |engine, actor| engine.grant(&request, actor).map_err(Fault::from));
    ok(&made.await?)
}

async fn revoke_grant(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Bytes,
) -> Answer {
    // As on the command line, which needs no reason either.
    let given = if body.is_empty() { RevokeBody::default() } else { read(&body)? };
    let revoked = ask(&engine, peer, move |engine, actor| {
        // An approval is listed among the grants, and taken back like one.
        match engine.live.escalations().get(&id).and_then(Escalation::as_grant) {
            Some(approved) => Ok(engine.deny(&id, &given.reason, actor).map(|_| approved)?),
            None => Ok(engine.revoke_grant(&id, &given.reason, actor)?),
        }
    });
    ok(&revoked.await?)
}

async fn escalations(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let listed = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        Ok(engine.live.escalations().all(jiff::Timestamp::now()).cloned().collect::<Vec<_>>())
    });
    ok(&listed.await?)
}

async fn approve(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Bytes,
) -> Answer {
    let given: ApproveBody = read(&body)?;
    let ttl = ttl(&given.ttl)?;
    let approved = ask(&engine, peer, move |engine, actor| {
        engine.approve(&id, ttl, &given.reason, given.ticket.clone(), actor).map_err(Fault::from)
    });
    ok(&approved.await?)
}

async fn deny(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(id): Segment,
    body: Bytes,
) -> Answer {
    let given: ReasonBody = read(&body)?;
    let denied = ask(&engine, peer, move |engine, actor| engine.deny(&id, &given.reason, actor).map_err(Fault::from));
    ok(&denied.await?)
}

async fn sessions(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let listed = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        Ok(engine.sessions(None))
    });
    ok(&listed.await?)
}

async fn accounts(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    let listed = ask(&engine, peer, |engine, actor| {
        readable(engine, actor)?;
        engine.status().map(|status| status.accounts).ok_or_else(|| Refusal::NotReady.into())
    });
    ok(&listed.await?)
}

async fn account(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>, Segment(name): Segment) -> Answer {
    let shown = ask(&engine, peer, move |engine, actor| {
        readable(engine, actor)?;
        let config = engine.config()?;
        engine.account_view(&name).ok_or_else(|| Refusal::NotFound(config.no_such_account(&name)).into())
    });
    ok(&shown.await?)
}

/// An offboarding, and whose it is or was.
#[derive(Serialize)]
struct Offboarding {
    account: String,
    #[serde(flatten)]
    offboarded: Offboarded,
}

async fn offboard(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Bytes,
) -> Answer {
    let given: ReasonBody = read(&body)?;
    let account = name.clone();
    let done =
        ask(&engine, peer, move |engine, actor| engine.offboard(&name, &given.reason, actor).map_err(Fault::from));
    ok(&Offboarding { account, offboarded: done.await? })
}

async fn reinstate(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Segment(name): Segment,
    body: Bytes,
) -> Answer {
    let given: ReasonBody = read(&body)?;
    let account = name.clone();
    let done =
        ask(&engine, peer, move |engine, actor| engine.reinstate(&name, &given.reason, actor).map_err(Fault::from));
    ok(&Offboarding { account, offboarded: done.await? })
}

async fn break_glass(State(engine): State<Handle>, ConnectInfo(peer): ConnectInfo<Peer>, body: Bytes) -> Answer {
    let asked: BreakGlassBody = read(&body)?;
    if asked.all == asked.account.is_some() {
        return Err(Fault::invalid("either `account` names one account, or `all` is true"));
    }
    let request = BreakGlassRequest { account: asked.account, ttl: ttl(&asked.ttl)?, reason: asked.reason };
    let broken = ask(&engine, peer, move |engine, actor| engine.break_glass(&request, actor).map_err(Fault::from));
    ok(&json!(broken.await?))
}
