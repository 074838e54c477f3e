//! Peers to connect to: real sockets on loopback, served by the test itself, which no account manages.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::wait;

/// Accepts and closes, and counts.
#[derive(Debug)]
pub struct TcpPeer {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TcpPeer {
    /// Listens on a free port of 127.0.0.1.
    #[expect(clippy::new_without_default, reason = "a default value that binds a socket would surprise")]
    pub fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot listen on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("cannot make the listener non-blocking");
        let (accepted, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&accepted), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    // The connecting side gave up first.
                    Err(_) => {}
                }
            }
        });
        Self { address, accepted, stop, thread: Some(thread) }
    }

    /// Connections that arrived so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It holds nothing but its socket.
            let _ = thread.join();
        }
    }
}

/// Receives datagrams.
#[derive(Debug)]
pub struct UdpPeer {
    /// Where it listens.
    pub address: SocketAddr,
    socket: UdpSocket,
}

impl UdpPeer {
    /// Binds a free port of 127.0.0.1.
    #[expect(clippy::new_without_default, reason = "a default value that binds a socket would surprise")]
    pub fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot bind on loopback");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_nonblocking(true).expect("cannot make the socket non-blocking");
        Self { address, socket }
    }

    /// Waits for one datagram.
    #[track_caller]
    pub fn expect_datagram(&self) {
        wait::until("a datagram arrives", || self.receive().then_some(()));
    }

    /// Whether a datagram has arrived; on loopback it has when the sender's call has returned.
    pub fn receive(&self) -> bool {
        self.socket.recv(&mut [0; 16]).is_ok()
    }
}
