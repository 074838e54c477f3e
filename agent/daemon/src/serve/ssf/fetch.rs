//! One HTTP request to a transmitter: over TLS, or in the clear to this host only; bounded in time and size, no redirects.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer.
const MOST_BYTES: usize = 256 * 1024;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    pub(super) url: String,
    /// The file of authorities that the server's certificate is verified with.
    pub(super) ca: String,
    /// The `Authorization` header.
    pub(super) authorization: Option<String>,
    /// JSON to post; without it, the request is a GET.
    pub(super) post: Option<String>,
}

/// Makes the request; the status and the body.
///
/// # Errors
/// What went wrong, in words.
pub(super) async fn call(call: &Call) -> Result<(u16, Bytes), String> {
    match tokio::time::timeout(PATIENCE, exchange(call)).await {
        Ok(done) => done.map_err(|error| format!("`{}`: {error}", call.url)),
        Err(_) => Err(format!("`{}`: no answer within {} s", call.url, PATIENCE.as_secs())),
    }
}

async fn exchange(call: &Call) -> Result<(u16, Bytes), String> {
    let uri: Uri = call.url.parse().map_err(|_| "it is not a URL".to_owned())?;
    let host = uri.host().ok_or("it names no host")?.trim_matches(['[', ']']).to_owned();
    match uri.scheme_str() {
        Some("https") => {
            let stream = dial(&host, uri.port_u16().unwrap_or(443)).await?;
            let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
            let connector = TlsConnector::from(Arc::new(client(&call.ca)?));
            send(connector.connect(name, stream).await.map_err(|error| error.to_string())?, &uri, call).await
        }
        Some("http") if loopback(&host) => send(dial(&host, uri.port_u16().unwrap_or(80)).await?, &uri, call).await,
        _ => Err("only https, or http to this host, can be trusted".to_owned()),
    }
}

/// Whether nobody on a network is asked.
fn loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| error.to_string())
}

fn client(ca: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(ca).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    roots.add_parsable_certificates(read.map_err(|error| format!("`{ca}`: {error}"))?);
    if roots.is_empty() {
        return Err(format!("`{ca}` has no certificate that can be used"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

async fn send<I>(stream: I, uri: &Uri, call: &Call) -> Result<(u16, Bytes), String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
    let driving = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let method = if call.post.is_some() { Method::POST } else { Method::GET };
    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    request = request.header(header::ACCEPT, "application/json").header(header::CONNECTION, "close");
    if let Some(authorization) = &call.authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    if call.post.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(call.post.clone().unwrap_or_default()));
    let request = request.body(body).map_err(|error| words(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| words(&error))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await.map_err(|error| error.to_string())?;
    driving.abort();
    Ok((status, body.to_bytes()))
}
