//! The wall clock is set under a running daemon: time windows follow it at once, lifetimes keep their length.

use std::process::Command;

use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;
use writ_tests::{Config, Host, UdpPeer, config, wait};

const STEP: i64 = 7_200;

/// Sets the clock by so many seconds.
#[track_caller]
fn set_by(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock can be read");
    let then = nix::sys::time::TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).expect("the clock can be set");
}

/// Sets it back, whatever becomes of the test.
struct SetBack(i64);

impl Drop for SetBack {
    fn drop(&mut self) {
        set_by(self.0);
    }
}

#[test]
#[ignore = "sets the clock of the whole machine: `cargo xtask vm` runs it in one of its own"]
fn a_clock_that_is_set_moves_windows_at_once_and_lifetimes_not_at_all() {
    let own = std::env::var("WRIT_TEST_CGROUP");
    assert_eq!(own.as_deref(), Ok("root"), "this sets the machine's clock: only `cargo xtask vm` may run it");
    let (office, granted) = (UdpPeer::new(), UdpPeer::new());
    let hour = Command::new("/bin/date").args(["--utc", "--date", "+1 hour", "+%Y-%m-%dT%H:%M:%SZ"]).output();
    let end = String::from_utf8(hour.expect("there is date(1)").stdout).expect("it is text");
    let policy = format!(
        "@id(\"for-an-hour\") @owner(\"o\") @reason(\"r\")\npermit (principal, action == Action::\"connect\", resource in \
         Destination::\"office\")\nwhen {{ context.now < datetime(\"{}\") }};\n",
        end.trim()
    );
    let config = Config::new().destination("office", office.address).destination("granted", granted.address);
    let host = Host::start(&config.file("policies.d/hour.cedar", &policy));
    host.writ_json(&[
        "grant",
        "create",
        "--account",
        config::ACCOUNT,
        "--to",
        "granted",
        "--ttl",
        "30m",
        "--reason",
        "x",
    ]);
    let expires = |host: &Host| -> jiff::Timestamp {
        let grants = host.writ_json(&["grant", "list"]);
        let text = grants.pointer("/0/expires").and_then(Value::as_str).expect("the grant is live");
        text.parse().expect("it is an instant")
    };
    let before = expires(&host);
    let mut probe = host.batch();
    let mut refused = |to| probe.attempt("udp-judge", to).errno.as_deref() == Some("EACCES");
    assert_eq!((refused(office.address), refused(granted.address)), (false, false));

    set_by(STEP);
    let back = SetBack(-STEP);
    wait::until("the window is over", || refused(office.address).then_some(()));
    assert!(!refused(granted.address), "the grant has as long to live as before");
    let moved = wait::until("the grant has moved along", || Some(expires(&host)).filter(|now| *now != before));
    let step = moved.duration_since(before).as_secs();
    assert!((STEP - 2..=STEP + 2).contains(&step), "it moved by {step} s");
    let lifecycle = host.records_of("lifecycle");
    let set = lifecycle.iter().find(|record| record.text("/event") == "clock-set").expect("it is on record");
    let step_ms = set.0["step_ms"].as_i64().expect("with its step");
    assert!((step_ms - STEP * 1_000).abs() < 2_000, "{step_ms}");
    let changes = host.records_of("change");
    let change = changes.iter().find(|record| record.text("/cause") == "clock-set").expect("and what it changed");
    assert_eq!(change.text("/closed/0/destination"), "office", "{}", change.0);

    // Set back, and the hour is not over yet.
    drop(back);
    wait::until("the window is open again", || (!refused(office.address)).then_some(()));
    assert!(!refused(granted.address));
}
