//! A connect is allowed or refused by policy, and either way recorded with everything the verdict used.

use writ_tests::{Config, Host, TcpPeer, config};

#[test]
fn denied_connect_gets_eacces_and_is_recorded() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new().destination("web", peer.address));

    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");

    let records = host.expect_judgements(&[format!("deny tcp {} EACCES", peer.address)]);
    let record = &records[0];
    assert_eq!(record.text("/type"), "decision");
    assert_eq!(record.text("/account"), config::ACCOUNT);
    assert_eq!(record.text("/effective_mode"), "enforce");
    assert_eq!(record.text("/action"), "connect");
    assert_eq!(record.groups(), ["loopback", "web"]);
    assert_eq!(record.number("/process/uid"), Some(host.service_user().uid.as_raw().into()));
    assert_eq!(record.number("/process/euid"), Some(host.service_user().uid.as_raw().into()));
    assert_eq!(record.text("/process/executable"), host.probe().to_string_lossy());
    assert_eq!(peer.accepted(), 0);
}

#[test]
fn permitted_connect_succeeds_and_is_recorded() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new().destination("web", peer.address).permit("to-web", "web"));

    let attempt = host.attempt("tcp", &[peer.address]);

    let records = host.expect_judgements(&[format!("allow tcp {} by to-web", peer.address)]);
    let record = &records[0];
    assert_eq!(record.text("/reason_code"), "policy");
    attempt.assert_succeeded();
    assert_eq!(record.text("/type"), "decision");
    assert_eq!(record.text("/account"), config::ACCOUNT);
    assert_eq!(record.text("/policies/0/owner"), "tests");
    assert_eq!(record.text("/policies/0/reason"), "the test needs it");
}

#[test]
fn curl_is_refused_and_served_like_any_program() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let config = Config::new().destination("open", open.address).destination("closed", closed.address);
    let host = Host::start(&config.permit("to-open", "open"));
    let curl = |address: std::net::SocketAddr| {
        let mut command = host.command("/usr/bin/curl");
        command
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"])
            .arg(format!("http://{address}/"));
        command.output().expect("curl is installed")
    };

    // The peer closes without an answer, which curl notices while sending (55) or receiving (52, 56): it got through.
    let served = curl(open.address);
    assert!(matches!(served.status.code(), Some(52 | 55 | 56)), "{served:?}");
    let refused = curl(closed.address);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");

    let records = host.expect_judgements(&[
        format!("allow tcp {} by to-open", open.address),
        format!("deny tcp {} EACCES", closed.address),
    ]);
    assert_eq!(records[1].text("/process/executable"), "/usr/bin/curl");
}

#[test]
fn an_account_that_asks_for_another_errno_gets_it() {
    let peer = TcpPeer::new();
    let mut config = Config::new();
    config.account = "errno = \"ECONNREFUSED\"".to_owned();
    let host = Host::start(&config);

    host.attempt("tcp", &[peer.address]).assert_failed("ECONNREFUSED");

    host.expect_judgements(&[format!("deny tcp {} ECONNREFUSED", peer.address)]);
}
