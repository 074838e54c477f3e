//! `POST /v1/ssf/events`: security event tokens pushed (RFC 8935) become signals of the account they are about.

#[cfg(test)]
mod fuzz;
mod meaning;
mod token;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jsonwebtoken::jwk::JwkSet;
use serde_json::json;
use writ_core::config::Transmitter;
use writ_core::signal::{Caller, Incoming};

use self::token::{Event, Refused, refused};
use super::caller::Peer;
use crate::engine::{Actor, Engine, Handle};

/// Ids of signals are at most this long; a longer `jti` is cut after what tells it apart.
const LONGEST_ID: usize = 128;

/// `POST /v1/ssf/events`. Anyone may deliver: what counts is who signed.
pub(super) async fn events(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let outcome = match accept(&engine, &headers, &body).await {
        Ok((issuer, transmitter, event)) => {
            let taken = engine.ask(move |engine| take(engine, &peer, &issuer, &transmitter, &event)).await;
            taken.map_err(|_| None)
        }
        Err(Some(refusal)) => {
            let noted = refusal.clone();
            let note = move |engine: &mut Engine| {
                let actor = peer.actor(engine).unwrap_or_else(|_| peer.unknown());
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
    // Read each time: a rotated key is known as soon as the file has it.
    let keys = tokio::fs::read(&transmitter.jwks).await.map_err(|error| error.to_string());
    let keys = keys.and_then(|text| serde_json::from_slice::<JwkSet>(&text).map_err(|error| error.to_string()));
    let keys = keys.map_err(|error| {
        tracing::error!(error, file = transmitter.jwks, "the keys of a transmitter cannot be read");
        None
    })?;
    let event = token::verify(token, &issuer, &transmitter, &keys, Timestamp::now()).map_err(Some)?;
    Ok((issuer, transmitter, event))
}

/// Makes the event a signal. What is well said but means nothing here is accepted, and recorded as not taken: RFC 8935's
/// errors are for tokens that are wrong.
fn take(engine: &mut Engine, peer: &Peer, issuer: &str, transmitter: &Transmitter, event: &Event) {
    let delivered = peer.actor(engine).unwrap_or_else(|_| peer.unknown());
    let actor = Actor { caller: Caller::detector(issuer), ..delivered };
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
    if let Err(refusal) = engine.signal(&incoming, &actor) {
        tracing::warn!(%refusal, issuer, "a security event was not taken");
    }
}
