//! Two network namespaces with a cable between them: what a process in one sends, a capture in the other sees.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use writ_techniques::Capture;

static PAIRS: AtomicU32 = AtomicU32::new(0);

/// A pair of namespaces, removed when dropped.
#[derive(Debug)]
pub struct NetworkPair {
    names: [String; 2],
}

impl NetworkPair {
    /// The address of the far side.
    pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
    /// Another address of the far side.
    pub const FAR_TOO: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
    /// The IPv6 address of the far side.
    pub const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

    /// Makes the pair.
    #[expect(clippy::new_without_default, reason = "a default value that makes namespaces would surprise")]
    #[track_caller]
    pub fn new() -> Self {
        let number = PAIRS.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("writ-test-{}-{number}-{side}", std::process::id());
        let pair = Self { names: [name("near"), name("far")] };
        let [near, far] = &pair.names;
        for command in [
            format!("netns add {near}"),
            format!("netns add {far}"),
            format!("-n {near} link add w0 type veth peer name w1 netns {far}"),
            format!("-n {near} addr add 10.77.0.1/24 dev w0"),
            format!("-n {near} addr add fd77::1/64 dev w0 nodad"),
            format!("-n {far} addr add 10.77.0.2/24 dev w1"),
            format!("-n {far} addr add 10.77.0.3/24 dev w1"),
            format!("-n {far} addr add fd77::2/64 dev w1 nodad"),
            format!("-n {near} link set lo up"),
            format!("-n {far} link set lo up"),
            format!("-n {near} link set w0 up"),
            format!("-n {far} link set w1 up"),
        ] {
            let done = Command::new("ip").args(command.split(' ')).output().expect("cannot run `ip` (iproute2)");
            assert!(done.status.success(), "ip {command}: {done:?}");
        }
        pair
    }

    /// A command that will run on the near side.
    pub fn near(&self) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: that hides the cgroup file system.
        command.arg(format!("--net=/run/netns/{}", self.names[0])).arg("--").stdin(Stdio::null());
        command
    }

    /// Does something on the far side. Sockets that are made there stay there.
    #[track_caller]
    pub fn far<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let far = File::open(format!("/run/netns/{}", self.names[1])).expect("cannot open the namespace");
        let thread = std::thread::spawn(move || {
            // Only this thread goes there.
            setns(far, CloneFlags::CLONE_NEWNET).expect("cannot enter the namespace");
            act()
        });
        thread.join().expect("what is done on the far side succeeds")
    }

    /// A capture of what passes the far side.
    #[track_caller]
    pub fn capture(&self) -> Capture {
        self.far(|| Capture::begin().expect("cannot capture"))
    }

    /// Listens at these ports on the far side: what arrives is taken, and no error goes back that quotes it.
    #[track_caller]
    pub fn listen(&self, ports: [u16; 2]) -> Vec<(UdpSocket, TcpListener)> {
        self.far(move || {
            let listen = |port| {
                let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("cannot bind");
                (udp, TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("cannot listen"))
            };
            ports.map(listen).into_iter().collect()
        })
    }
}

impl Drop for NetworkPair {
    fn drop(&mut self) {
        for name in &self.names {
            // The cable goes with its first end; what is gone already is as good.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}
