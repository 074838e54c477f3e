//! Whatever the bytes: no panic, and an answer.

use proptest::prelude::*;

use super::host;
use crate::config::{SourceFile, parse};
use crate::diagnostic::{Location, Severity};

const NAMES: [&str; 6] = [
    "writ.toml",
    "service-accounts.d/a.toml",
    "destinations.d/a.toml",
    "signals.d/a.toml",
    "policies.d/a.cedar",
    "elsewhere.toml",
];

/// Pieces of real configurations, so that chance reaches beyond the syntax.
const PIECES: [&str; 44] = [
    "[service-account.a]",
    "[service-account.b]",
    "[[service-account.a.match]]",
    "[service-account.a.attributes]",
    "[destination.a]",
    "[destination.b]",
    "[destination.loopback]",
    "[signal.a]",
    "[signal.\"a.b\"]",
    "[paths]",
    "[kernel]",
    "[log]",
    "mode",
    "match",
    "owner",
    "team",
    "in",
    "addresses",
    "ports",
    "protocols",
    "names",
    "risk",
    "ttl",
    "from",
    "requires-fresh",
    "errno",
    "user",
    "ring-size",
    "nat64",
    "=",
    "=",
    "=",
    ".",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"a\"",
    "\"1h\"",
    "\"10.0.0.1/8\"",
    "[\"a\", \"b\"]",
    "{ user = \"a\" }",
    "99999999999999999999",
];

fn answered(files: &[SourceFile]) -> Result<(), TestCaseError> {
    let parsed = parse(files, &host());
    let errors = parsed.diagnostics.iter().filter(|finding| finding.severity == Severity::Error).count();
    prop_assert_eq!(parsed.config.is_none(), errors > 0);
    for finding in &parsed.diagnostics {
        prop_assert!(!finding.message.contains('\n'), "{:?}", finding);
        let at = finding.at.as_ref().expect("a place");
        let text = &files.iter().find(|file| file.name == at.file).expect("the file").text;
        prop_assert!(text.get(at.offset..at.offset + at.length).is_some(), "{:?}", finding);
        prop_assert_eq!(at, &Location::of(&at.file, text, at.offset, at.length));
    }
    Ok(())
}

fn one_file_each(text: String) -> Vec<SourceFile> {
    NAMES.iter().map(|name| SourceFile { name: (*name).to_owned(), text: text.clone() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_answered(text in "\\PC{0,200}|(?s).{0,200}") {
        answered(&one_file_each(text))?;
    }

    #[test]
    fn arbitrary_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        answered(&one_file_each(String::from_utf8_lossy(&bytes).into_owned()))?;
    }

    #[test]
    fn shuffled_configuration_is_answered(
        pieces in proptest::collection::vec(
            (proptest::sample::select(PIECES.to_vec()), proptest::sample::select(vec![" ", "\n", "\n", ""])),
            0..40,
        ),
    ) {
        answered(&one_file_each(pieces.into_iter().flat_map(|(piece, gap)| [piece, gap]).collect()))?;
    }

    #[test]
    fn any_value_for_any_key_is_answered(
        key in proptest::sample::select(vec![
            "match", "owner", "team", "errno", "learning", "attributes", "addresses", "ports", "protocols", "in", "names",
            "risk", "ttl", "from", "flag",
        ]),
        value in proptest::sample::select(vec![
            "1", "-1", "1.5", "true", "\"\"", "\"a\"", "\"1h\"", "[]", "[[]]", "[{}]", "{}", "{ user = 1 }", "[1, \"a\"]",
            "1979-05-27", "0xff", "inf", "\"\\u0000\"", "\"10.0.0.1/0\"", "[\"a\"]", "[\"::ffff:1.2.3.4/95\"]", "[\"1-\"]",
        ]),
    ) {
        for (name, kind) in
            [(NAMES[1], "service-account"), (NAMES[2], "destination"), (NAMES[3], "signal")]
        {
            answered(&[SourceFile { name: name.to_owned(), text: format!("[{kind}.a]\n{key} = {value}\n") }])?;
        }
        answered(&[SourceFile { name: NAMES[0].to_owned(), text: format!("{key} = {value}\npaths.{key} = {value}\n") }])?;
    }
}

#[test]
fn deep_nesting_is_answered() {
    for (open, close) in [("[", "]"), ("{a=", "}"), ("a.", "")] {
        let text = format!("mode = {}1{}\n", open.repeat(20_000), close.repeat(20_000));
        answered(&one_file_each(text)).unwrap();
    }
}
