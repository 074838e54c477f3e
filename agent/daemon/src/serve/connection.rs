//! Connections: how many at once, how long each may take over a request, and HTTP/1.1 on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::caller::Peer;
use super::routes::Fault;

/// How many connections from other hosts are open at most.
const MOST: usize = 1_024;
/// How many of one address.
const MOST_EACH: usize = 320;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(20);
/// How long a request's body may take.
const BODY: Duration = Duration::from_secs(10);
/// The largest request body.
const MOST_BYTES: usize = 256 * 1024;
/// The largest head.
const MOST_HEAD: usize = 32 * 1024;
/// How long answers under way are waited for at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Open files beside connections: maps, links, the log, and what is kept open of each local process that asks.
const FILES: u64 = 4_096;

/// Makes room for every connection that may be admitted: one too many open files would be the log's.
pub(crate) fn make_room() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = 2 * MOST as u64 + FILES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft {
        soft if soft >= wanted => Ok(()),
        _ => setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

/// The open connections from other hosts, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections {
    by: Arc<Mutex<HashMap<String, usize>>>,
}

/// One connection that counts; given back when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    connections: Connections,
    who: String,
}

impl Connections {
    /// Admits one more; `None`: it is to be closed at once.
    pub(super) fn admit(&self, who: &str) -> Option<Admitted> {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        let own = by.get(who).copied().unwrap_or(0);
        if own >= MOST_EACH || by.values().sum::<usize>() >= MOST {
            return None;
        }
        by.insert(who.to_owned(), own + 1);
        Some(Admitted { connections: self.clone(), who: who.to_owned() })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut by = self.connections.by.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                by.remove(&self.who);
            }
        }
    }
}

/// Speaks HTTP on a connection until the peer has had enough, takes too long, or `stop` says so.
pub(super) async fn converse<I>(io: I, router: Router, peer: Peer, mut stop: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How a connection ends is its peer's business.
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}

/// Takes a request's body in before anything else is done for it: a slow or endless one costs its sender's connection only.
pub(super) async fn read_whole(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY, axum::body::to_bytes(body, MOST_BYTES)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(error)) => {
            let too_large = std::error::Error::source(&error)
                .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
            if too_large {
                return Fault::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too-large",
                    format!("a body has at most {MOST_BYTES} bytes"),
                )
                .into_response();
            }
            Fault::new(StatusCode::BAD_REQUEST, "invalid-request", "the body ended early").into_response()
        }
        Err(_) => {
            let mut answer = Fault::new(
                StatusCode::REQUEST_TIMEOUT,
                "too-slow",
                format!("the body took more than {} s", BODY.as_secs()),
            )
            .into_response();
            answer.headers_mut().insert(axum::http::header::CONNECTION, axum::http::HeaderValue::from_static("close"));
            answer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_every_connection_and_places_come_back() {
        let connections = Connections::default();
        let mut open: Vec<_> = (0..MOST_EACH).map(|_| connections.admit("10.0.0.1").unwrap()).collect();
        assert!(connections.admit("10.0.0.1").is_none());
        for host in 0..MOST {
            open.extend(connections.admit(&host.to_string()));
        }
        assert_eq!(open.len(), MOST);
        open.clear();
        assert!(connections.by.lock().unwrap().is_empty());
    }
}
