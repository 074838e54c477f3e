//! A datagram socket that stayed where it was, though a connect elsewhere was let through: it is judged by where it is.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use writ_tests::{Config, Host, UdpPeer, config};

/// Connects to one place and says what sending comes to, after a connect to another that the kernel refuses by itself: a
/// broadcast without SO_BROADCAST.
const STAYS: &str = "
import socket, sys
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.connect((sys.argv[1], int(sys.argv[2])))
peer.send(b'first')
try:
    peer.connect(('255.255.255.255', 9))
    print('went', flush=True)
except OSError:
    print('stayed', flush=True)
for line in sys.stdin:
    try:
        peer.send(b'more')
        print('sent', flush=True)
    except OSError as error:
        print(error.errno, flush=True)
";

struct Stays {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Stays {
    fn start(host: &Host, peer: &UdpPeer) -> Self {
        let mut command = host.command("/usr/bin/python3");
        command.args(["-c", STAYS]).arg(peer.address.ip().to_string()).arg(peer.address.port().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn said(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn send(&mut self) -> String {
        writeln!(self.input).unwrap();
        self.said()
    }
}

impl Drop for Stays {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_socket_is_judged_by_where_it_is_and_not_by_where_it_was_let_through_last() {
    let peer = UdpPeer::new();
    let everyone = "[destination.everyone]\naddresses = [\"255.255.255.255\"]\n";
    let config = Config::new().destination("logs", peer.address).file("destinations.d/everyone.toml", everyone);
    let host = Host::start(&config.permit("to-everyone", "everyone"));
    let grant = host.writ_json(&[
        "grant",
        "create",
        "--account",
        config::ACCOUNT,
        "--to",
        "logs",
        "--ttl",
        "10m",
        "--reason",
        "a look",
        "--json",
    ]);
    let id = grant["id"].as_str().expect("a grant has an id").to_owned();
    let mut socket = Stays::start(&host, &peer);
    assert_eq!(socket.said(), "stayed");
    assert_eq!(socket.send(), "sent", "it is where it was, and may be");

    host.writ_json(&["grant", "revoke", &id, "--reason", "over", "--json"]);

    assert_eq!(socket.send(), "1", "EPERM: it may not be there any more");
    host.settled();
}
