//! `writ-probe`: does one thing with a socket, as the user and in the cgroup it is started in, and prints what it saw as
//! a line of JSON.
//!
//! Plain system calls, no resolver, no retries: a test must know what the kernel answered, and to what.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getsockopt, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};
use writ_techniques::inet;

const USAGE: &str = "writ-probe OPERATION ADDRESS:PORT…, where OPERATION is
  tcp          connect a TCP socket
  tfo          TCP Fast Open: sendto with MSG_FASTOPEN
  udp-connect  connect a UDP socket and send a datagram
  udp-send     send a datagram from an unconnected UDP socket
  sendmmsg     send one datagram to each address in one call
  mapped       connect a TCP socket to the IPv4 address in its IPv6-mapped form
  mapped-udp   send a datagram to the IPv4 address in its IPv6-mapped form
  tcp-start    begin to connect a TCP socket; that it is under way is success
  udp-judge    connect a UDP socket, which sends nothing
  open FAMILY TYPE PROTOCOL
               open a socket, given by numbers
  batch        read lines of OPERATION ADDRESS:PORT, answer each
  via WHAT OPERATION ADDRESS:PORT
               as root: take on an identity (euid:UID, thread:UID, namespace:UID), then do it
  handed FROM TO OPERATION ADDRESS:PORT
               as root: a process of one uid opens a socket (udp-judge, tcp, raw) and hands it to a process of another uid
               (SCM_RIGHTS), which uses it; FROM may be UID@CGROUP-DIRECTORY, to open it there
  restarts COUNT UID CGROUP FORBIDDEN PERMITTED
               as root: so many times make the cgroup and a process in it that at once connects a UDP socket to both
               addresses, and remove it; prints counts
  hold COUNT OPERATION ADDRESS:PORT
               open so many connections (tcp, udp-connect) and keep them; with each line of standard input send a message
               over each, printing counts
  loop PAUSE OPERATION ADDRESS:PORT
               repeat with a pause of so many microseconds until standard input closes, printing counts";

#[path = "probe/handed.rs"]
mod handed;
#[path = "probe/identity.rs"]
mod identity;
#[path = "probe/restart.rs"]
mod restart;

const MESSAGE: &[u8] = b"writ-probe";
/// A lost packet must not hang a test.
const TIMEOUT_SECONDS: i64 = 10;
const PROGRESS: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writ-probe: {error:#}\n{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [word, pause, operation, address] if word == "loop" => {
            let pause = pause.parse().with_context(|| format!("`{pause}` is no number of microseconds"))?;
            repeat(operation, parse(address)?, Duration::from_micros(pause))
        }
        [word, numbers @ ..] if word == "open" => {
            let number = |text: &String| text.parse::<i32>().with_context(|| format!("`{text}` is no number"));
            let numbers = numbers.iter().map(number).collect::<Result<Vec<_>>>()?;
            let [family, kind, protocol] = numbers[..] else { bail!("`open` takes three numbers") };
            println!("{}", answer(handed::open(family, kind, protocol).map(|_| None)));
            Ok(())
        }
        [word, from, to, operation, address] if word == "handed" => {
            println!("{}", answer(handed::over(from, to, operation, parse(address)?)?.map(|()| None)));
            Ok(())
        }
        [word, count, uid, cgroup, forbidden, permitted] if word == "restarts" => {
            let count = count.parse().with_context(|| format!("`{count}` is no number"))?;
            let uid = uid.parse().with_context(|| format!("`{uid}` is no uid"))?;
            let found = restart::restarts(count, uid, cgroup, [parse(forbidden)?, parse(permitted)?])?;
            println!("{found}");
            Ok(())
        }
        [word] if word == "batch" => batch(),
        [word, what, rest @ ..] if word == "via" => {
            let (what, uid) = what.split_once(':').with_context(|| format!("`{what}` is not WHAT:UID"))?;
            let uid = uid.parse().with_context(|| format!("`{uid}` is no uid"))?;
            let rest = rest.to_vec();
            identity::take(what, uid, move || run(&rest))
        }
        [word, count, operation, address] if word == "hold" => {
            let count = count.parse().with_context(|| format!("`{count}` is no number"))?;
            hold(count, operation, parse(address)?)
        }
        [operation, addresses @ ..] if !addresses.is_empty() => {
            let addresses: Vec<SocketAddr> = addresses.iter().map(|address| parse(address)).collect::<Result<_>>()?;
            println!("{}", answer(attempt(operation, &addresses)?));
            Ok(())
        }
        _ => bail!("an operation and an address are needed"),
    }
}

fn parse(address: &str) -> Result<SocketAddr> {
    address.parse().with_context(|| format!("`{address}` is no address and port"))
}

fn answer(result: nix::Result<Option<usize>>) -> Value {
    match result {
        Ok(sent) => json!({ "errno": null, "sent": sent }),
        Err(errno) => json!({ "errno": name(errno), "sent": null }),
    }
}

fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

/// One attempt: what the kernel answered, and the number of messages taken where that can differ.
fn attempt(operation: &str, addresses: &[SocketAddr]) -> Result<nix::Result<Option<usize>>> {
    let Some(first) = addresses.first().copied() else { bail!("an address is needed") };
    Ok(match operation {
        "tcp" => told(inet::tcp(first)),
        "tcp-start" => told(inet::tcp_start(first)),
        "udp-judge" => told(inet::udp_judge(first)),
        "tfo" => told(inet::fast_open(first, MESSAGE)),
        "udp-connect" => told(inet::udp_connect(first, MESSAGE)),
        "udp-reconnect" => reconnect(addresses).map(|()| None),
        "udp-send" => told(inet::udp_send(first, MESSAGE)),
        "sendmmsg" => inet::send_many(addresses, MESSAGE).map(Some).map_err(errno),
        "mapped" => told(inet::tcp(mapped(first)?)),
        "mapped-udp" => told(inet::udp_send(mapped(first)?, MESSAGE)),
        other => bail!("there is no operation `{other}`"),
    })
}

fn told(result: std::io::Result<()>) -> nix::Result<Option<usize>> {
    result.map(|()| None).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn mapped(address: SocketAddr) -> Result<SocketAddr> {
    let IpAddr::V4(v4) = address.ip() else { bail!("only an IPv4 address can be mapped") };
    Ok(SocketAddrV6::new(v4.to_ipv6_mapped(), address.port(), 0, 0).into())
}

fn open(address: SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(TIMEOUT_SECONDS, 0))?;
    Ok(socket)
}

/// One socket that is connected to each address in turn.
fn reconnect(addresses: &[SocketAddr]) -> nix::Result<()> {
    let Some(first) = addresses.first() else { return Ok(()) };
    let socket = open(*first, SockType::Datagram)?;
    addresses.iter().try_for_each(|address| connect(socket.as_raw_fd(), &SockaddrStorage::from(*address)))
}

/// Answers line by line, in the order of the lines.
fn batch() -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.context("cannot read standard input")?;
        let Some((operation, address)) = line.split_once(' ') else { bail!("`{line}` is no attempt") };
        println!("{}", answer(attempt(operation, &[parse(address)?])?));
    }
    Ok(())
}

/// Opens connections, and sends over each of them with each line read.
fn hold(count: usize, operation: &str, address: SocketAddr) -> Result<()> {
    let kind = if operation == "tcp" { SockType::Stream } else { SockType::Datagram };
    let (mut sockets, mut failed) = (Vec::new(), BTreeMap::<String, u64>::new());
    for _ in 0..count {
        let opened = open(address, kind).and_then(|socket| {
            connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => sockets.push(socket),
            Err(errno) => *failed.entry(name(errno)).or_default() += 1,
        }
    }
    println!("{}", json!({ "succeeded": sockets.len(), "failed": failed }));
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        let (mut succeeded, mut failed) = (0_u64, BTreeMap::<String, u64>::new());
        for socket in &sockets {
            // What ended the connection, before what a send makes of it (EPIPE).
            let error = getsockopt(socket, sockopt::SocketError)?;
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = if error == 0 { send(socket.as_raw_fd(), MESSAGE, flags) } else { Err(Errno::from_raw(error)) };
            match sent {
                Ok(_) => succeeded += 1,
                Err(errno) => *failed.entry(name(errno)).or_default() += 1,
            }
        }
        println!("{}", json!({ "succeeded": succeeded, "failed": failed }));
    }
    Ok(())
}

/// Attempts until standard input closes; prints counts as it goes, and the last ones at the end.
fn repeat(operation: &str, address: SocketAddr, pause: Duration) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Whatever ends the reading ends the loop.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stopped.store(true, Ordering::Relaxed);
    });
    let (mut succeeded, mut failed) = (0_u64, BTreeMap::<String, u64>::new());
    let mut reported = None::<Instant>;
    while !stop.load(Ordering::Relaxed) {
        match attempt(operation, &[address])? {
            Ok(_) => succeeded += 1,
            Err(errno) => *failed.entry(name(errno)).or_default() += 1,
        }
        if reported.is_none_or(|at| at.elapsed() > PROGRESS) {
            println!("{}", json!({ "succeeded": succeeded, "failed": failed }));
            reported = Some(Instant::now());
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    println!("{}", json!({ "succeeded": succeeded, "failed": failed }));
    Ok(())
}
