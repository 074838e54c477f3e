//! OpenID AuthZEN 1.0 on the socket: evaluation, evaluations, metadata.

mod read;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::read::{Batch, Semantic};
use super::caller::Peer;
use super::connection::read_whole;
use super::held::Held;
use crate::engine::{Answered, Asked, Handle, Refusal};

/// The longest that `Prefer: wait=N` holds a question.
const MOST_WAIT: Duration = Duration::from_secs(600);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An error as AuthZEN writes one: a status, and a message.
struct Trouble(StatusCode, String);

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        (self.0, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.1).into_response()
    }
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self(StatusCode::BAD_REQUEST, what)
    }
}

/// Takes a request in as a whole, and gives its answer the request's id back.
pub(super) async fn take_in(request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).cloned();
    let mut response = read_whole(request, next).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// `GET /.well-known/authzen-configuration`
pub(super) async fn configuration(State(engine): State<Handle>) -> Response {
    let https = engine.ask_brief(|engine| Some(engine.current()?.config.agent.https.as_ref()?.origin.clone()));
    // A unix socket has no origin of its own: a gateway that puts this on HTTPS states its own.
    let origin = https.await.ok().flatten().unwrap_or_else(|| "https://localhost".to_owned());
    configuration_of(origin).await
}

/// The same, by the origin that callers call it by.
pub(super) async fn configuration_of(point: String) -> Response {
    let path = |path: &str| format!("{point}{path}");
    json_answer(&json!({
        "policy_decision_point": point,
        "access_evaluation_endpoint": path("/access/v1/evaluation"),
        "access_evaluations_endpoint": path("/access/v1/evaluations"),
    }))
}

/// `POST /access/v1/evaluation`
pub(super) async fn evaluation(
    State(engine): State<Handle>,
    State(places): State<Held>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut waited = None;
    let answer = async {
        let asked = read::question(&read::object(json_body(&headers, &body)?)?)?;
        held(&engine, &places, &peer, asked, wait(&headers), &mut waited).await
    };
    respond(answer.await, waited)
}

/// `POST /access/v1/evaluations`
pub(super) async fn evaluations(
    State(engine): State<Handle>,
    State(places): State<Held>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut waited = None;
    let answer = async {
        match read::batch(&read::object(json_body(&headers, &body)?)?)? {
            Batch::Single(asked) => {
                Ok(json!(held(&engine, &places, &peer, *asked, wait(&headers), &mut waited).await?))
            }
            Batch::Several(items, semantic) => several(&engine, &peer, items, semantic).await,
        }
    };
    respond(answer.await, waited)
}

async fn several(
    engine: &Handle,
    peer: &Peer,
    items: Vec<Result<Asked, String>>,
    semantic: Semantic,
) -> Result<Value, Trouble> {
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        let (decision, answer) = match item {
            Err(what) => (false, broken(StatusCode::BAD_REQUEST, &what)),
            Ok(asked) => match ask(engine, peer, asked).await {
                Ok(answered) => (answered.decision, json!(answered)),
                // What one question may not know is no reason to refuse the others.
                Err(Trouble(StatusCode::FORBIDDEN, what)) => (false, broken(StatusCode::FORBIDDEN, &what)),
                Err(trouble) => return Err(trouble),
            },
        };
        answers.push(answer);
        let last = match semantic {
            Semantic::ExecuteAll => false,
            Semantic::DenyOnFirstDeny => !decision,
            Semantic::PermitOnFirstPermit => decision,
        };
        if last {
            break;
        }
    }
    Ok(json!({ "evaluations": answers }))
}

fn broken(status: StatusCode, what: &str) -> Value {
    json!({ "decision": false, "context": { "error": { "status": status.as_u16(), "message": what } } })
}

/// Asks once.
async fn ask(engine: &Handle, peer: &Peer, asked: Asked) -> Result<Answered, Trouble> {
    let caller = peer.look().await;
    let answered = engine.ask_recorded(move |engine| {
        let actor = caller.actor(engine).map_err(|error| Trouble(StatusCode::UNAUTHORIZED, error.to_string()))?;
        engine.decide(&asked, &actor).map_err(|refusal| match refusal {
            Refusal::NotPermitted(what) => Trouble(StatusCode::FORBIDDEN, what),
            other => Trouble(StatusCode::SERVICE_UNAVAILABLE, other.to_string()),
        })
    });
    let (answered, written) =
        answered.await.map_err(|error| Trouble(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    answered.map(|answered| if written { answered } else { answered.unrecorded() })
}

/// Asks, and holds an escalated question until a person has answered it, or the asker's patience ends. `waited` is the
/// patience that was granted: none if too many questions are held already.
async fn held(
    engine: &Handle,
    places: &Held,
    peer: &Peer,
    asked: Asked,
    patience: Option<Duration>,
    waited: &mut Option<Duration>,
) -> Result<Answered, Trouble> {
    let Some(patience) = patience else { return ask(engine, peer, asked).await };
    let mut news = engine.news();
    let answered = ask(engine, peer, asked.clone()).await?;
    let Some(id) = answered.escalation.clone() else { return Ok(answered) };
    let Some(_place) = places.take(&peer.who()) else { return Ok(answered) };
    *waited = Some(patience);
    let deadline = Instant::now() + patience;
    loop {
        let waited = id.clone();
        let pending = engine.ask(move |engine| {
            use writ_core::stance::EscalationStatus::Pending;
            let known = engine.live.escalations().get(&waited);
            known.is_some_and(|known| known.status == Pending && known.is_open(jiff::Timestamp::now()))
        });
        match pending.await {
            // Asked anew: the approval, and whatever else has changed meanwhile.
            Ok(false) => return ask(engine, peer, asked).await,
            Ok(true) => {}
            Err(error) => return Err(Trouble(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
        }
        match tokio::time::timeout_at(deadline, news.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(answered),
        }
    }
}

/// The body, if it is said to be JSON.
fn json_body<'a>(headers: &HeaderMap, body: &'a Bytes) -> Result<&'a [u8], Trouble> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(body);
    }
    Err(Trouble::from(format!("the content type is `{kind}`: send `application/json`")))
}

/// `Prefer: wait=N` (RFC 7240).
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    let mut waits = preferences.flat_map(|value| value.split([',', ';'])).filter_map(|preference| {
        let (name, seconds) = preference.trim().split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("wait") {
            return None;
        }
        seconds.trim().trim_matches('"').parse().ok()
    });
    waits.next().map(|seconds| Duration::from_secs(seconds).min(MOST_WAIT))
}

fn respond(answer: Result<impl Serialize, Trouble>, waited: Option<Duration>) -> Response {
    let mut response = match answer {
        Ok(answer) => json_answer(&answer),
        Err(trouble) => trouble.into_response(),
    };
    if let Some(value) = waited.and_then(|waited| HeaderValue::try_from(format!("wait={}", waited.as_secs())).ok()) {
        response.headers_mut().insert(HeaderName::from_static("preference-applied"), value);
    }
    response
}

fn json_answer(body: &impl Serialize) -> Response {
    // An answer holds for the asker and for as long as it says itself.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    match serde_json::to_vec(body) {
        Ok(body) => (StatusCode::OK, headers, body).into_response(),
        Err(error) => Trouble(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_from_any_preference_and_bounded() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("wait=5"), Some(5));
        assert_eq!(of("respond-async, wait=7"), Some(7));
        assert_eq!(of("wait=100000"), Some(600));
        assert_eq!(of("return=minimal"), None);
        assert_eq!(wait(&HeaderMap::new()), None);
    }
}
