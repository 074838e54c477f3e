//! A session lives only as long as its account may have it: what changes the stance cuts what is open.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use writ_tests::probe::Counts;
use writ_tests::{Config, Held, Host, KeepingPeer, Postgres, Psql, Record, UdpPeer, postgres, wait};

const ALARM: &str = "[signal.\"test.alarm\"]\nrisk = 90\nttl = \"1h\"\nflag = true\nfrom = [\"root\"]\n";

/// Permits `wanted` until an alarm is raised, and `other` whatever happens.
fn until_alarm(wanted: SocketAddr, other: SocketAddr) -> Config {
    let forbid = "@id(\"alarmed\")\n@owner(\"tests\")\n@reason(\"an alarm ends it\")\nforbid (principal, action == \
                  Action::\"connect\", resource in Destination::\"wanted\")\nwhen { context.risk >= 80 };\n";
    Config::new()
        .destination("wanted", wanted)
        .destination("other", other)
        .permit("to-wanted", "wanted")
        .permit("to-other", "other")
        .file("signals.d/test.toml", ALARM)
        .file("policies.d/alarmed.cedar", forbid)
}

#[track_caller]
fn post(host: &Host, path: &str, body: Value) -> Value {
    let answer = host.request("POST", path, body);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

#[track_caller]
fn alarm(host: &Host) {
    post(host, "/v1/signals", json!({ "account": "tested", "kind": "test.alarm", "evidence": "the test says so" }));
}

fn all_failed(errno: &str, count: u64) -> Counts {
    Counts { succeeded: 0, failed: BTreeMap::from([(errno.to_owned(), count)]) }
}

fn all_sent(count: u64) -> Counts {
    Counts { succeeded: count, failed: BTreeMap::new() }
}

/// The one cut record, which names the last change and the decision that had opened the session.
#[track_caller]
fn expect_cut(host: &Host, to: SocketAddr) -> Record {
    let cuts = host.records_of("cut");
    let [cut] = cuts.as_slice() else { panic!("expected one cut, found {cuts:#?}") };
    let change = host.records_of("change").pop().expect("a change is recorded");
    let decision = host.judgements().into_iter().find(|record| record.text("/verdict") == "allow");
    assert_eq!(cut.text("/change"), change.text("/id"));
    assert_eq!(cut.text("/decision"), decision.expect("the session was a decision").text("/id"));
    assert_eq!(cut.text("/account"), "tested");
    assert_eq!(cut.number("/destination/port"), Some(u64::from(to.port())));
    assert_eq!(cut.text("/method"), "sock-destroy");
    cut.clone()
}

/// A psql in a transaction, and what each way of ending its access does to it.
fn psql_is_cut(config: impl Fn(SocketAddr) -> Config, before: impl Fn(&Host, SocketAddr), end: impl Fn(&Host)) {
    let Some(programs) = postgres::programs() else {
        eprintln!("left out: PostgreSQL is not installed here");
        return;
    };
    let server = Postgres::start(&programs);
    let host = Host::start(&config(server.address));
    before(&host, server.address);
    let mut psql = Psql::begin(&host, &programs, server.address);
    assert_eq!(psql.query("select 1;").as_deref(), Some("1"));

    end(&host);

    assert_eq!(psql.query("select 2;"), None, "the session should be over");
    let said = psql.failure();
    // Which of the three depends on what psql was doing: writing, reading, or looking for notices after its last answer.
    let lost = ["Software caused connection abort", "server closed the connection", "connection to server was lost"];
    assert!(lost.iter().any(|words| said.contains(words)), "{said}");
    wait::until("the server notices", || {
        let log = server.log();
        let noticed = log.contains("Connection reset by peer") || log.contains("unexpected EOF on client connection");
        noticed.then_some(())
    });
    expect_cut(&host, server.address);
}

#[test]
fn psql_in_a_transaction_is_cut_when_a_signal_arrives() {
    psql_is_cut(|server| until_alarm(server, SocketAddr::from(([127, 0, 0, 1], 9))), |_, _| (), alarm);
}

#[test]
fn psql_in_a_transaction_is_cut_when_its_grant_is_revoked() {
    let grant = std::cell::RefCell::new(String::new());
    psql_is_cut(
        |server| Config::new().destination("db", server),
        |host, _| {
            let body = json!({ "account": "tested", "to": "db", "ttl": "10m", "reason": "a migration" });
            let made = post(host, "/v1/grants", body);
            *grant.borrow_mut() = made.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        },
        |host| drop(post(host, &format!("/v1/grants/{}/revoke", grant.borrow()), json!({ "reason": "done" }))),
    );
}

#[test]
fn psql_in_a_transaction_is_cut_when_its_account_is_offboarded() {
    psql_is_cut(
        |server| Config::new().destination("db", server).permit("to-db", "db"),
        |_, _| (),
        |host| drop(post(host, "/v1/accounts/tested/offboard", json!({ "reason": "it left" }))),
    );
}

#[test]
fn a_reload_cuts_what_the_new_policy_refuses_and_nothing_else() {
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let config = Config::new()
        .destination("wanted", wanted.address)
        .destination("other", other.address)
        .permit("to-other", "other");
    let host = Host::start(&config.clone().permit("to-wanted", "wanted"));
    let mut ending = host.hold(3, "tcp", wanted.address);
    let mut staying = host.hold(3, "tcp", other.address);

    host.configure(&config);
    assert!(host.writ_output(&["reload"]).status.success());

    assert_eq!(ending.send(), all_failed("ECONNABORTED", 3));
    assert_eq!(staying.send(), all_sent(3));
    let cuts = host.records_of("cut");
    assert_eq!(cuts.len(), 3);
    let reload = host.records_of("lifecycle").into_iter().find(|record| record.text("/event") == "reload");
    assert_eq!(cuts.first().map(|cut| cut.text("/change")), reload.as_ref().map(|reload| reload.text("/id")));
}

#[test]
fn a_thousand_sessions_are_cut_before_the_signal_is_answered_and_others_are_not_touched() {
    const MANY: u64 = 1000;
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let host = Host::start(&until_alarm(wanted.address, other.address));
    let mut ending = host.hold(MANY as usize, "tcp", wanted.address);
    let mut staying = host.hold(50, "tcp", other.address);
    wanted.wait_for(MANY as usize);
    other.wait_for(50);
    let status = host.request("GET", "/v1/status", Value::Null).body;
    assert_eq!(status.get("sessions"), Some(&json!(MANY + 50)));

    alarm(&host);

    // No waiting: the answer comes after the cut.
    assert_eq!(ending.send(), all_failed("ECONNABORTED", MANY));
    assert_eq!(staying.send(), all_sent(50));
    let mut ended = BTreeMap::new();
    wait::until("every peer is told", || {
        for (how, count) in wanted.read().1 {
            *ended.entry(how).or_insert(0) += count;
        }
        (ended.values().sum::<u64>() == MANY).then_some(())
    });
    assert_eq!(ended, BTreeMap::from([("ConnectionReset".to_owned(), MANY)]));
    let (bytes, closed) = other.read();
    assert!(bytes > 0 && closed.is_empty(), "{bytes} {closed:?}");
    let cuts = host.records_of("cut");
    assert_eq!(cuts.len() as u64, MANY);
    let mut took: Vec<u64> = cuts.iter().filter_map(|cut| cut.number("/took_us")).collect();
    took.sort_unstable();
    println!("cut after {:?} µs at the median, {:?} at most", took.get(took.len() / 2), took.last());
    assert!(cuts.iter().all(|cut| cut.text("/method") == "sock-destroy"));
    let sessions = host.request("GET", "/v1/sessions", Value::Null).body;
    assert_eq!(sessions.as_array().map(Vec::len), Some(50));
}

#[test]
fn a_connected_datagram_socket_is_cut() {
    let (peer, other) = (UdpPeer::new(), UdpPeer::new());
    let host = Host::start(&until_alarm(peer.address, other.address));
    let mut ending = host.hold(1, "udp-connect", peer.address);
    let mut staying = host.hold(1, "udp-connect", other.address);
    assert_eq!(ending.send(), all_sent(1));
    peer.expect_datagram();

    alarm(&host);

    assert_eq!(ending.send(), all_failed("ECONNABORTED", 1));
    assert_eq!(ending.send(), all_failed("EDESTADDRREQ", 1));
    assert!(!peer.receive());
    assert_eq!(staying.send(), all_sent(1));
    other.expect_datagram();
    expect_cut(&host, peer.address);
}

/// Sends until the kernel refuses.
#[track_caller]
fn send_until_refused(held: &mut Held) {
    wait::until("the kernel stops the packets", || (held.send() == all_failed("EPERM", 1)).then_some(()));
}

#[test]
fn without_a_daemon_the_end_of_a_grant_stops_the_packets_of_its_sessions() {
    let (stream, datagram) = (KeepingPeer::new(), UdpPeer::new());
    let mut host = Host::start(&Config::new().destination("db", stream.address).destination("logs", datagram.address));
    for to in ["db", "logs"] {
        post(&host, "/v1/grants", json!({ "account": "tested", "to": to, "ttl": "12s", "reason": "a minute" }));
    }
    let mut tcp = host.hold(1, "tcp", stream.address);
    let mut udp = host.hold(1, "udp-connect", datagram.address);
    stream.wait_for(1);
    assert_eq!(tcp.send(), all_sent(1));
    wait::until("the message arrives", || (stream.read().0 > 0).then_some(()));
    host.kill_daemon();

    send_until_refused(&mut udp);

    // The kernel takes the bytes and holds them back: what arrives after this is nothing.
    assert_eq!(tcp.send(), all_sent(1));
    send_until_refused(&mut udp);
    assert_eq!(stream.read(), (0, BTreeMap::new()));
    // The next daemon finds the sessions, closes them, and tells both ends.
    host.run_daemon();
    assert_eq!(tcp.send(), all_failed("ECONNABORTED", 1));
    assert_eq!(udp.send(), all_failed("ECONNABORTED", 1));
    let ended = wait::until("the peer is told", || {
        let (bytes, ended) = stream.read();
        assert_eq!(bytes, 0, "what was held back must not arrive");
        (!ended.is_empty()).then_some(ended)
    });
    assert_eq!(ended, BTreeMap::from([("ConnectionReset".to_owned(), 1)]));
    assert_eq!(host.records_of("cut").len(), 2);
}

#[test]
fn sessions_outlive_the_daemon_and_are_listed_with_the_decision_that_let_them_through() {
    let (wanted, other) = (KeepingPeer::new(), KeepingPeer::new());
    let mut host = Host::start(&until_alarm(wanted.address, other.address));
    let mut held = host.hold(1, "tcp", wanted.address);
    // What a daemon has read and not written as it dies is a loss, and counted as one.
    let opening = wait::until("the decision is on record", || host.judgements().pop());
    host.kill_daemon();
    host.run_daemon();

    let sessions = host.request("GET", "/v1/accounts/tested", Value::Null).body;
    let session = sessions.pointer("/sessions/0").expect("the session is listed").clone();
    assert_eq!(session.pointer("/destination/port"), Some(&json!(wanted.address.port())));
    assert_eq!(session.get("pid"), Some(&json!(held.pid())));
    assert_eq!(session.get("decision"), Some(&json!(opening.text("/id"))));
    // As the kernel's own list has it: local and remote address, in hexadecimal, are the second and third field.
    let listed = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists its sockets");
    let to = format!(":{:04X}", wanted.address.port());
    let fields = |line: &str| line.split_whitespace().skip(1).take(2).map(str::to_owned).collect::<Vec<_>>();
    let from = listed.lines().map(fields).find(|fields| fields.get(1).is_some_and(|remote| remote.ends_with(&to)));
    let from = from.and_then(|fields| u16::from_str_radix(fields.first()?.rsplit_once(':')?.1, 16).ok());
    assert_eq!(session.pointer("/source"), Some(&json!({ "address": "127.0.0.1", "port": from, "protocol": "tcp" })));
    assert_eq!(held.send(), all_sent(1));
    alarm(&host);
    assert_eq!(held.send(), all_failed("ECONNABORTED", 1));
    drop(held);
    assert_eq!(host.request("GET", "/v1/sessions", Value::Null).body, json!([]));
}

#[test]
fn a_session_stays_its_executables_whatever_number_that_has_later() {
    let peer = KeepingPeer::new();
    let own = |paths: &[&str]| {
        let listed: Vec<String> = paths.iter().map(|path| format!("context.executable == \"{path}\"")).collect();
        format!(
            "@id(\"own\") @owner(\"o\") @reason(\"r\")\npermit (principal, action == Action::\"connect\", resource in \
             Destination::\"db\") when {{ {} }};\n",
            listed.join(" || ")
        )
    };
    let config = Config::new().destination("db", peer.address);
    let mut host = Host::prepare(&config);
    let probe = host.probe().display().to_string();
    host.configure(&config.file("policies.d/own.cedar", &own(&[&probe])));
    host.run_daemon();
    let mut held = host.hold(1, "tcp", peer.address);
    assert_eq!(held.send(), all_sent(1));
    // Before it in the order of names, and so numbered before it: another that is permitted as well, then only that.
    let config = Config::new().destination("db", peer.address);
    host.configure(&config.file("policies.d/own.cedar", &own(&["/bin/before", &probe])));
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(held.send(), all_sent(1), "it is what it was");
    assert!(host.records_of("cut").is_empty());
    let config = Config::new().destination("db", peer.address);
    host.configure(&config.file("policies.d/own.cedar", &own(&["/bin/before"])));
    assert!(host.writ_output(&["reload"]).status.success());
    assert_eq!(held.send(), all_failed("ECONNABORTED", 1));
}
