//! The command line's side of the API: one request over the unix socket, answered or said to be unreachable within 5 s.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{Failure, Problem};

/// How long the daemon may be silent: so long for an answer, and then so long for any sign of life. Together five seconds.
const PATIENCE: Duration = Duration::from_secs(4);
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long a daemon that is alive may work on an answer: a grant or a reload compiles policy for every account.
const MOST: Duration = Duration::from_secs(120);

/// Why there is no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("the daemon does not answer at `{path}`: {why}")]
    Unreachable {
        /// The socket.
        path: String,
        /// Why.
        why: String,
    },
    /// Somebody listens, and says nothing.
    #[error("the daemon at `{path}` has been silent for {seconds} s")]
    Silent {
        /// The socket.
        path: String,
        /// For how long.
        seconds: u64,
    },
    /// The daemon refused.
    #[error("{}", .problem.message)]
    Refused {
        /// The status.
        status: u16,
        /// What it said.
        problem: Box<Problem>,
    },
    /// The answer makes no sense.
    #[error("the daemon's answer could not be read: {0}")]
    Garbled(String),
}

impl ClientError {
    /// The exit code (`docs/cli.md`).
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => 69,
            Self::Refused { status: 403, .. } => 77,
            Self::Refused { status: 429 | 503, .. } => 69,
            Self::Refused { status: 400, .. } => 64,
            Self::Refused { status: 404 | 422, .. } => 1,
            Self::Refused { .. } | Self::Garbled(_) => 70,
        }
    }
}

/// A client of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Client<'a> {
    socket: &'a Path,
}

impl<'a> Client<'a> {
    /// A client of the daemon at this socket.
    pub(crate) fn new(socket: &'a Path) -> Self {
        Self { socket }
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, None).await
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Garbled(error.to_string()))?;
        self.request(Method::POST, path, Some(body)).await
    }

    /// Whether the daemon answers anything at all; a path that is not there needs no turn of the engine.
    async fn is_alive(&self) -> bool {
        let exchange = async {
            let stream = UnixStream::connect(self.socket).await.ok()?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::spawn(connection);
            let request =
                Request::builder().uri("/").header(hyper::header::HOST, "writ").body(Full::<Bytes>::default());
            sender.send_request(request.ok()?).await.ok()
        };
        matches!(tokio::time::timeout(SIGN_OF_LIFE, exchange).await, Ok(Some(_)))
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { path: self.socket.display().to_string(), why };
        let exchange = async {
            let stream = UnixStream::connect(self.socket).await.map_err(|error| unreachable(error.to_string()))?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(hyper::header::HOST, "writ")
                .header(hyper::header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.unwrap_or_default())))
                .map_err(|error| ClientError::Garbled(error.to_string()))?;
            let answer = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            Ok((status, bytes))
        };
        let mut exchange = std::pin::pin!(exchange);
        let began = tokio::time::Instant::now();
        let (status, bytes) = loop {
            if let Ok(done) = tokio::time::timeout(PATIENCE, &mut exchange).await {
                break done?;
            }
            if began.elapsed() > MOST || !self.is_alive().await {
                let path = self.socket.display().to_string();
                return Err(ClientError::Silent { path, seconds: began.elapsed().as_secs_f32().round() as u64 });
            }
        };
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes).map_err(|error| ClientError::Garbled(error.to_string()));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(ClientError::Refused { status: status.as_u16(), problem: Box::new(failure.error) }),
            Err(_) => Err(ClientError::Garbled(format!("status {status}: {}", String::from_utf8_lossy(&bytes)))),
        }
    }
}

/// A name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}
