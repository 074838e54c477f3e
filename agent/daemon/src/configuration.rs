//! The configuration directory: its files, what they mean on this host, and how findings are shown.

pub(crate) mod host;
pub(crate) mod read;
pub(crate) mod render;

use std::path::Path;

use sha2::{Digest, Sha256};
use writ_core::config::{Config, SourceFile, parse};
use writ_core::diagnostic::{Diagnostic, Severity};

pub(crate) use host::is_script;
use host::{host_facts, scripts, unknown_users};
use read::{Files, read};

/// Everything found in a configuration directory.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The configuration, if no finding is an error. Its policies are not compiled yet.
    pub(crate) config: Option<Config>,
    /// Every finding, those without a place in a file first.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// The files that were read, for [`render::render`].
    pub(crate) sources: Vec<SourceFile>,
}

/// Reads and parses a configuration directory, and compares it with this host.
pub(crate) fn load(directory: &Path) -> Loaded {
    let Files { sources, mut diagnostics } = read(directory);
    let parsed = parse(&sources, &host_facts());
    diagnostics.extend(parsed.diagnostics);
    if let Some(config) = &parsed.config {
        diagnostics.extend(unknown_users(config));
        diagnostics.extend(scripts(config));
    }
    diagnostics.sort_by_key(|finding| finding.at.as_ref().map(|at| (at.file.clone(), at.offset)));
    // A file that could not be read is an error that `parse` knows nothing of.
    let refused = diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    Loaded { config: parsed.config.filter(|_| !refused), diagnostics, sources }
}

/// What a directory holds, with what was found in it and on this host, without parsing it: the same text is the same
/// configuration. `config` is what it held before.
pub(crate) fn look(directory: &Path, config: &Config) -> String {
    let Files { sources, mut diagnostics } = read(directory);
    diagnostics.extend(unknown_users(config));
    diagnostics.extend(scripts(config));
    print(&sources, &diagnostics)
}

/// The same of a directory that was read and parsed, with every finding. Findings that only parsing makes follow from the
/// text.
pub(crate) fn fingerprint(sources: &[SourceFile], findings: &[Diagnostic]) -> String {
    let outside = findings.iter().filter(|finding| OUTSIDE.contains(&finding.code)).cloned();
    print(sources, &outside.collect::<Vec<_>>())
}

/// Findings that are about more than the text of the files.
const OUTSIDE: [&str; 5] = ["unreadable", "not-utf-8", "world-writable", "unknown-user", "script-executable"];

fn print(sources: &[SourceFile], outside: &[Diagnostic]) -> String {
    let mut hash = Sha256::new();
    for source in sources {
        for part in [&source.name, &source.text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let mut outside: Vec<String> = outside.iter().map(|finding| format!("{finding:?}")).collect();
    outside.sort();
    hash.update(format!("{outside:?}{:?}", host_facts()));
    hash.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_is_read_parsed_and_compared_with_the_host() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("service-accounts.d")).unwrap();
        fs::write(
            directory.path().join("service-accounts.d/a.toml"),
            "[service-account.a]\nmatch = { user = \"no-such-user-here\" }\n",
        )
        .unwrap();
        let loaded = load(directory.path());
        let codes: Vec<_> = loaded.diagnostics.iter().map(|finding| (finding.severity, finding.code)).collect();
        assert_eq!(codes, [(Severity::Warning, "unknown-user")]);
        assert_eq!(loaded.sources.len(), 1);
        assert!(loaded.config.unwrap().accounts.contains_key("a"));
    }

    #[test]
    fn a_file_that_cannot_be_read_refuses_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("policies.d")).unwrap();
        fs::write(directory.path().join("policies.d/forbid.cedar"), b"forbid\xff").unwrap();
        let loaded = load(directory.path());
        assert!(loaded.config.is_none());
        assert_eq!(loaded.diagnostics[0].code, "not-utf-8");
    }
}
