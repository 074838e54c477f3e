//! Who is not a service account does not notice writ, and writ keeps no record of them.

use writ_tests::{Config, Host, TcpPeer, user};

#[test]
fn unmanaged_user_is_untouched() {
    let peer = TcpPeer::new();
    let host = Host::start(&Config::new());
    let stranger = user::ensure(user::STRANGER);

    host.attempt_as(&stranger, "tcp", &[peer.address]).assert_succeeded();
    host.attempt_as(&stranger, "udp-send", &[peer.address]).assert_succeeded();

    // The account's own attempt comes after, so that its record shows what was recorded before it: nothing.
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
    host.expect_judgements(&[format!("deny tcp {} EACCES", peer.address)]);
}
