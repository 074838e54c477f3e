//! What peers of the API may cost: slow, silent, oversized and many of them, and nobody else notices.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use writ_tests::{Config, Host, TcpPeer, wait};

/// Opens connections as the account under test until as many as asked for were tried, says how many were kept open, and
/// keeps them until its input ends.
const IDLE: &str = "
import resource, select, socket, sys, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = []
for number in range(int(sys.argv[2])):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
    try:
        peer.connect(sys.argv[1])
        if number % 2:
            peer.sendall(b'POST /access/v1/evaluation HTTP/1.1\\r\\nhost: w')
        kept.append(peer)
    except OSError:
        peer.close()
    if number % 500 == 499:
        for peer in select.select(kept, [], [], 0)[0] if len(kept) < 1000 else []:
            kept.remove(peer)
poll = select.poll()
open_still = {peer.fileno() for peer in kept}
for peer in kept:
    poll.register(peer, select.POLLIN | select.POLLHUP)
# The daemon closes what it does not keep as fast as it comes to it.
until = time.monotonic() + 60
while len(open_still) > 32 and time.monotonic() < until:
    for number, event in poll.poll(1000):
        poll.unregister(number)
        open_still.discard(number)
print(len(open_still), flush=True)
sys.stdin.read()
";

#[test]
fn ten_thousand_idle_connections_cost_their_owner_only() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new().destination("web", peer.address).permit("to-web", "web"));
    let mut command = host.command("/usr/bin/python3");
    command.args(["-c", IDLE]).arg(host.socket()).arg("10000");
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut said = [0; 8];
    let read = child.stdout.as_mut().expect("its output").read(&mut said).expect("it says how many");
    let kept: usize = String::from_utf8_lossy(&said[..read]).trim().parse().expect("a number");
    assert!((1..=32).contains(&kept), "{kept}");
    // Others are served, the account's connects are judged, and each is on record.
    assert_eq!(host.status()["mode"], "enforce");
    for _ in 0..20 {
        host.attempt("tcp", &[peer.address]).assert_succeeded();
    }
    wait::until("all are recorded", || (host.judgements().len() == 20).then_some(()));
    let settled = host.settled();
    host.assert_verified(settled);
    drop(child.stdin.take());
    child.wait().expect("it ends");
    // Its share is free again.
    let again = || host.writ_as(host.service_user(), &["why", "--json"]).status.success();
    wait::until("the account is served again", || again().then_some(()));
}

#[track_caller]
fn answer(mut stream: UnixStream, sent: &[u8]) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(50))).expect("a timeout can be set");
    let _ = stream.write_all(sent);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn slow_oversized_and_garbled_requests_are_ended() {
    let host = Host::start(&Config::new());
    let connect = || UnixStream::connect(host.socket()).expect("the daemon listens");
    let head = |length: usize| {
        format!(
            "POST /access/v1/evaluation HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let large = [head(300_000).as_bytes(), &vec![b' '; 300_000]].concat();
    assert!(answer(connect(), &large).starts_with("HTTP/1.1 413"));
    let chunked =
        "POST /access/v1/evaluation HTTP/1.1\r\nhost: w\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let endless = [chunked.as_bytes(), b"80000\r\n", &vec![b' '; 0x80000], b"\r\n0\r\n\r\n"].concat();
    assert!(answer(connect(), &endless).starts_with("HTTP/1.1 413"));
    let long = format!("GET /{} HTTP/1.1\r\nhost: w\r\n\r\n", "a".repeat(100_000));
    let said = answer(connect(), long.as_bytes());
    assert!(said.starts_with("HTTP/1.1 4") || said.is_empty(), "{said}");
    assert!(answer(connect(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").starts_with("HTTP/1.1 400"));
    // A body that does not come, and a head that does not end: both are over by themselves, in the time each may take.
    std::thread::scope(|scope| {
        let body = scope.spawn(|| answer(connect(), [head(100).as_bytes(), b"{\"subject\":"].concat().as_slice()));
        let silent = scope.spawn(|| answer(connect(), b"POST /access/v1/evaluation HTTP/1.1\r\nhost:"));
        assert_eq!(host.status()["mode"], "enforce");
        assert!(body.join().expect("it ends").starts_with("HTTP/1.1 408"));
        silent.join().expect("it ends");
    });
    assert_eq!(host.status()["mode"], "enforce");
}
