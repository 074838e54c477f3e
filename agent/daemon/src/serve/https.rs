//! The decision point over HTTPS, off unless configured: declared callers, known by certificate or token, each asking as a
//! service account.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use writ_core::config::Https;

use super::caller::{Peer, Remote};
use super::connection::{self, Connections};
use super::routes::{Fault, Serving};
use super::socket::ServeError;
use super::tls::Identity;
use super::{authzen, changes, ssf, tls, token};
use crate::engine::{Actor, Handle};

/// How long a handshake may take: whoever only opens a connection holds it no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A listener that speaks TLS.
pub(crate) struct HttpsServer {
    listener: TcpListener,
    identity: Identity,
    https: Https,
}

/// Listens.
///
/// # Errors
/// The address is taken, or a certificate cannot be used.
pub(crate) async fn bind_https(https: &Https) -> Result<HttpsServer, ServeError> {
    let failed = |why: String| ServeError { path: format!("https://{}", https.listen), why };
    let identity = Identity::new(https).map_err(failed)?;
    let listener = TcpListener::bind(https.listen).await.map_err(|error| failed(error.to_string()))?;
    Ok(HttpsServer { listener, identity, https: https.clone() })
}

impl HttpsServer {
    /// Answers until `stop` says so.
    pub(super) async fn serve(mut self, serving: Serving, stop: watch::Receiver<bool>) {
        let engine = serving.engine.clone();
        let router = router(serving, Arc::new(self.https.clone()));
        let connections = Connections::default();
        let mut stopping = stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            let Some((stream, address)) = settled(accepted).await else { continue };
            let Some(admitted) = connections.admit(&address.ip().to_string()) else { continue };
            let acceptor = self.identity.acceptor();
            let (router, stop, engine) = (router.clone(), stop.clone(), engine.clone());
            tokio::spawn(async move {
                let _admitted = admitted;
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
                let Ok(peer) = peer(&engine, address, certificate).await else { return };
                connection::converse(stream, router, peer, stop).await;
            });
        }
    }
}

async fn settled(accepted: io::Result<(TcpStream, SocketAddr)>) -> Option<(TcpStream, SocketAddr)> {
    match accepted {
        Ok((stream, address)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, address))
        }
        Err(error) => {
            // Too many open files, for one: it passes.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// The peer, by its certificate if it showed one that is declared.
async fn peer(
    engine: &Handle,
    address: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
) -> Result<Peer, crate::engine::Stopped> {
    let Some(certificate) = certificate else { return Ok(Peer::remote(Remote::unknown(address))) };
    let name = engine.ask(move |engine| {
        let https = engine.current()?.config.agent.https.as_ref()?;
        tls::caller_of(&certificate, https.callers.iter())
    });
    Ok(Peer::remote(Remote { name: name.await?, address, by: "certificate" }))
}

fn router(serving: Serving, https: Arc<Https>) -> Router {
    let asked = Router::new()
        .route("/v1/changes", get(changes::changes))
        .route("/access/v1/evaluation", post(authzen::evaluation))
        .route("/access/v1/evaluations", post(authzen::evaluations))
        .layer(middleware::from_fn_with_state((serving.engine.clone(), Arc::clone(&https)), authenticate));
    Router::new()
        .merge(asked)
        // Who signed is what counts.
        .route("/v1/ssf/events", post(ssf::events))
        .route("/.well-known/authzen-configuration", get(move || authzen::configuration_of(https.origin.clone())))
        .fallback(|| async { Fault::new(StatusCode::NOT_FOUND, "not-found", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not answer that method")
        })
        .layer(middleware::from_fn(authzen::take_in))
        .with_state(serving)
}

/// Lets a request pass whose caller is known by its certificate, or by its token.
async fn authenticate(
    State((engine, https)): State<(Handle, Arc<Https>)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(remote) = peer.as_remote().cloned() else { return next.run(request).await };
    if remote.name.is_some() {
        return next.run(request).await;
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(token::bearer).map(str::to_owned);
    let name = match (&given, &https.tokens) {
        // Read each time: a token that was taken out opens nothing any more.
        (Some(given), Some(file)) => match tokio::fs::read_to_string(file).await {
            Ok(text) => token::caller_of(given, &text),
            Err(error) => {
                tracing::error!(%error, file, "the tokens of `[https]` cannot be read");
                None
            }
        },
        _ => None,
    };
    let Some(name) = name else {
        let what =
            if given.is_some() { "the token is not known" } else { "no certificate or token of a declared caller" };
        let actor = Actor::remote(&remote.address.to_string());
        let note = engine.ask(move |engine| engine.note_refused("authenticate", &actor, None, what));
        if note.await.is_err() {
            return Fault::stopped().into_response();
        }
        let mut answer = (StatusCode::UNAUTHORIZED, what).into_response();
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"writ\""));
        return answer;
    };
    let known = Peer::remote(Remote { name: Some(name), by: "token", ..remote });
    request.extensions_mut().insert(ConnectInfo(known));
    next.run(request).await
}
