//! `writ.toml`.

use std::time::Duration;

use super::{check, config, files, host};
use crate::config::{Agent, AtStart, Fsync, HostFacts, Kernel, LogSettings, Mode, Paths, Sessions, parse};
use crate::signal::RiskRule;

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    check("writ.toml", text, expected);
}

#[test]
fn no_file_at_all_means_the_documented_defaults() {
    let expected = Agent {
        mode: Mode::Enforce,
        label: None,
        approvers: vec!["root".into()],
        operators: vec!["root".into()],
        escalation_ttl: Duration::from_secs(3_600),
        grant_max_ttl: Duration::from_secs(28_800),
        on_escalation: vec![],
        risk: RiskRule::Maximum,
        time_zone: "UTC".into(),
        nat64: vec![],
        paths: Paths {
            state: "/var/lib/writ".into(),
            log: "/var/log/writ".into(),
            socket: "/run/writ/writ.sock".into(),
            drop: None,
            pins: "/sys/fs/bpf/writ".into(),
            cgroup: None,
        },
        kernel: Kernel { require: vec![], ring_size: 16_777_216 },
        log: LogSettings {
            fsync: Fsync::Checkpoint,
            segment_size: 67_108_864,
            segment_age: Duration::from_secs(86_400),
            retention: None,
            key: None,
        },
        sessions: Sessions::default(),
        sinks: std::collections::BTreeMap::new(),
        ssf: std::collections::BTreeMap::new(),
        https: None,
    };
    assert_eq!(config(&[]).agent, expected);
    assert_eq!(config(&[("writ.toml", "")]).agent, expected);
    assert_eq!(config(&[("writ.toml", "[paths]\n[kernel]\n[log]\n")]).agent, expected);
}

#[test]
fn every_setting_is_read() {
    let text = r#"
        mode = "observe"
        approvers = ["root", "%security"]
        operators = []
        escalation-ttl = "30m"
        grant-max-ttl = "1h 30m"
        on-escalation = ["/usr/bin/page", "team"]
        risk = "sum"
        time-zone = "Europe/Berlin"
        label = "2026-11-26 payments"
        nat64 = ["64:ff9b::/96"]
        [paths]
        state = "/s"
        log = "/l/"
        socket = "/k.sock"
        drop = "/d"
        pins = "/p"
        cgroup = "/sys/fs/cgroup/demo"
        [kernel]
        require = ["lsm", "cgroup"]
        ring-size = 65536
        [log]
        fsync = "always"
        segment-size = "64KiB"
        segment-age = "2h"
        retention = "90d"
        key = "/etc/writ/log.key"
        [sessions]
        at-start = "cut"
    "#;
    let expected = Agent {
        mode: Mode::Observe,
        label: Some("2026-11-26 payments".into()),
        approvers: vec!["root".into(), "%security".into()],
        operators: vec![],
        escalation_ttl: Duration::from_secs(1_800),
        grant_max_ttl: Duration::from_secs(5_400),
        on_escalation: vec!["/usr/bin/page".into(), "team".into()],
        risk: RiskRule::CappedSum,
        time_zone: "Europe/Berlin".into(),
        nat64: vec!["64:ff9b::/96".parse().unwrap()],
        paths: Paths {
            state: "/s".into(),
            log: "/l".into(),
            socket: "/k.sock".into(),
            drop: Some("/d".into()),
            pins: "/p".into(),
            cgroup: Some("/sys/fs/cgroup/demo".into()),
        },
        kernel: Kernel { require: vec!["lsm".into(), "cgroup".into()], ring_size: 65_536 },
        log: LogSettings {
            fsync: Fsync::Always,
            segment_size: 65_536,
            segment_age: Duration::from_secs(7_200),
            retention: Some(Duration::from_secs(90 * 86_400)),
            key: Some("/etc/writ/log.key".into()),
        },
        sessions: Sessions { at_start: AtStart::Cut },
        sinks: std::collections::BTreeMap::new(),
        ssf: std::collections::BTreeMap::new(),
        https: None,
    };
    assert_eq!(config(&[("writ.toml", text)]).agent, expected);
}

#[test]
fn an_unknown_key_is_refused_at_the_key() {
    refused(
        "\nmoed = \"observe\"\n",
        &["2:1: error[unknown-key]: unknown key `moed` in `writ.toml`; did you mean `mode`?"],
    );
    refused(
        "[paths]\nstat = \"/s\"\n[kernal]\n",
        &[
            "2:1: error[unknown-key]: unknown key `stat` in `[paths]`; did you mean `state`?",
            "3:2: error[unknown-key]: unknown key `kernal` in `writ.toml`; did you mean `kernel`?",
        ],
    );
    refused(
        "colour = 1\n",
        &[
            "1:1: error[unknown-key]: unknown key `colour` in `writ.toml`; one of: `mode`, `label`, `approvers`, `operators`, `escalation-ttl`, `grant-max-ttl`, `on-escalation`, `risk`, `time-zone`, `nat64`, `paths`, `kernel`, `log`, `sessions`, `sink`, `ssf`, `https`",
        ],
    );
}

#[test]
fn a_wrong_type_is_refused_at_the_value() {
    refused(
        "mode = true\napprovers = \"root\"\nescalation-ttl = 3600\n",
        &[
            "1:8: error[wrong-type]: `mode` in `writ.toml` must be a string, not a boolean",
            "2:13: error[wrong-type]: `approvers` in `writ.toml` must be an array, not a string; write it in brackets: [\"root\"]",
            "3:18: error[bad-duration]: `escalation-ttl`: `3600` is not a duration: `3600` has no unit; write whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, e.g. \"1h 30m\"",
        ],
    );
    refused(
        "paths = \"/x\"\n[log]\nretention = []\n[kernel]\nring-size = 1.5\nrequire = [1]\n",
        &[
            "1:9: error[wrong-type]: `paths` in `writ.toml` must be a table, not a string",
            "3:13: error[wrong-type]: `retention` in `[log]` must be a duration, not an array",
            "5:13: error[wrong-type]: `ring-size` in `[kernel]` must be a size, not a float",
            "6:12: error[wrong-type]: `require` in `[kernel]` must be a string, not an integer; write it in quotes: \"1\"",
        ],
    );
}

#[test]
fn a_bad_value_is_refused_with_what_to_write() {
    refused(
        "mode = \"enforced\"\n",
        &["1:8: error[unknown-value]: `mode`: `enforced` is not a value it can have; did you mean `enforce`?"],
    );
    refused(
        "grant-max-ttl = \"8\"\nescalation-ttl = \"0s\"\n",
        &[
            "1:17: error[bad-duration]: `grant-max-ttl`: `8` is not a duration: `8` has no unit; write whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, e.g. \"1h 30m\"",
            "2:18: error[bad-duration]: `escalation-ttl`: `0s` is no time at all",
        ],
    );
    refused(
        "approvers = [\"%\", \"a b\"]\n",
        &[
            "1:14: error[bad-person]: `approvers`: `%` is neither a user nor a `%group`; write a user name, or a group name with `%` in front",
            "1:19: error[bad-person]: `approvers`: `a b` is neither a user nor a `%group`; write a user name, or a group name with `%` in front",
        ],
    );
    refused(
        "[kernel]\nrequire = [\"lms\"]\n",
        &[
            "2:12: error[unknown-coverage]: `require`: `lms` is not a kind of coverage; one of: `cgroup`, `lsm`, `tracing`, `egress`, `sock-destroy`, `set-retval`",
        ],
    );
    refused(
        "[log]\nfsync = \"sometimes\"\nsegment-size = \"1KiB\"\n",
        &[
            "2:9: error[unknown-value]: `fsync`: `sometimes` is not a value it can have; one of: `always`, `checkpoint`, `never`",
            "3:16: error[bad-size]: `segment-size`: 1024 bytes is too small for a segment; write \"64KiB\" or more: one line can be that long",
        ],
    );
    refused(
        "[paths]\nstate = \"var\"\nlog = \"/a/../b\"\n",
        &[
            "2:9: error[bad-path]: `state`: `var` is not an absolute path; start it with `/`",
            "3:7: error[bad-path]: `log`: `/a/../b` is not in its plain form; write it without `.`, `..` and `//`",
        ],
    );
}

#[test]
fn the_ring_is_a_power_of_two_from_64_kib_to_2_gib() {
    refused(
        "[kernel]\nring-size = \"24MiB\"\n",
        &[
            "2:13: error[bad-ring-size]: `ring-size`: 25165824 bytes is not a power of two from 64KiB to 2GiB; write e.g. \"32MiB\"",
        ],
    );
    refused(
        "[kernel]\nring-size = \"4KiB\"\n",
        &[
            "2:13: error[bad-ring-size]: `ring-size`: 4096 bytes is not a power of two from 64KiB to 2GiB; write e.g. \"64KiB\"",
        ],
    );
    refused(
        "[kernel]\nring-size = \"4GiB\"\n",
        &[
            "2:13: error[bad-ring-size]: `ring-size`: 4294967296 bytes is not a power of two from 64KiB to 2GiB; write e.g. \"2GiB\"",
        ],
    );
    refused("[kernel]\nring-size = -1\n", &["2:13: error[bad-size]: `ring-size`: `-1` is not a size"]);
    for (written, bytes) in [("\"64KiB\"", 1 << 16), ("\"2GiB\"", 1 << 31)] {
        let text = format!("[kernel]\nring-size = {written}\n");
        assert_eq!(config(&[("writ.toml", &text)]).agent.kernel.ring_size, bytes);
    }
}

#[test]
fn a_socket_path_fits_its_address() {
    let longest = format!("/{}", "s".repeat(106));
    assert_eq!(config(&[("writ.toml", &format!("paths.socket = \"{longest}\""))]).agent.paths.socket, longest);
    let parsed = parse(&files(&[("writ.toml", &format!("paths.socket = \"{longest}s\""))]), &host());
    assert!(parsed.diagnostics[0].message.contains("has 108 bytes"), "{parsed:?}");
}

#[test]
fn a_label_is_one_line() {
    let error = |text: &str, at: &str| {
        let said = "error[bad-label]: `label`: it is no line of 1 to 128 bytes; write what tells this configuration from others, \
                    e.g. \"2026-11-26 payments\"";
        refused(text, &[&format!("{at}: {said}")]);
    };
    error("label = \"\"\n", "1:9");
    error("label = \"a\\nb\"\n", "1:9");
    error(&format!("label = \"{}\"\n", "x".repeat(129)), "1:9");
}

#[test]
fn a_time_zone_is_one_the_host_knows() {
    refused(
        "time-zone = \"Europe/Berln\"\n",
        &[
            "1:13: error[bad-time-zone]: `time-zone`: this host knows no time zone `Europe/Berln`; did you mean `Europe/Berlin`?",
        ],
    );
    refused(
        "time-zone = \"../../etc/shadow\"\n",
        &[
            "1:13: error[bad-time-zone]: `time-zone`: `../../etc/shadow` is not the name of a time zone; write an IANA name, e.g. \"UTC\" or \"Europe/Berlin\"",
        ],
    );
    let zone = files(&[("writ.toml", "time-zone = \"Mars/Olympus\"")]);
    let trusting = HostFacts { time_zones: None, ..host() };
    assert_eq!(parse(&zone, &trusting).config.unwrap().agent.time_zone, "Mars/Olympus");
}

#[test]
fn nat64_prefixes_have_96_bits_and_are_at_most_four() {
    refused(
        "nat64 = [\"64:ff9b::/64\", \"10.0.0.0/8\"]\n",
        &[
            "1:10: error[bad-nat64]: `nat64`: `64:ff9b::/64` has 64 bits, not 96; only /96 prefixes are judged as IPv4, e.g. \"64:ff9b::/96\"",
            "1:26: error[bad-nat64]: `nat64`: `10.0.0.0/8` is not an IPv6 prefix; write e.g. \"64:ff9b::/96\"",
        ],
    );
    refused(
        "nat64 = [\"64:ff9b::1/96\"]\n",
        &[
            "1:10: warning[host-bits]: `nat64`: bits beyond the prefix are set: read as `64:ff9b::/96`; write \"64:ff9b::/96\"",
        ],
    );
    refused(
        "nat64 = [\"1::/96\", \"2::/96\", \"3::/96\", \"4::/96\", \"5::/96\"]\n",
        &["1:50: error[too-many-nat64]: `nat64`: more than 4 prefixes; the kernel compares no more"],
    );
}

#[test]
fn syntax_errors_have_a_place() {
    refused("mode = \n", &["1:8: error[toml-syntax]: string values must be quoted, expected literal string"]);
    refused("mode = \"observe\"\nmode = \"enforce\"\n", &["2:1: error[toml-syntax]: duplicate key"]);
    refused("[paths\nstate = 1\n", &["1:7: error[toml-syntax]: unclosed table, expected `]`"]);
}

#[test]
fn pins_are_in_a_directory_of_their_own() {
    for pins in ["/sys/fs/bpf", "/sys/fs/bpf/", "/sys/fs", "/"] {
        let shown = if pins == "/" { pins } else { pins.trim_end_matches('/') };
        check(
            "writ.toml",
            &format!("[paths]\npins = \"{pins}\"\n"),
            &[&format!(
                "2:8: error[bad-path]: `pins`: `{shown}` holds what others pin too: writ's pins need a directory of their own; name a directory below the mount, e.g. \"/sys/fs/bpf/writ\""
            )],
        );
    }
    check("writ.toml", "[paths]\npins = \"/sys/fs/bpf/writ\"\n", &[]);
    check("writ.toml", "[paths]\npins = \"/sys/fs/bpf/teams/writ\"\n", &[]);
}

#[test]
fn state_log_and_drop_are_directories_of_their_own() {
    let one = |line: &str, two: &str| {
        let at = if line == "3" { 7 } else { 9 };
        format!("{line}:{at}: error[bad-path]: {two}; give each a directory of its own")
    };
    check(
        "writ.toml",
        "[paths]\nstate = \"/w\"\nlog = \"/w/\"\n",
        &[&one("3", "`log` and `state` are one directory, `/w`")],
    );
    check(
        "writ.toml",
        "[paths]\nstate = \"/var/log/writ\"\n",
        &[&one("2", "`log` and `state` are one directory, `/var/log/writ`")],
    );
    check(
        "writ.toml",
        "[paths]\nlog = \"/\"\n",
        &[
            "2:7: error[bad-path]: `log`: `/` is the root directory, which is not writ's alone; name a directory of its own",
        ],
    );
}
