//! What was open before writ judged: found once, judged, recorded as an observation, and a session from then on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use nix::unistd::User;
use serde_json::{Value, json};
use writ_tests::probe::Counts;
use writ_tests::{Config, Host, KeepingPeer, Record, UdpPeer, wait};

const ALARM: &str = "[signal.\"test.alarm\"]\nrisk = 90\nttl = \"1h\"\nfrom = [\"root\"]\n";

/// Permits `wanted` until an alarm is raised, and nothing else.
fn until_alarm(wanted: SocketAddr, other: SocketAddr) -> Config {
    let forbid = "@id(\"alarmed\")\n@owner(\"tests\")\n@reason(\"an alarm ends it\")\nforbid (principal, action == \
                  Action::\"connect\", resource)\nwhen { context.risk >= 80 };\n";
    Config::new()
        .destination("wanted", wanted)
        .destination("other", other)
        .permit("to-wanted", "wanted")
        .file("signals.d/test.toml", ALARM)
        .file("policies.d/alarmed.cedar", forbid)
}

fn all_sent(count: u64) -> Counts {
    Counts { succeeded: count, failed: BTreeMap::new() }
}

fn all_failed(errno: &str, count: u64) -> Counts {
    Counts { succeeded: 0, failed: BTreeMap::from([(errno.to_owned(), count)]) }
}

#[track_caller]
fn post(host: &Host, path: &str, body: Value) {
    let answer = host.request("POST", path, body);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
}

#[track_caller]
fn alarm(host: &Host) {
    post(host, "/v1/signals", json!({ "account": "tested", "kind": "test.alarm" }));
}

/// What was found, in a line each, sorted.
fn found(host: &Host) -> Vec<String> {
    let of = |record: &Record| format!("{record}: {}", record.text("/already_open/outcome"));
    let mut found: Vec<String> = host.records_of("observation").iter().map(of).collect();
    found.sort();
    found
}

#[test]
fn what_was_open_is_observed_once_and_ended_by_a_later_change() {
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let mut host = Host::prepare(&until_alarm(wanted.address, other.address));
    let mut allowed = host.hold(2, "tcp", wanted.address);
    let mut refused = host.hold(1, "tcp", other.address);

    host.run_daemon();

    let mut expected = vec![
        format!("observed allow tcp {} by to-wanted: kept", wanted.address),
        format!("observed allow tcp {} by to-wanted: kept", wanted.address),
        format!("observed deny tcp {}: tolerated", other.address),
    ];
    expected.sort();
    assert_eq!(found(&host), expected);
    for record in host.records_of("observation") {
        assert_eq!(record.text("/reason_code"), "already-open");
        assert_eq!(record.text("/effective_mode"), "observe");
        assert_eq!(record.0.pointer("/already_open/tracked"), Some(&json!(true)), "{record:?}");
        assert!(record.text("/process/executable").ends_with("writ-probe"), "{record:?}");
        let by: Vec<Value> = record.0.pointer("/identified_by").and_then(Value::as_array).cloned().unwrap_or_default();
        assert!(by.contains(&json!("uid")) && by.contains(&json!("socket-uid")), "{by:?}");
    }
    // Nothing was refused: both go on, also under the daemon after this one, which finds nothing new.
    assert_eq!((allowed.send(), refused.send()), (all_sent(2), all_sent(1)));
    host.kill_daemon();
    host.run_daemon();
    assert_eq!(found(&host), expected);
    assert_eq!((allowed.send(), refused.send()), (all_sent(2), all_sent(1)));
    let sessions = host.request("GET", "/v1/sessions", Value::Null).body;
    assert_eq!(sessions.as_array().map(Vec::len), Some(3));

    alarm(&host);

    assert_eq!(allowed.send(), all_failed("ECONNABORTED", 2));
    assert_eq!(refused.send(), all_failed("ECONNABORTED", 1));
    let cuts = host.records_of("cut");
    let observed: Vec<String> =
        host.records_of("observation").iter().map(|record| record.text("/id").to_owned()).collect();
    assert_eq!(cuts.len(), 3);
    assert!(cuts.iter().all(|cut| observed.iter().any(|id| id == cut.text("/decision"))), "{cuts:#?}");
    let change = host.records_of("change").pop().expect("a change is recorded");
    assert!(cuts.iter().all(|cut| cut.text("/change") == change.text("/id")));
    // The records are decided again like any other.
    let replayed = host.writ_output(&["replay", &host.log_directory().display().to_string()]);
    assert!(replayed.status.success(), "{replayed:?}");
}

#[test]
fn more_access_ends_nothing_that_is_tolerated_and_a_session_closed_by_itself_is_forgotten() {
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let mut host = Host::prepare(&until_alarm(wanted.address, other.address));
    let mut tolerated = host.hold(1, "tcp", other.address);
    host.run_daemon();

    post(&host, "/v1/grants", json!({ "account": "tested", "to": "wanted", "ttl": "10m", "reason": "unrelated" }));
    assert_eq!(tolerated.send(), all_sent(1));
    // Allowed for a while, it is a session like any other: the end of that ends it.
    let body = json!({ "account": "tested", "to": "other", "ttl": "10m", "reason": "this one" });
    let made = host.request("POST", "/v1/grants", body).body;
    assert_eq!(tolerated.send(), all_sent(1));
    let id = made.get("id").and_then(Value::as_str).expect("a grant has an id").to_owned();
    post(&host, &format!("/v1/grants/{id}/revoke"), json!({ "reason": "over" }));
    assert_eq!(tolerated.send(), all_failed("ECONNABORTED", 1));

    let closing = host.hold(1, "tcp", wanted.address);
    drop(closing);
    wait::until("the list is empty", || {
        (host.request("GET", "/v1/sessions", Value::Null).body == json!([])).then_some(())
    });
}

#[test]
fn what_policy_refuses_is_cut_at_the_start_where_that_is_configured() {
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let mut config = until_alarm(wanted.address, other.address);
    config.agent = "[sessions]\nat-start = \"cut\"\n".to_owned();
    let mut host = Host::prepare(&config);
    let mut allowed = host.hold(1, "tcp", wanted.address);
    let mut refused = host.hold(1, "tcp", other.address);

    host.run_daemon();

    assert_eq!(refused.send(), all_failed("ECONNABORTED", 1));
    assert_eq!(allowed.send(), all_sent(1));
    let cuts = host.records_of("cut");
    let [cut] = cuts.as_slice() else { panic!("expected one cut, found {cuts:#?}") };
    let deny = host.records_of("observation").into_iter().find(|record| record.text("/verdict") == "deny");
    assert_eq!(cut.text("/decision"), deny.expect("it was observed").text("/id"));
    assert_eq!(cut.text("/method"), "sock-destroy");
    let start = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "start");
    assert_eq!(cut.text("/change"), start.expect("the start is recorded").text("/id"));
}

#[test]
fn without_a_daemon_the_end_of_a_grant_stops_the_packets_of_what_was_open_before() {
    let peer = UdpPeer::new();
    let mut host = Host::start(&Config::new().destination("logs", peer.address));
    post(&host, "/v1/grants", json!({ "account": "tested", "to": "logs", "ttl": "20s", "reason": "a moment" }));
    host.stop_daemon();
    // Nothing judges: this connection is on no list.
    assert!(host.writ_output(&["uninstall"]).status.success());
    let mut held = host.hold(1, "udp-connect", peer.address);
    host.run_daemon();
    assert_eq!(held.send(), all_sent(1));
    let observed = host.records_of("observation");
    let [observed] = observed.as_slice() else { panic!("expected one observation, found {observed:#?}") };
    assert!(observed.text("/grant/id").starts_with("G-"), "{observed:?}");

    host.kill_daemon();

    wait::until("the kernel stops the packets", || (held.send() == all_failed("EPERM", 1)).then_some(()));
}

/// A program of the account; it says a line when it is ready.
struct Script(Child);

impl Script {
    #[track_caller]
    fn start(host: &Host, user: &User, text: &str, arguments: &[&str]) -> (Self, String) {
        let mut command = host.command_as(user, "python3");
        command.args(["-c", text]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("cannot run python3");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output is piped");
        BufReader::new(output).read_line(&mut line).expect("cannot read from python3");
        (Self(child), line.trim().to_owned())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_connection_that_an_account_accepted_is_not_taken_for_one_it_made() {
    const SERVER: &str = "import socket,sys\ns=socket.create_server(('127.0.0.1',0))\nprint(s.getsockname()[1],flush=True)\n\
                          c,_=s.accept()\nsys.stdin.read()\n";
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut host = Host::prepare(&until_alarm(nowhere, nowhere));
    let (_server, port) = Script::start(&host, &host.service_user().clone(), SERVER, &[]);
    let port: u16 = port.parse().expect("the server says its port");
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("cannot connect to the server");
    client.write_all(b"hello").expect("cannot write to the server");

    host.run_daemon();

    assert_eq!(found(&host), Vec::<String>::new());
    client.write_all(b"hello").expect("the connection goes on");
}

#[test]
fn what_is_open_in_another_network_namespace_is_found_and_ended_there() {
    // Root makes the namespace, listens in it, and its child, become the account, connects there.
    const SCRIPT: &str = "import ctypes,os,socket,subprocess,sys\n\
        libc=ctypes.CDLL(None,use_errno=True)\n\
        assert libc.unshare(0x40000000)==0\n\
        subprocess.run(['ip','link','set','lo','up'],check=True)\n\
        s=socket.create_server(('127.0.0.1',7001))\n\
        r,w=os.pipe()\n\
        if os.fork()==0:\n\
        \x20   uid=int(sys.argv[1]); os.setgroups([]); os.setresgid(uid,uid,uid); os.setresuid(uid,uid,uid)\n\
        \x20   c=socket.create_connection(('127.0.0.1',7001)); os.write(w,b'x')\n\
        \x20   try: c.recv(1)\n\
        \x20   finally: os._exit(0)\n\
        c,_=s.accept(); os.read(r,1)\n\
        print('open',flush=True)\n\
        sys.stdin.read()\n";
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut config = until_alarm(nowhere, nowhere);
    config.agent = "[sessions]\nat-start = \"cut\"\n".to_owned();
    let mut host = Host::prepare(&config);
    let root = User::from_name("root").expect("users can be looked up").expect("there is a root");
    let (_script, said) = Script::start(&host, &root, SCRIPT, &[&host.service_user().uid.to_string()]);
    assert_eq!(said, "open");

    host.run_daemon();

    assert_eq!(found(&host), ["observed deny tcp 127.0.0.1:7001: cut"]);
    let cuts = host.records_of("cut");
    assert_eq!(cuts.iter().map(|cut| cut.text("/method")).collect::<Vec<_>>(), ["sock-destroy"]);
}
