//! Questions to the daemon's API, as `writ simulate` and its kin ask them, without a process for each.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// One connection to the daemon.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// Connects to the socket.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        Self { stream: BufReader::new(stream) }
    }

    /// Posts a question; the status and the answer.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: writ\r\ncontent-length: {}\r\n\r\n", body.len());
        self.exchange(&format!("{head}{body}"))
    }

    /// Posts JSON and says so, as AuthZEN asks for; the status and the answer.
    #[track_caller]
    pub fn post_json(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.exchange(&json_request(path, body))
    }

    /// Reads; the status and the answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> (u16, Value) {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: writ\r\n\r\n"))
    }

    /// Posts JSON as long as the daemon is there; `None`: it has hung up.
    pub fn post_json_while_it_lasts(&mut self, path: &str, body: &Value) -> Option<(u16, Value)> {
        self.try_exchange(&json_request(path, body)).ok()
    }

    #[track_caller]
    fn exchange(&mut self, request: &str) -> (u16, Value) {
        self.try_exchange(request).expect("the daemon answers")
    }

    fn try_exchange(&mut self, request: &str) -> io::Result<(u16, Value)> {
        self.stream.get_mut().write_all(request.as_bytes())?;
        let head = self.line()?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {head:?}")))?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length is a number");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn json_request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let kind = "content-type: application/json";
    format!("POST {path} HTTP/1.1\r\nhost: writ\r\n{kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
