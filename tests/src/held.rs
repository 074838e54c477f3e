//! Connections that are kept: the account's ends in a process of their own, the other ends here.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::probe::Counts;
use crate::wait;

/// A process of the account that keeps connections open, and tries them when asked.
#[derive(Debug)]
pub struct Held {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Held {
    /// Starts the prepared command, and waits until every connection is open.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cannot start the probe");
        let stdin = child.stdin.take().expect("the probe's input is piped");
        let stdout = BufReader::new(child.stdout.take().expect("the probe's output is piped"));
        let mut held = Self { child, stdin, stdout };
        let opened = held.line();
        assert_eq!(opened.failed, BTreeMap::new(), "every connection should open");
        held
    }

    #[track_caller]
    fn line(&mut self) -> Counts {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("cannot read from the probe");
        Counts::parse(&line).unwrap_or_else(|| panic!("the probe said `{line}`"))
    }

    /// Sends a message over each connection: how many went out, and why the others did not.
    #[track_caller]
    pub fn send(&mut self) -> Counts {
        self.stdin.write_all(b"send\n").expect("the probe is gone");
        self.line()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Accepts connections and keeps them.
#[derive(Debug)]
pub struct KeepingPeer {
    /// Where it listens.
    pub address: SocketAddr,
    kept: Arc<Mutex<Vec<TcpStream>>>,
}

impl KeepingPeer {
    /// Listens on a free port of 127.0.0.1.
    #[expect(clippy::new_without_default, reason = "a default value that binds a socket would surprise")]
    pub fn new() -> Self {
        raise_open_files();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot listen on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kept);
        // Blocked in `accept` to the end of the test run: it holds nothing but a port.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_nonblocking(true).expect("cannot make a connection non-blocking");
                keep.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        });
        Self { address, kept }
    }

    /// Waits until this many connections are there.
    #[track_caller]
    pub fn wait_for(&self, connections: usize) {
        wait::until("the connections arrive", || {
            (self.kept.lock().unwrap_or_else(PoisonError::into_inner).len() >= connections).then_some(())
        });
    }

    /// Reads what has arrived on every connection: bytes in all, and how the ended ones ended, which are forgotten.
    pub fn read(&self) -> (u64, BTreeMap<String, u64>) {
        let (mut bytes, mut ended) = (0, BTreeMap::<String, u64>::new());
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|stream| {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => *ended.entry("closed".into()).or_default() += 1,
                    Ok(length) => {
                        bytes += length as u64;
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    Err(error) => *ended.entry(format!("{:?}", error.kind())).or_default() += 1,
                }
                return false;
            }
        });
        (bytes, ended)
    }
}

/// A thousand connections need more than the thousand and twenty-four descriptors that a process begins with.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one structure, which outlives them.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max.min(16_384);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    assert!(raised, "the limit of open files cannot be raised");
}
