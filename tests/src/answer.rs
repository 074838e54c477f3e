//! The daemon's API as any client sees it: HTTP on the unix socket, one request per connection.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// What was answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// Asks, and waits for the answer.
#[track_caller]
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> Answer {
    let mut stream = UnixStream::connect(socket).expect("cannot reach the daemon's socket");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: writ\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("cannot send the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("cannot read the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer has a status");
    Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) }
}
