//! `signals.d/*.toml`, and what accounts require of them.

use std::time::Duration;

use super::{check, check_files, config};

const FILE: &str = "signals.d/edr.toml";
const ACCOUNT: &str = "service-accounts.d/a.toml";

#[test]
fn a_signal_needs_nothing_but_its_time_to_live() {
    let config = config(&[(FILE, "[signal.\"edr.malware\"]\nttl = \"1h\"\n")]);
    let signal = &config.signals["edr.malware"];
    assert_eq!((signal.risk, signal.ttl), (0, Duration::from_secs(3_600)));
    assert!(!signal.flag && !signal.freshness && signal.from.is_empty());
    check(
        FILE,
        "[signal.\"edr.malware\"]\nrisk = 90\n",
        &["1:9: error[missing-ttl]: signal `edr.malware` has no `ttl`; write how long it holds, e.g. ttl = \"1h\""],
    );
}

#[test]
fn risk_goes_from_0_to_100() {
    for risk in [0, 100] {
        let text = format!("[signal.a]\nttl = \"1h\"\nrisk = {risk}\n");
        assert_eq!(config(&[(FILE, &text)]).signals["a"].risk, risk);
    }
    check(
        FILE,
        "[signal.a]\nttl = \"1h\"\nrisk = 101\n",
        &["3:8: error[bad-risk]: `risk`: `101` is not a risk; risk goes from 0 to 100"],
    );
    check(
        FILE,
        "[signal.a]\nttl = \"1h\"\nrisk = -1\n",
        &["3:8: error[bad-risk]: `risk`: `-1` is not a risk; risk goes from 0 to 100"],
    );
    check(
        FILE,
        "[signal.a]\nttl = \"1h\"\nrisk = \"high\"\nflag = 1\nfrom = [\"\"]\nfresh = true\n",
        &[
            "3:8: error[wrong-type]: `risk` in `[signal.a]` must be an integer, not a string",
            "4:8: error[wrong-type]: `flag` in `[signal.a]` must be `true` or `false`, not an integer",
            "5:9: error[bad-person]: `from`: `` is neither a user nor a `%group`; write a user name, or a group name with `%` in front",
            "6:1: error[unknown-key]: unknown key `fresh` in `[signal.a]`; one of: `risk`, `ttl`, `flag`, `from`, `freshness`, `ends-sessions`",
        ],
    );
}

#[test]
fn an_unquoted_kind_is_two_tables_and_is_refused() {
    check(
        FILE,
        "[signal.edr.malware]\nttl = \"1h\"\n",
        &[
            "1:13: error[unquoted-name]: `[signal.edr.malware]` is a table within a table; write a name with a dot in quotes: `[signal.\"edr.malware\"]`",
        ],
    );
}

#[test]
fn requires_fresh_names_a_freshness_signal_and_one_that_is_not_declared_is_warned_of() {
    let account = "[service-account.a]\nmatch = { user = \"a\" }\nrequires-fresh = [\"edr.heartbeat\"]\n";
    check_files(
        &[(ACCOUNT, account)],
        &[
            "service-accounts.d/a.toml:3:19: warning[unknown-signal]: `requires-fresh` of service account `a`: no signal `edr.heartbeat` is declared, and until it is the account is refused everything; declare `[signal.\"edr.heartbeat\"]` with `freshness = true` in `signals.d/`",
        ],
    );
    check_files(
        &[(ACCOUNT, account), (FILE, "[signal.\"edr.heartbeat\"]\nttl = \"1m\"\n")],
        &[
            "service-accounts.d/a.toml:3:19: error[not-a-freshness-signal]: `requires-fresh` of service account `a`: signal `edr.heartbeat` says nothing about freshness; set `freshness = true` in `[signal.\"edr.heartbeat\"]`",
        ],
    );
    check_files(
        &[(ACCOUNT, account), (FILE, "[signal.\"edr.heartbeats\"]\nttl = \"1m\"\nfreshness = true\n")],
        &[
            "service-accounts.d/a.toml:3:19: warning[unknown-signal]: `requires-fresh` of service account `a`: no signal `edr.heartbeat` is declared, and until it is the account is refused everything; did you mean `edr.heartbeats`? Otherwise declare `[signal.\"edr.heartbeat\"]` with `freshness = true` in `signals.d/`",
        ],
    );
    check_files(&[(ACCOUNT, account), (FILE, "[signal.\"edr.heartbeat\"]\nttl = \"1m\"\nfreshness = true\n")], &[]);
}

#[test]
fn a_broken_file_of_signals_is_not_taken_for_missing_signals() {
    let account = "[service-account.a]\nmatch = { user = \"a\" }\nrequires-fresh = [\"edr.heartbeat\"]\n";
    check_files(
        &[(ACCOUNT, account), (FILE, "[signal.\"edr.heartbeat\"]\nttl = \n")],
        &["signals.d/edr.toml:2:7: error[toml-syntax]: string values must be quoted, expected literal string"],
    );
}
