//! Claims about configurations as an operator writes them: what is refused, where, and with which words.

mod accounts;
mod agent;
mod destinations;
mod documented;
mod garbage;
mod sample;
mod signals;
mod together;

use super::{Config, HostFacts, Parsed, SourceFile, parse};
use crate::diagnostic::Severity;

/// Files by name and text.
fn files(files: &[(&str, &str)]) -> Vec<SourceFile> {
    files.iter().map(|(name, text)| SourceFile { name: (*name).to_owned(), text: (*text).to_owned() }).collect()
}

/// A host with two resolvers that knows two time zones.
fn host() -> HostFacts {
    HostFacts {
        resolvers: ["127.0.0.53", "::ffff:192.0.2.53"].map(|address| address.parse().unwrap()).to_vec(),
        time_zones: Some(["Europe/Berlin", "UTC"].map(str::to_owned).into()),
    }
}

/// The findings as a terminal would name them: `file:line:column: error[code]: message; help`.
fn findings(parsed: &Parsed) -> Vec<String> {
    let line = |finding: &crate::diagnostic::Diagnostic| {
        let at = finding.at.as_ref().expect("every finding about a file has a place");
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let help = finding.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        format!("{}:{}:{}: {severity}[{}]: {}{help}", at.file, at.line, at.column, finding.code, finding.message)
    };
    parsed.diagnostics.iter().map(line).collect()
}

/// Exactly these findings, and a configuration if and only if none of them is an error.
#[track_caller]
fn check_files(written: &[(&str, &str)], expected: &[&str]) {
    let parsed = parse(&files(written), &host());
    assert_eq!(findings(&parsed), expected, "\n{written:#?}");
    let refused = expected.iter().any(|line| line.contains(": error["));
    assert_eq!(parsed.config.is_none(), refused);
}

/// Exactly these findings in one file, given without its name.
#[track_caller]
fn check(name: &str, text: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|line| format!("{name}:{line}")).collect();
    check_files(&[(name, text)], &expected.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The configuration of files without an error.
#[track_caller]
fn config(written: &[(&str, &str)]) -> Config {
    let parsed = parse(&files(written), &host());
    let found = findings(&parsed);
    parsed.config.unwrap_or_else(|| panic!("{found:#?}"))
}
