//! The systemd journal, in its native protocol: each record as an entry with structured fields.
//!
//! A message is sent when the kernel has taken it over, so that one record can be there twice if the daemon is killed
//! between two system calls; `WRIT_ID` tells.

use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt::SndBuf};
use writ_core::record::{Body, Record, Verdict};

use super::position::Resumed;
use super::{Line, SinkError, Target};
use crate::cli::show::summary;

/// How long the journal may take to take a message.
const PATIENCE: Duration = Duration::from_secs(1);
/// Send buffer, as systemd's own clients ask for it: the longest record is one datagram.
const SEND_BUFFER: usize = 8 << 20;

/// `MESSAGE_ID` by type of record; they never change (docs/export.md).
const MESSAGE_IDS: [(&str, &str); 8] = [
    ("decision", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e01"),
    ("observation", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e02"),
    ("change", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e03"),
    ("cut", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e04"),
    ("escalation", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e05"),
    ("grant", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e06"),
    ("loss", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e07"),
    ("lifecycle", "6d3a1f0c52b84d1f9a5e0f7c1b9d4e08"),
];

/// The journal's socket.
pub(super) struct Journald {
    path: PathBuf,
    identity: String,
    socket: Option<UnixDatagram>,
}

impl Journald {
    pub(super) fn new(path: &Path, identity: &str) -> Self {
        Self { path: path.to_owned(), identity: identity.to_owned(), socket: None }
    }

    fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(PATIENCE))?;
                // Less than asked for is enough for most records; the others travel as a file.
                let _ = setsockopt(&socket, SndBuf, &SEND_BUFFER);
                self.socket.insert(socket)
            }
        };
        match socket.send_to(entry, &self.path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                send_as_file(socket, &self.path, entry)
            }
            other => other.map(drop),
        }
    }
}

/// A message that is too long for a datagram is handed over as a sealed file.
fn send_as_file(socket: &UnixDatagram, path: &Path, entry: &[u8]) -> io::Result<()> {
    let file = memfd_create("writ-record", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(entry)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let (to, files) = (UnixAddr::new(path)?, [file.as_raw_fd()]);
    let message = [ControlMessage::ScmRights(&files)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&[])], &message, MsgFlags::empty(), Some(&to))?;
    Ok(())
}

impl Target for Journald {
    fn resume(&mut self, from: &Resumed) -> Result<u64, SinkError> {
        Ok(from.next)
    }

    fn deliver(&mut self, lines: &[Line], done: &mut dyn FnMut(u64, &str)) -> Result<u64, SinkError> {
        let mut sent = 0;
        for (index, line) in lines {
            let entry = entry(line, &self.identity, *index);
            self.send(&entry).map_err(SinkError::io("send to", &self.path))?;
            sent += 1;
            done(index + 1, "");
        }
        Ok(sent)
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        // What the journal took is the journal's to keep.
        Ok(())
    }
}

/// One record as an entry.
pub(super) fn entry(line: &[u8], log: &str, index: u64) -> Vec<u8> {
    let mut entry = Entry(Vec::with_capacity(2 * line.len()));
    entry.field("SYSLOG_IDENTIFIER", b"writ");
    entry.text("WRIT_LOG", log);
    entry.text("WRIT_INDEX", &index.to_string());
    entry.field("WRIT_RECORD", line);
    match Record::from_line(line) {
        Ok(record) => entry.describe(&record),
        Err(error) => {
            entry.field("PRIORITY", b"3");
            entry.text("MESSAGE", &format!("a line of the log is no record: {error}"));
        }
    }
    entry.0
}

struct Entry(Vec<u8>);

impl Entry {
    /// A field whose value may be any bytes.
    fn field(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            // With a newline in it, it is written with its length: a process chooses its own name.
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.field(name, value.as_bytes());
    }

    fn describe(&mut self, record: &Record) {
        let kind = record.body.kind();
        self.text("MESSAGE", summary(record).split_whitespace().collect::<Vec<_>>().join(" ").as_str());
        self.text("PRIORITY", priority(&record.body));
        if let Some((_, id)) = MESSAGE_IDS.iter().find(|(known, _)| *known == kind) {
            self.text("MESSAGE_ID", id);
        }
        self.text("WRIT_TYPE", kind);
        self.text("WRIT_ID", &record.id);
        self.text("WRIT_TIME", &record.time.to_string());
        if let Some(account) = record.body.account() {
            self.text("WRIT_ACCOUNT", account);
        }
        let Some(judged) = record.body.judged() else { return };
        self.text("WRIT_VERDICT", judged.verdict.name());
        self.text("WRIT_MODE", if matches!(record.body, Body::Decision(_)) { "enforce" } else { "observe" });
        self.text("WRIT_ACTION", &judged.action);
        self.text("WRIT_REASON_CODE", &judged.reason_code);
        self.text("WRIT_RISK", &judged.risk.to_string());
        self.text("WRIT_POLICY_DIGEST", &judged.policy_digest);
        // A field that is there twice is a list.
        for policy in &judged.policies {
            self.text("WRIT_POLICY", &policy.id);
        }
        if let Some(owner) = &judged.owner {
            self.text("WRIT_OWNER", owner);
        }
        if let Some(errno) = &judged.errno {
            self.text("WRIT_ERRNO", errno);
        }
        if let Some(to) = &judged.destination {
            self.text("WRIT_DESTINATION_ADDRESS", &to.address);
            self.text("WRIT_DESTINATION_PORT", &to.port.to_string());
            self.text("WRIT_DESTINATION_PROTOCOL", &to.protocol);
            for group in &to.groups {
                self.text("WRIT_DESTINATION", group);
            }
        }
        if let Some(process) = &judged.process {
            self.text("WRIT_PID", &process.pid.to_string());
            self.text("WRIT_UID", &process.uid.to_string());
            self.text("WRIT_COMM", &process.comm);
            if let Some(executable) = &process.executable {
                self.text("WRIT_EXECUTABLE", executable);
            }
            if let Some(unit) = &process.unit {
                // journalctl -u UNIT shows what was decided about the unit beside what it said itself.
                self.text("OBJECT_SYSTEMD_UNIT", unit);
                self.text("WRIT_UNIT", unit);
            }
        }
    }
}

/// Syslog's levels: 3 error, 4 warning, 5 notice, 6 information.
fn priority(body: &Body) -> &'static str {
    match body {
        Body::Decision(judged) if judged.verdict == Verdict::Allow => "6",
        Body::Decision(judged) if judged.verdict == Verdict::Deny => "4",
        Body::Cut(_) => "4",
        Body::Loss(_) => "3",
        Body::Observation(judged) if judged.verdict == Verdict::Allow => "6",
        Body::Lifecycle(_) => "6",
        _ => "5",
    }
}
