//! A hostile process of the account drives every technique at full speed, beside reloads and restarts: nothing that is
//! forbidden arrives on the other side of the cable.

use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};

use writ_techniques::{Answer, Order, Scene, Wanted};
use writ_tests::host::writ_program;
use writ_tests::{Config, Host, NetworkPair, user, wait};

/// For how long, in milliseconds.
const BOUND: u64 = 5_000;
const PORT: u16 = 7_766;

fn scene(host: &Host) -> Scene {
    Scene {
        uid: host.service_user().uid.as_raw(),
        stranger: user::ensure(user::STRANGER).uid.as_raw(),
        forbidden: NetworkPair::FAR,
        forbidden_v6: NetworkPair::FAR_V6,
        port: PORT,
        permitted: SocketAddrV4::new(NetworkPair::FAR_TOO, PORT + 1),
        marker: format!("hostile-{}", std::process::id()),
        directory: host.directory().to_owned(),
        tool: writ_program(),
        inside: host.cgroup().path().to_owned(),
        elsewhere: host.cgroup().path().to_owned(),
        others: Default::default(),
    }
}

fn start(pair: &NetworkPair, order: &Order) -> Child {
    let mut command: Command = pair.near();
    command.arg(writ_program()).args(["attempt", &order.to_json()]).stdout(Stdio::piped());
    command.spawn().expect("cannot run `nsenter` (util-linux)")
}

fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let answer = Answer::from_json(&String::from_utf8_lossy(&output.stdout));
    let answer = answer.unwrap_or_else(|why| panic!("{why}: {output:?}"));
    assert_eq!(answer.broken, None);
    answer
}

#[test]
fn nothing_forbidden_gets_out_whatever_is_tried_while_policy_is_reloaded_and_the_daemon_restarted() {
    let pair = NetworkPair::new();
    let permitted = SocketAddrV4::new(NetworkPair::FAR_TOO, PORT + 1);
    let config = Config::new().destination("permitted", permitted.into()).permit("to-permitted", "permitted");
    let mut host = Host::start(&config);
    let scene = scene(&host);
    let _peers = pair.listen([PORT, PORT + 1]);
    let (capture, wanted) = (pair.capture(), Wanted::of(&scene));

    // A capture that sees nothing proves nothing: first somebody who may.
    let control = Scene { uid: scene.stranger, ..scene.clone() };
    let sent = finish(start(&pair, &Order::new("udp-sendto", &control)));
    assert!(sent.went_through(), "{sent:?}");
    let arrives = || (capture.count(&wanted).unwrap() > 0).then_some(());
    wait::until("the capture sees what arrives", arrives);

    // Everything that is claimed as stopped, CAP_NET_RAW and namespaces of its own included; and the two commonest ways
    // alone, as fast as they go.
    let repeated = |technique: &str| Order { repeat: BOUND, ..Order::new(technique, &scene) };
    let hostile: Vec<Child> = ["all", "udp-sendto", "tcp-connect-nonblocking", "user-namespace", "raw"]
        .iter()
        .map(|technique| start(&pair, &repeated(technique)))
        .collect();
    let (mut hostile, mut reloads, mut restarts) = (hostile, 0, 0);
    while hostile.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        let reloaded = host.writ_output(&["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        reloads += 1;
        host.kill_daemon();
        host.run_daemon();
        restarts += 1;
    }
    let attempts: Vec<u64> = hostile.into_iter().map(|child| finish(child).attempts).collect();

    assert_eq!(capture.count(&wanted).unwrap(), 0, "forbidden packets arrived");
    assert!(attempts.iter().all(|count| *count >= 20), "{attempts:?}");
    assert!(reloads > 0 && restarts > 0);
    let denied = host.status()["records"]["seen"].as_u64().unwrap();
    assert!(denied >= attempts.iter().sum::<u64>() / 2, "{denied} of {attempts:?} were judged");
}
