//! What concerns all files: every finding at once, places, files that are not read.

use super::{check_files, config, files, findings, host};
use crate::config::{SourceFile, parse};
use crate::diagnostic::Location;

#[test]
fn all_findings_of_all_files_come_at_once_in_order_of_place() {
    check_files(
        &[
            ("writ.toml", "mode = \"enforc\"\ntime-zone = 1\n[paths]\nlogs = \"/x\"\n"),
            ("signals.d/s.toml", "[signal.a]\nrisk = 200\n"),
            (
                "service-accounts.d/a.toml",
                "[service-account.a]\nmatch = {}\nrequires-fresh = [\"b\"]\nerrno = \"ENOPE\"\n",
            ),
            ("destinations.d/d.toml", "[destination.d]\naddresses = [\"10.0.0.1/8\", \"x\"]\nports = [0, 70000]\n"),
            ("destinations.d/e.toml", "[destination.d]\n"),
            ("destinations.d/f.toml", "= oops\n"),
        ],
        &[
            "destinations.d/d.toml:2:14: warning[host-bits]: `addresses`: `10.0.0.1/8` has bits beyond its prefix: read as `10.0.0.0/8`; write \"10.0.0.0/8\"",
            "destinations.d/d.toml:2:28: error[bad-address]: `addresses`: `x` is neither an address nor a prefix; a host name is no address, and `names` are not implemented yet: write its addresses",
            "destinations.d/d.toml:3:13: error[bad-port]: `ports`: `70000` is not a port; ports are 0 to 65535",
            "destinations.d/e.toml:1:14: error[duplicate]: `[destination.d]` is declared twice: here and at destinations.d/d.toml:1:14; remove one, or rename it",
            "destinations.d/f.toml:1:1: error[toml-syntax]: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
            "destinations.d/f.toml:1:3: error[toml-syntax]: string values must be quoted, expected literal string",
            "service-accounts.d/a.toml:2:9: error[empty-match]: `match` is empty: it would mean every process or none; set at least one of `user`, `unit`, `cgroup`, `executable`",
            "service-accounts.d/a.toml:3:19: warning[unknown-signal]: `requires-fresh` of service account `a`: no signal `b` is declared, and until it is the account is refused everything; declare `[signal.\"b\"]` with `freshness = true` in `signals.d/`",
            "service-accounts.d/a.toml:4:9: error[bad-errno]: `errno`: `ENOPE` is not an errno of connect(2); did you mean `ENOMEM`?",
            "signals.d/s.toml:1:9: error[missing-ttl]: signal `a` has no `ttl`; write how long it holds, e.g. ttl = \"1h\"",
            "signals.d/s.toml:2:8: error[bad-risk]: `risk`: `200` is not a risk; risk goes from 0 to 100",
            "writ.toml:1:8: error[unknown-value]: `mode`: `enforc` is not a value it can have; did you mean `enforce`?",
            "writ.toml:2:13: error[wrong-type]: `time-zone` in `writ.toml` must be a string, not an integer; write it in quotes: \"1\"",
            "writ.toml:4:1: error[unknown-key]: unknown key `logs` in `[paths]`; did you mean `log`?",
        ],
    );
}

#[test]
fn a_warning_alone_does_not_refuse() {
    let parsed = parse(&files(&[("destinations.d/d.toml", "[destination.d]\n")]), &host());
    assert_eq!(parsed.diagnostics.len(), 1);
    assert!(parsed.config.is_some());
}

#[test]
fn columns_count_characters_and_lines_may_end_in_crlf() {
    check_files(
        &[("writ.toml", "mode = \"enforce\"\r\napprovers = [\"jörg\", \"a b\"]\r\nx = 1")],
        &[
            "writ.toml:2:22: error[bad-person]: `approvers`: `a b` is neither a user nor a `%group`; write a user name, or a group name with `%` in front",
            "writ.toml:3:1: error[unknown-key]: unknown key `x` in `writ.toml`; one of: `mode`, `label`, `approvers`, `operators`, `escalation-ttl`, `grant-max-ttl`, `on-escalation`, `risk`, `time-zone`, `nat64`, `paths`, `kernel`, `log`, `sessions`, `sink`, `ssf`, `https`",
        ],
    );
}

#[test]
fn a_place_is_the_one_the_shared_function_finds() {
    let text = "a = 1\n\"öäü\" = 2\n\nb = 3\n";
    let parsed = parse(&files(&[("writ.toml", text)]), &host());
    assert_eq!(parsed.diagnostics.len(), 3);
    for finding in &parsed.diagnostics {
        let at = finding.at.as_ref().unwrap();
        assert_eq!(*at, Location::of("writ.toml", text, at.offset, at.length));
        let meant = text.get(at.offset..at.offset + at.length).unwrap();
        assert!(finding.message.contains(&format!("`{}`", meant.trim_matches('"'))), "{meant}: {finding:?}");
    }
}

#[test]
fn what_stands_in_a_file_is_shown_on_one_line_and_obeyed_by_no_terminal() {
    let text = "escalation-ttl = \"1\\n\\u001b[31m\"\n\"a\\nb\" = 1\n";
    let parsed = parse(&files(&[("writ.toml", text)]), &host());
    let found = findings(&parsed);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|line| !line.contains(char::is_control)), "{found:?}");
    assert!(found[0].contains(r"`1\n\u{1b}[31m` is not a duration"), "{}", found[0]);
    assert!(found[1].contains(r"unknown key `a\nb`"), "{}", found[1]);
}

#[test]
fn policies_and_schemas_are_handed_on_in_name_order() {
    let written = [
        ("policies.d/b.cedar", "b"),
        ("schema.d/x.cedarschema", "x"),
        ("policies.d/a.cedar", "a"),
        ("policies.d/a.cedar~", "backup"),
        ("policies.d/.c.cedar", "hidden"),
        ("policies.d/README", "text"),
    ];
    let config = config(&written);
    let names = |files: &[SourceFile]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&config.policies), ["policies.d/a.cedar", "policies.d/b.cedar"]);
    assert_eq!(names(&config.schemas), ["schema.d/x.cedarschema"]);
    assert_eq!(config.policies[0].text, "a");
}

#[test]
fn configuration_where_none_is_read_is_warned_of() {
    check_files(
        &[("policy.d/forbid.cedar", "forbid(principal, action, resource);")],
        &[
            "policy.d/forbid.cedar:1:1: warning[not-read]: `policy.d/forbid.cedar` is not read: nothing in it is in force; writ reads `writ.toml`, `service-accounts.d/*.toml`, `destinations.d/*.toml`, `signals.d/*.toml`, `policies.d/*.cedar`, `schema.d/*.cedarschema`",
        ],
    );
}

#[test]
fn a_flood_of_syntax_errors_is_counted_and_not_listed() {
    let text = "= x\n".repeat(5_000);
    let parsed = parse(&files(&[("writ.toml", &text)]), &host());
    let found = findings(&parsed);
    assert_eq!(found.len(), 21);
    assert!(found[20].contains("more syntax errors"), "{}", found[20]);
}
