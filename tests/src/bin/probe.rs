//! `writ-probe`: does one thing with a socket, as the user and in the cgroup it is started in, and prints what it saw as
//! a line of JSON.
//!
//! Plain system calls, no resolver, no retries: a test must know what the kernel answered, and to what.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, connect, getsockopt, send, sendmmsg,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

const USAGE: &str = "writ-probe OPERATION ADDRESS:PORT…, where OPERATION is
  tcp          connect a TCP socket
  tfo          TCP Fast Open: sendto with MSG_FASTOPEN
  udp-connect  connect a UDP socket and send a datagram
  udp-send     send a datagram from an unconnected UDP socket
  sendmmsg     send one datagram to each address in one call
  mapped       connect a TCP socket to the IPv4 address in its IPv6-mapped form
  mapped-udp   send a datagram to the IPv4 address in its IPv6-mapped form
  hold COUNT OPERATION ADDRESS:PORT
               open so many connections (tcp, udp-connect) and keep them; with each line of standard input send a message
               over each, printing counts
  loop PAUSE OPERATION ADDRESS:PORT
               repeat with a pause of so many microseconds until standard input closes, printing counts";

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
        "tcp" => tcp(first).map(|()| None),
        "tfo" => fast_open(first).map(|()| None),
        "udp-connect" => udp_connect(first).map(|()| None),
        "udp-send" => udp_send(first).map(|()| None),
        "sendmmsg" => send_many(addresses).map(Some),
        "mapped" => tcp(mapped(first)?).map(|()| None),
        "mapped-udp" => udp_send(mapped(first)?).map(|()| None),
        other => bail!("there is no operation `{other}`"),
    })
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

fn tcp(address: SocketAddr) -> nix::Result<()> {
    let socket = open(address, SockType::Stream)?;
    // Closed at once and without TIME_WAIT, or a loop would run out of ports.
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

fn fast_open(address: SocketAddr) -> nix::Result<()> {
    let socket = open(address, SockType::Stream)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    sendto(socket.as_raw_fd(), MESSAGE, &SockaddrStorage::from(address), flags).map(drop)
}

fn udp_connect(address: SocketAddr) -> nix::Result<()> {
    let socket = open(address, SockType::Datagram)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    send(socket.as_raw_fd(), MESSAGE, MsgFlags::empty()).map(drop)
}

fn udp_send(address: SocketAddr) -> nix::Result<()> {
    let socket = open(address, SockType::Datagram)?;
    sendto(socket.as_raw_fd(), MESSAGE, &SockaddrStorage::from(address), MsgFlags::empty()).map(drop)
}

fn send_many(addresses: &[SocketAddr]) -> nix::Result<usize> {
    let Some(first) = addresses.first() else { return Err(Errno::EINVAL) };
    let socket = open(*first, SockType::Datagram)?;
    let to: Vec<Option<SockaddrStorage>> = addresses.iter().map(|address| Some((*address).into())).collect();
    let messages = vec![[IoSlice::new(MESSAGE)]; addresses.len()];
    let mut headers = MultiHeaders::preallocate(addresses.len(), None);
    let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &to, [], MsgFlags::empty())?;
    Ok(sent.count())
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
