//! `POST /v1/ssf/events`: security event tokens pushed (RFC 8935) become signals of the account they are about.

mod fetch;
#[cfg(test)]
mod fuzz;
mod keys;
mod meaning;
mod token;
mod verification;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use writ_core::config::Transmitter;
use writ_core::signal::{Caller, Incoming, Signal};

use self::token::{Event, Refused, refused};
use super::caller::{Looked, Peer};
use crate::engine::{Actor, Engine, Handle};

const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";

/// What the receiver keeps between deliveries.
#[derive(Clone, Debug, Default)]
pub(super) struct Receiver {
    keys: keys::Keys,
    asked: verification::Asked,
}

impl Receiver {
    /// Asks transmitters to verify their streams until `stop` says so.
    pub(super) async fn keep_asking(self, engine: Handle, stop: watch::Receiver<bool>) {
        verification::keep_asking(engine, self.asked, stop).await;
    }
}

/// Ids of signals are at most this long; a longer `jti` is cut after what tells it apart.
const LONGEST_ID: usize = 128;

/// `POST /v1/ssf/events`. Anyone may deliver: what counts is who signed.
pub(super) async fn events(
    State(engine): State<Handle>,
    State(receiver): State<Receiver>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let outcome = match accept(&engine, &receiver, &headers, &body).await {
        Ok((issuer, transmitter, event)) => {
            let caller = peer.look().await;
            let taken = engine.ask(move |engine| take(engine, &caller, &issuer, &transmitter, &event)).await;
            taken.map_err(|_| None)
        }
        Err(Some(refusal)) => {
            let (noted, caller) = (refusal.clone(), peer.look().await);
            let note = move |engine: &mut Engine| {
                let actor = caller.anybody(engine);
                let why = format!("{}: {}", noted.err, noted.description);
                engine.note_refused("security event", &actor, None, &why);
            };
            engine.ask(note).await.map_err(|_| None).and(Err(Some(refusal)))
        }
        Err(None) => Err(None),
    };
    match outcome {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(Some(refusal)) => {
            let body = json!({ "err": refusal.err, "description": refusal.description }).to_string();
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LANGUAGE, "en")];
            (StatusCode::BAD_REQUEST, headers, body).into_response()
        }
        // The transmitter delivers again.
        Err(None) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Verifies what was delivered. `None`: writ cannot now, and nothing is wrong with the token.
async fn accept(
    engine: &Handle,
    receiver: &Receiver,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<(String, Transmitter, Event), Option<Refused>> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/secevent+jwt") {
        return Err(Some(refused("invalid_request", "the content type is not `application/secevent+jwt`")));
    }
    let token = std::str::from_utf8(body).map_err(|_| Some(refused("invalid_request", "the body is not a token")))?;
    let token = token.trim();
    let issuer = token::claimed_issuer(token).map_err(Some)?;
    let wanted = issuer.clone();
    let found = engine.ask(move |engine| Some(engine.current()?.config.agent.ssf.get(&wanted).cloned()));
    let transmitter = found.await.map_err(|_| None)?.ok_or(None)?;
    let Some(transmitter) = transmitter else {
        return Err(Some(refused("invalid_issuer", format!("no `[ssf.\"{issuer}\"]` is configured"))));
    };
    let unreadable = |error: String| {
        tracing::error!(error, "there are no keys to verify a transmitter's tokens with");
        None
    };
    let mut keys = receiver.keys.of(&transmitter, false).await.map_err(unreadable)?;
    if !token::names_known_key(token, &keys) {
        // It may have been rotated: asked for again, at most once in a while.
        let too_early = |error: String| {
            tracing::debug!(error, "a token names a key that is not known yet");
            None
        };
        keys = receiver.keys.of(&transmitter, true).await.map_err(too_early)?;
    }
    let event = token::verify(token, &issuer, &transmitter, &keys, Timestamp::now()).map_err(Some)?;
    if event.kind == VERIFICATION {
        let state = event.body.get("state").and_then(serde_json::Value::as_str);
        if !receiver.asked.answers(&issuer, state) {
            return Err(Some(refused("invalid_state", "`state` is not what was asked with")));
        }
        let stream = transmitter.verification.as_ref().map(|verification| verification.stream.as_str());
        let about = event.subject.get("id").and_then(serde_json::Value::as_str);
        if stream.is_some() && about != stream {
            return Err(Some(refused("invalid_request", "`sub_id` is not the stream that is configured")));
        }
    }
    Ok((issuer, transmitter, event))
}

/// Makes the event a signal. What is well said but means nothing here is accepted, and recorded as not taken: RFC 8935's
/// errors are for tokens that are wrong.
fn take(engine: &mut Engine, caller: &Looked, issuer: &str, transmitter: &Transmitter, event: &Event) {
    let delivered = caller.anybody(engine);
    let actor = Actor { caller: Caller::transmitter(issuer), ..delivered };
    if event.kind == VERIFICATION {
        verified(engine, transmitter, event, &actor);
        return;
    }
    let kind = meaning::kind(&event.kind, &event.body, transmitter);
    let account = meaning::account(&event.subject, transmitter);
    let (Some(kind), Some(account)) = (&kind, &account) else {
        let what = if kind.is_none() { "the event type has no signal kind" } else { "the subject is no account here" };
        engine.note_refused("security event", &actor, account, &format!("{what}: {} {}", event.kind, event.subject));
        return;
    };
    let mut id = event.jti.clone();
    id.retain(|character| character.is_ascii_graphic());
    id.truncate(LONGEST_ID);
    let incoming = Incoming {
        id: Some(id),
        account: account.clone(),
        kind: kind.clone(),
        risk: None,
        ttl: None,
        evidence: event.body.get("reason_admin").map(ToString::to_string),
        at: Some(event.at),
    };
    // A repeat is answered as it was the first time; a kind that signals.d does not declare is recorded as refused.
    match engine.signal(&incoming, &actor) {
        Ok(received) => {
            if let Some(signal) = received.outcome.accepted() {
                supersede(engine, signal, &actor);
            }
        }
        Err(refusal) => tracing::warn!(%refusal, issuer, "a security event was not taken"),
    }
}

/// Ends what the same transmitter said before and this statement replaces. Only once the new one holds: in between, both do.
fn supersede(engine: &mut Engine, signal: &Signal, actor: &Actor) {
    let replaced = meaning::superseded(&signal.kind);
    let older = engine.live.signals().live(&signal.account, Timestamp::now()).filter(|known| {
        replaced.contains(&known.kind.as_str()) && known.source.same(&signal.source) && known.at <= signal.at
    });
    let ids: Vec<String> = older.map(|known| known.id.clone()).collect();
    for id in ids {
        if let Err(refusal) = engine.clear_signal(&id, &format!("superseded by {}", signal.id), actor) {
            tracing::warn!(%refusal, id, "an earlier statement could not be ended");
        }
    }
}

/// A stream that was verified is alive: each account it is about gets the freshness that is configured for it.
fn verified(engine: &mut Engine, transmitter: &Transmitter, event: &Event, actor: &Actor) {
    let Some(kind) = &transmitter.heartbeat else { return };
    let accounts: std::collections::BTreeSet<&String> = transmitter.subjects.values().collect();
    for account in accounts {
        let incoming = Incoming {
            // One event is a signal to each account.
            id: None,
            account: account.clone(),
            kind: kind.clone(),
            risk: None,
            ttl: None,
            evidence: Some("the stream was verified".to_owned()),
            at: Some(event.at),
        };
        if let Err(refusal) = engine.signal(&incoming, actor) {
            tracing::warn!(%refusal, account, "a verified stream's freshness was not taken");
        }
    }
}
