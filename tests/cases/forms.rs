//! The forms a connection can take: each is judged, as what it is, once.

use writ_tests::{Config, Host, TcpPeer, UdpPeer};

#[test]
fn udp_send_is_judged() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);

    host.attempt("udp-send", &[open.address]).assert_succeeded();
    open.expect_datagram();
    host.attempt("udp-send", &[closed.address]).assert_failed("EACCES");
    assert!(!closed.receive());

    host.expect_judgements(&[
        format!("allow udp {} by to-open", open.address),
        format!("deny udp {} EACCES", closed.address),
    ]);
}

#[test]
fn connected_udp_is_judged_when_it_connects() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);

    host.attempt("udp-connect", &[open.address]).assert_succeeded();
    open.expect_datagram();
    host.attempt("udp-connect", &[closed.address]).assert_failed("EACCES");

    host.expect_judgements(&[
        format!("allow udp {} by to-open", open.address),
        format!("deny udp {} EACCES", closed.address),
    ]);
}

#[test]
fn each_message_of_sendmmsg_is_judged() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);

    let attempt = host.attempt("sendmmsg", &[open.address, closed.address]);
    assert_eq!(attempt.sent, Some(1), "the kernel stops at the first refused message");
    open.expect_datagram();
    assert!(!closed.receive());

    host.expect_judgements(&[
        format!("allow udp {} by to-open", open.address),
        format!("deny udp {} EACCES", closed.address),
    ]);
}

#[test]
fn tcp_fast_open_is_judged() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new());

    host.attempt("tfo", &[peer.address]).assert_failed("EACCES");

    host.expect_judgements(&[format!("deny tcp {} EACCES", peer.address)]);
}

#[test]
fn mapped_ipv4_is_judged_as_ipv4() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);

    host.attempt("mapped", &[open.address]).assert_succeeded();
    host.attempt("mapped", &[closed.address]).assert_failed("EACCES");

    host.expect_judgements(&[
        format!("allow tcp {} by to-open", open.address),
        format!("deny tcp {} EACCES", closed.address),
    ]);
}

#[test]
fn mapped_ipv4_is_judged_as_ipv4_for_datagrams() {
    let (open, closed) = (UdpPeer::new(), UdpPeer::new());
    let config = Config::new().destination("open", open.address).permit("to-open", "open");
    let host = Host::start(&config);

    host.attempt("mapped-udp", &[open.address]).assert_succeeded();
    open.expect_datagram();
    host.attempt("mapped-udp", &[closed.address]).assert_failed("EACCES");

    host.expect_judgements(&[
        format!("allow udp {} by to-open", open.address),
        format!("deny udp {} EACCES", closed.address),
    ]);
}
