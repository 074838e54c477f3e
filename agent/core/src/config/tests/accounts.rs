//! `service-accounts.d/*.toml`.

use super::{check, check_files, config};
use crate::config::{Attribute, MAX_ACCOUNTS, Match, Mode, OnRecordLoss, SourceFile, parse};

const FILE: &str = "service-accounts.d/a.toml";

/// The body of `[service-account.a]` with a match already written on line 2.
#[track_caller]
fn body(text: &str, expected: &[&str]) {
    check(FILE, &format!("[service-account.a]\nmatch = {{ user = \"a\" }}\n{text}\n"), expected);
}

/// A match table, written from line 2, column 9 on.
#[track_caller]
fn matching(written: &str, expected: &[&str]) {
    check(FILE, &format!("[service-account.a]\nmatch = {written}\n"), expected);
}

#[test]
fn an_account_without_settings_has_the_documented_defaults() {
    let config = config(&[(FILE, "[service-account.a]\nmatch = { user = \"svc\" }\n")]);
    let account = &config.accounts["a"];
    assert_eq!(account.name, "a");
    assert_eq!(account.owner, None);
    assert_eq!(account.matches, [Match { user: Some("svc".into()), ..Match::default() }]);
    assert_eq!(account.on_record_loss, OnRecordLoss::Allow);
    assert_eq!(account.errno, 13);
    assert_eq!(account.mode, None);
    assert_eq!(account.learning, None);
    assert_eq!(account.revoke_grants_on, ["workload.*"]);
    assert!(account.teams.is_empty() && account.executables.is_empty() && account.requires_fresh.is_empty());
    assert!(account.attributes.is_empty());
    assert_eq!((account.at.line, account.at.column, account.at.length), (1, 18, 1));
}

#[test]
fn one_match_table_is_anded_and_an_array_of_tables_is_ored() {
    let text = r#"
        [service-account.a]
        match = { user = "1001", unit = "a.service", cgroup = "/a", executable = "/usr/bin/a" }
        [[service-account.b.match]]
        user = "b"
        [[service-account.b.match]]
        unit = "b@1.service"
    "#;
    let config = config(&[(FILE, text)]);
    let all = Match {
        user: Some("1001".into()),
        unit: Some("a.service".into()),
        cgroup: Some("/a".into()),
        executable: Some("/usr/bin/a".into()),
    };
    assert_eq!(config.accounts["a"].matches, [all]);
    let user = Match { user: Some("b".into()), ..Match::default() };
    let unit = Match { unit: Some("b@1.service".into()), ..Match::default() };
    assert_eq!(config.accounts["b"].matches, [user, unit]);
}

#[test]
fn every_setting_is_read() {
    let text = r#"
        [service-account.a]
        match = { user = "a" }
        errno = "ECONNREFUSED"
        mode = "observe"
        on-record-loss = "deny"
        revoke-grants-on = []
        [service-account.a.attributes]
        tier = 1
        env = "prod"
        human = false
    "#;
    let config = config(&[(FILE, text)]);
    let account = &config.accounts["a"];
    assert_eq!(account.errno, 111);
    assert_eq!(account.mode, Some(Mode::Observe));
    assert_eq!(account.effective_mode(Mode::Enforce), Mode::Observe);
    assert_eq!(account.on_record_loss, OnRecordLoss::Deny);
    assert!(account.revoke_grants_on.is_empty());
    let attributes =
        [("env", Attribute::Text("prod".into())), ("human", Attribute::Bool(false)), ("tier", Attribute::Long(1))];
    assert_eq!(account.attributes, attributes.map(|(name, value)| (name.to_owned(), value)).into());
}

#[test]
fn an_unknown_key_is_refused_at_the_key() {
    body(
        "onwer = \"x\"\nteams = []",
        &[
            "3:1: error[unknown-key]: unknown key `onwer` in `[service-account.a]`; did you mean `owner`?",
            "4:1: error[unknown-key]: unknown key `teams` in `[service-account.a]`; did you mean `team`?",
        ],
    );
    matching("{ usr = \"a\" }", &["2:11: error[unknown-key]: unknown key `usr` in `match`; did you mean `user`?"]);
}

#[test]
fn a_bad_setting_is_refused_at_the_value() {
    body(
        "errno = \"EACCESS\"",
        &["3:9: error[bad-errno]: `errno`: `EACCESS` is not an errno of connect(2); did you mean `EACCES`?"],
    );
    body(
        "errno = \"EINPROGRESS\"",
        &[
            "3:9: error[bad-errno]: `errno`: `EINPROGRESS` is not a refusal: a program would wait or try again; use e.g. `EACCES`, `EPERM`, `ECONNREFUSED`",
        ],
    );
    body(
        "errno = 13",
        &[
            "3:9: error[wrong-type]: `errno` in `[service-account.a]` must be a string, not an integer; write it in quotes: \"13\"",
        ],
    );
    body(
        "mode = \"off\"\non-record-loss = \"drop\"",
        &[
            "3:8: error[unknown-value]: `mode`: `off` is not a value it can have; one of: `enforce`, `observe`",
            "4:18: error[unknown-value]: `on-record-loss`: `drop` is not a value it can have; one of: `allow`, `deny`",
        ],
    );
    body(
        "learning = \"a week\"\nowner = \"\"",
        &[
            "3:12: error[bad-duration]: `learning`: `a week` is not a duration; write whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, e.g. \"1h 30m\"",
            "4:9: error[empty-value]: `owner`: it is empty; leave it out",
        ],
    );
    body(
        "executables = [\"python3\", \"/usr/bin/\", \"/usr/bin/../bin/x\"]",
        &[
            "3:16: error[bad-path]: `executables`: `python3` is not an absolute path; start it with `/`",
            "3:27: error[bad-path]: `executables`: `/usr/bin/` is a directory, not a file",
            "3:40: error[bad-path]: `executables`: `/usr/bin/../bin/x` is not in its plain form; write it without `.`, `..` and `//`",
        ],
    );
    body(
        "revoke-grants-on = [\"work load\"]\nteam = [\"a/b\"]",
        &[
            "3:21: error[bad-pattern]: `revoke-grants-on`: `work load` is not a pattern of signal kinds; use letters, digits, `.`, `_` and `-`, and `*` for anything",
            "4:9: error[bad-name]: `team`: `a/b` has a `/`, which a name cannot have; use letters, digits, `.`, `_` and `-`",
        ],
    );
    body(
        "[service-account.a.attributes]\nx = 1.5\n\"y z\" = 1\nw = 99999999999999999999",
        &[
            "4:5: error[wrong-type]: `x` in `[service-account.a.attributes]` must be a string, an integer or a boolean, not a float",
            "5:1: error[bad-name]: `y z` has a ` `, which a name cannot have; use letters, digits, `.`, `_` and `-`",
            "6:5: error[bad-number]: `w`: `99999999999999999999` does not fit in 64 bits",
        ],
    );
}

#[test]
fn a_match_says_something() {
    matching(
        "{}",
        &[
            "2:9: error[empty-match]: `match` is empty: it would mean every process or none; set at least one of `user`, `unit`, `cgroup`, `executable`",
        ],
    );
    matching(
        "[]",
        &[
            "2:9: error[empty-match]: `match` is empty: it would mean every process or none; set at least one of `user`, `unit`, `cgroup`, `executable`",
        ],
    );
    matching(
        "[{ user = \"a\" }, {}]",
        &[
            "2:26: error[empty-match]: `match` is empty: it would mean every process or none; set at least one of `user`, `unit`, `cgroup`, `executable`",
        ],
    );
    matching(
        "\"svc\"",
        &[
            "2:9: error[wrong-type]: `match` in `[service-account.a]` must be a table or an array of tables, not a string",
        ],
    );
    matching("[\"svc\"]", &["2:10: error[wrong-type]: `match` in `[service-account.a]` must be a table, not a string"]);
    check(
        FILE,
        "[service-account.a]\n",
        &[
            "1:18: warning[no-match]: service account `a` has no `match`: no process is ever it; write e.g. match = { user = \"svc\" }",
        ],
    );
}

#[test]
fn a_match_names_things_as_the_host_does() {
    matching(
        "{ unit = \"billing\" }",
        &["2:18: error[bad-unit]: `unit`: `billing` has no unit suffix; did you mean `billing.service`?"],
    );
    matching(
        "{ unit = \"a@.service\" }",
        &[
            "2:18: error[bad-unit]: `unit`: `a@.service` is a template, of which only instances run; write an instance, e.g. `a@1.service`, or the slice `system-a.slice`",
        ],
    );
    matching(
        "{ unit = \"nightly.timer\" }",
        &["2:18: error[bad-unit]: `unit`: `nightly.timer` is a unit without processes; name the `.service` it starts"],
    );
    matching(
        "{ cgroup = \"system.slice\" }",
        &["2:20: error[bad-path]: `cgroup`: `system.slice` is not an absolute path; start it with `/`"],
    );
    matching(
        "{ cgroup = \"/sys/fs/cgroup/x\" }",
        &[
            "2:20: error[bad-path]: `cgroup`: `/sys/fs/cgroup/x` is a path below the mount already; write it as /proc/PID/cgroup shows it: \"/x\"",
        ],
    );
    matching(
        "{ user = \"a\", executable = \"python3\" }",
        &["2:36: error[bad-path]: `executable`: `python3` is not an absolute path; start it with `/`"],
    );
    matching(
        "{ user = 1001 }",
        &["2:18: error[wrong-type]: `user` in `match` must be a string, not an integer; write it in quotes: \"1001\""],
    );
    matching(
        "{ user = \"4294967295\" }",
        &["2:18: error[bad-user]: `user`: `4294967295` is not a uid; uids are 0 to 4294967294"],
    );
}

#[test]
fn a_match_by_executable_alone_is_warned_of() {
    matching(
        "{ executable = \"/usr/bin/a\" }",
        &[
            "2:9: warning[executable-alone]: service account `a` is recognised by an executable alone; whoever starts it can make it do anything (LD_PRELOAD, ptrace): add `user`, `unit` or `cgroup`",
        ],
    );
    matching("{ executable = \"/usr/bin/a\", user = \"a\" }", &[]);
}

#[test]
fn a_match_by_root_alone_is_warned_of() {
    for user in ["root", "0"] {
        matching(
            &format!("{{ user = \"{user}\" }}"),
            &[
                "2:9: warning[matches-root]: service account `a` is every process of root: writ refuses them what it refuses service accounts, `reload` and `uninstall` too; match by `unit` or `cgroup`, with `user` beside it if need be",
            ],
        );
        matching(&format!("{{ user = \"{user}\", unit = \"a.service\" }}"), &[]);
    }
}

#[test]
fn a_table_with_an_unread_key_is_not_compared_as_if_it_were_wider() {
    let files = [
        (FILE, "[service-account.a]\nmatch = { user = \"a\" }\n"),
        ("service-accounts.d/b.toml", "[service-account.b]\nmatch = { user = \"a\", unit = \"b\" }\n"),
    ];
    check_files(
        &files,
        &["service-accounts.d/b.toml:2:30: error[bad-unit]: `unit`: `b` has no unit suffix; did you mean `b.service`?"],
    );
}

#[test]
fn accounts_whose_processes_coincide_are_warned_of() {
    let files = [
        (FILE, "[service-account.a]\nmatch = { user = \"svc\" }\n"),
        ("service-accounts.d/b.toml", "[service-account.b]\nmatch = { user = \"svc\" }\n"),
        ("service-accounts.d/c.toml", "[service-account.c]\nmatch = { user = \"svc\", executable = \"/c\" }\n"),
        (
            "service-accounts.d/d.toml",
            "[service-account.d]\nmatch = [{ user = \"d\" }, { user = \"d\", unit = \"d.service\" }]\n",
        ),
    ];
    check_files(
        &files,
        &[
            "service-accounts.d/b.toml:2:9: warning[overlapping-match]: service accounts `a` (service-accounts.d/a.toml:2:9) and `b` match the same processes; where both match, both must allow: give one of them a narrower `match`",
            "service-accounts.d/c.toml:2:9: warning[overlapping-match]: every process of service account `c` found by this is also `a` (service-accounts.d/a.toml:2:9); where both match, both must allow: give one of them a narrower `match`",
        ],
    );
}

#[test]
fn a_name_is_declared_once() {
    let files = [
        (FILE, "[service-account.a]\nmatch = { user = \"a\" }\n"),
        ("service-accounts.d/b.toml", "\n[service-account.a]\nmatch = { user = \"b\" }\nmoed = 1\n"),
    ];
    check_files(
        &files,
        &[
            "service-accounts.d/b.toml:2:18: error[duplicate]: `[service-account.a]` is declared twice: here and at service-accounts.d/a.toml:1:18; remove one, or rename it",
            "service-accounts.d/b.toml:4:1: error[unknown-key]: unknown key `moed` in `[service-account.a]`; did you mean `mode`?",
        ],
    );
    check(
        FILE,
        "[service-account.a]\nmatch = { user = \"a\" }\n[service-account.a]\n",
        &["3:18: error[toml-syntax]: duplicate key"],
    );
}

#[test]
fn names_have_their_characters() {
    check(
        FILE,
        "[service-account.\"a b\"]\n[service-account.\"\"]\n[service-account.-x]\n",
        &[
            "1:18: error[bad-name]: `a b` has a ` `, which a name cannot have; use letters, digits, `.`, `_` and `-`",
            "2:18: error[bad-name]: a name cannot be empty; use letters, digits, `.`, `_` and `-`",
            "3:18: error[bad-name]: `-x` starts with neither letter, digit nor `_`; use letters, digits, `.`, `_` and `-`",
        ],
    );
}

#[test]
fn a_forgotten_or_misplaced_name_is_explained() {
    check(
        FILE,
        "[service-account]\nowner = \"x\"\n",
        &[
            "2:1: error[wrong-type]: `owner` must be a table; each has a name: write `[service-account.NAME]` above its keys",
        ],
    );
    check(
        FILE,
        "service-account = 1\n",
        &["1:19: error[wrong-type]: `service-account` in `service-accounts.d/a.toml` must be a table, not an integer"],
    );
    check(
        FILE,
        "[destination.x]\n[service-acount.a]\n[kernel]\n",
        &[
            "1:2: error[unknown-key]: unknown key `destination` in `service-accounts.d/a.toml`; `[destination.NAME]` belongs in a file in `destinations.d/`",
            "2:2: error[unknown-key]: unknown key `service-acount` in `service-accounts.d/a.toml`; did you mean `service-account`?",
            "3:2: error[unknown-key]: unknown key `kernel` in `service-accounts.d/a.toml`; it belongs in `writ.toml`",
        ],
    );
}

#[test]
fn more_match_tables_than_the_kernel_looks_at_are_refused() {
    let account =
        |index: usize| format!("[service-account.a{index}]\nmatch = {{ user = \"svc\", unit = \"u.service\" }}\n");
    let text: String = (0..9).map(account).collect();
    let parsed = parse(&super::files(&[(FILE, &text)]), &super::host());
    let errors: Vec<String> = super::findings(&parsed).into_iter().filter(|line| line.contains("error")).collect();
    let expected = "service-accounts.d/a.toml:18:9: error[too-many-matches]: 9 match tables start from unit `u.service`; \
        the kernel looks at 8; join accounts, or match by another key";
    assert_eq!(errors, [expected]);
    let text: String = (0..8).map(account).collect();
    assert!(parse(&super::files(&[(FILE, &text)]), &super::host()).config.is_some());
}

#[test]
fn at_most_4096_accounts_are_told_apart() {
    let text = |count: usize| -> String {
        (0..count).map(|index| format!("[service-account.a{index}]\nmatch = {{ user = \"u{index}\" }}\n")).collect()
    };
    let one = |text: String| parse(&[SourceFile { name: FILE.into(), text }], &super::host());
    assert!(one(text(MAX_ACCOUNTS)).config.is_some());
    let parsed = one(text(MAX_ACCOUNTS + 1));
    assert_eq!(parsed.diagnostics.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["too-many-accounts"]);
}
