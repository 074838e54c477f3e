//! A reader that follows the log gets every line once, whatever the log and its daemon do meanwhile.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use writ_tests::{Config, Host, TcpPeer, UdpPeer, wait};

/// The whole lines of every segment, in log order.
fn written(log: &Path) -> String {
    let mut segments: Vec<_> =
        fs::read_dir(log.join("records")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    segments.sort();
    segments.iter().map(|path| fs::read_to_string(path).expect("cannot read a segment")).collect()
}

#[test]
fn followers_get_each_line_once_across_rotation_under_load_and_restarts_of_the_daemon() {
    let (open, closed) = (TcpPeer::new(), UdpPeer::new());
    let mut config = Config::new().destination("open", open.address).permit("to-open", "open");
    config.agent = "[log]\nsegment-size = \"64KiB\"\n".to_owned();
    let mut host = Host::start(&config);
    let follow = |name: &str, filter: &[&str]| {
        let path = host.directory().join(name);
        let output = File::create(&path).expect("cannot make a file");
        let mut command = host.writ(&["tail", "-f", "--since", "1h"]);
        (command.args(filter).stdout(Stdio::from(output)).spawn().expect("cannot run `writ tail`"), path)
    };
    // One from the beginning, one that begins in the middle and must not miss what came before, one that wants a part.
    let (mut first, all) = follow("first", &[]);
    let (allowed, refused) = (host.paced(1_000, "tcp", open.address), host.paced(1_000, "udp-send", closed.address));
    allowed.wait_for_more(200);
    let (mut second, late) = follow("second", &[]);
    let (mut third, denied) = follow("third", &["--verdict", "deny", "--type", "decision"]);
    allowed.wait_for_more(200);
    host.kill_daemon();
    allowed.wait_for_more(50);
    host.run_daemon();
    allowed.wait_for_more(200);
    assert_eq!(host.stop_daemon(), Some(0));
    host.run_daemon();
    allowed.stop();
    refused.stop();
    host.settled_by_the_log(host.status()["records"]["seen"].as_u64().unwrap_or_default());
    assert_eq!(host.stop_daemon(), Some(0));
    let log = written(&host.log_directory());
    let segments = fs::read_dir(host.log_directory().join("records")).expect("cannot read the log").count();
    assert!(segments > 10, "only {segments} segments");
    let wanted: String = log
        .lines()
        .filter(|line| line.contains("\"type\":\"decision\"") && line.contains("\"verdict\":\"deny\""))
        .map(|line| format!("{line}\n"))
        .collect();
    for (path, expected) in [(&all, &log), (&late, &log), (&denied, &wanted)] {
        let got = wait::within(wait::PATIENCE, || {
            let text = fs::read_to_string(path).expect("cannot read what a follower wrote");
            (text.len() >= expected.len()).then_some(text)
        });
        let got = got.unwrap_or_else(|| fs::read_to_string(path).expect("cannot read what a follower wrote"));
        assert!(got == *expected, "{}: {} lines of {}", path.display(), got.lines().count(), expected.lines().count());
    }
    for follower in [&mut first, &mut second, &mut third] {
        follower.kill().expect("cannot end a follower");
        follower.wait().expect("cannot wait for a follower");
    }
}
