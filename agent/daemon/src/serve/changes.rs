//! `GET /v1/changes`: what changed since an index of the log, as one answer that waits or as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::Channel;
use hyper::body::{Bytes, Frame};
use serde::Deserialize;
use tokio::time::Instant;

use super::caller::Peer;
use super::routes::Fault;
use super::segment::Wanted;
use crate::engine::{Change, Engine, Handle, Page};

/// How long an answer waits for a change, unless the asker says otherwise, and at most.
const WAIT: u64 = 30;
const MOST_WAIT: u64 = 300;
/// How often a silent stream says that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Since {
    since: Option<u64>,
    wait: Option<u64>,
    account: Option<String>,
}

/// What the peer may see of what followed. Whether it may see an account's changes is whether it may ask about it.
async fn page(engine: &Handle, peer: &Peer, since: Option<u64>, account: Option<String>) -> Result<Page, Fault> {
    let caller = peer.look().await;
    let look = move |engine: &mut Engine| {
        let actor = caller.actor(engine).map_err(|error| Fault::unidentified(&error))?;
        let current = engine.current().ok_or(crate::engine::Refusal::NotReady)?;
        let operator = actor.caller.is_operator(&current.config.agent.operators);
        let visible = |change: &Change| match &change.account {
            Some(about) => {
                let wanted = account.as_ref().is_none_or(|account| account == about);
                // A subject that is no account is written as Cedar does: `user::"alice"`.
                let (account, kind) = match about.split_once("::\"") {
                    Some((kind, _)) => (None, kind),
                    None => (Some(about.as_str()), "ServiceAccount"),
                };
                let may = wanted && (operator || engine.may_ask(account, kind, &actor).unwrap_or(false));
                may.then(|| change.clone())
            }
            // That everything may have changed concerns everybody; who did it and how does not.
            None => Some(Change { record: change.record.clone().filter(|_| operator), ..change.clone() }),
        };
        Ok(engine.changes.since(since, visible))
    };
    engine.ask(look).await.map_err(|_| Fault::stopped())?
}

/// `GET /v1/changes?since=INDEX&wait=SECONDS&account=NAME`
pub(super) async fn changes(
    State(engine): State<Handle>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Wanted(wanted): Wanted<Since>,
    headers: HeaderMap,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let since = text("last-event-id").and_then(|id| id.parse().ok()).or(wanted.since);
    if text("accept").is_some_and(|accept| accept.contains("text/event-stream")) {
        return stream(engine, peer, since, wanted.account).await.unwrap_or_else(Fault::into_response);
    }
    let patience = Duration::from_secs(wanted.wait.unwrap_or(WAIT).min(MOST_WAIT));
    match one_page(&engine, &peer, since, wanted.account, patience).await {
        Ok(page) => super::routes::answer(StatusCode::OK, &page),
        Err(fault) => fault.into_response(),
    }
}

async fn one_page(
    engine: &Handle,
    peer: &Peer,
    since: Option<u64>,
    account: Option<String>,
    patience: Duration,
) -> Result<Page, Fault> {
    let deadline = Instant::now() + patience;
    let mut news = engine.news();
    loop {
        let found = page(engine, peer, since, account.clone()).await?;
        if since.is_none() || found.reset || !found.changes.is_empty() {
            return Ok(found);
        }
        match tokio::time::timeout_at(deadline, news.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Fault::stopped()),
            Err(_) => return Ok(found),
        }
    }
}

async fn stream(engine: Handle, peer: Peer, since: Option<u64>, account: Option<String>) -> Result<Response, Fault> {
    let mut news = engine.news();
    let mut found = page(&engine, &peer, since, account.clone()).await?;
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
    let telling = async move {
        let mut next = found.next;
        let mut text = format!("id: {next}\nevent: open\ndata: {{\"next\":{next}}}\n\n");
        loop {
            text.push_str(&events(&found));
            if !text.is_empty() && sender.send_data(Bytes::from(std::mem::take(&mut text))).await.is_err() {
                return;
            }
            next = found.next.max(next);
            match tokio::time::timeout(ALIVE, news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => text.push_str(": alive\n\n"),
            }
            // A peer whose process is gone, or that may see less by now, is asked for again each time.
            match page(&engine, &peer, Some(next), account.clone()).await {
                Ok(more) => found = more,
                Err(_) => return,
            }
        }
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, Body::new(Told { telling: Some(Box::pin(telling)), body })).into_response())
}

/// A stream and what fills it, as one body: the connection that sends it drives both, and they end together. A task of its own
/// would outlive its connection, whose place is another's by then.
struct Told {
    telling: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    body: Channel<Bytes, Infallible>,
}

impl hyper::body::Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(telling) = &mut self.telling
            && telling.as_mut().poll(context).is_ready()
        {
            self.telling = None;
        }
        Pin::new(&mut self.body).poll_frame(context)
    }
}

/// The page as server-sent events. An event's id is where to go on after it.
fn events(page: &Page) -> String {
    let mut text = String::new();
    if page.reset {
        text.push_str(&format!("id: {}\nevent: reset\ndata: {{\"next\":{}}}\n\n", page.next, page.next));
    }
    for change in &page.changes {
        let data = serde_json::to_string(change).unwrap_or_default();
        text.push_str(&format!("id: {}\nevent: {}\ndata: {data}\n\n", change.sequence + 1, change.kind));
    }
    text
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn what_fills_a_stream_ends_with_the_connection_that_sends_it() {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
        let (place, freed) = tokio::sync::oneshot::channel::<()>();
        let telling = async move {
            let _place = place;
            let _ = sender.send_data(Bytes::from_static(b"first")).await;
            std::future::pending::<()>().await;
        };
        let mut told = Told { telling: Some(Box::pin(telling)), body };
        let first = told.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "first");
        drop(told);
        assert!(freed.await.is_err(), "it is gone");
    }

    #[tokio::test]
    async fn a_stream_ends_when_nothing_fills_it_any_more() {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
        let telling = async move {
            let _ = sender.send_data(Bytes::from_static(b"last")).await;
        };
        let told = Told { telling: Some(Box::pin(telling)), body };
        assert_eq!(told.collect().await.unwrap().to_bytes(), "last");
    }
}
