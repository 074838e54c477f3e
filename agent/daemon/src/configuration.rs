//! The configuration directory: its files, what they mean on this host, and how findings are shown.

pub(crate) mod host;
mod people;
mod places;
pub(crate) mod read;
pub(crate) mod render;

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};
use writ_core::config::{Config, Refused, Role, SourceFile, parse, role};
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::further;

pub(crate) use host::is_script;
use host::{host_facts, scripts, unknown_users};
pub(crate) use people::SUBUID;
use people::people;
use places::no_such_program;
use read::{Files, read, read_policies};

/// Everything found in a configuration directory.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The configuration, if no finding is an error. Its policies are not compiled yet.
    pub(crate) config: Option<Config>,
    /// Every finding, those without a place in a file first. Those of policies are among them where there is no
    /// configuration.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// The files that were read, for [`render::render`].
    pub(crate) sources: Vec<SourceFile>,
}

/// Reads and parses a configuration directory, and compares it with this host.
pub(crate) fn load(directory: &Path) -> Loaded {
    load_with(directory, None)
}

/// The same, with the policies of another directory in the place of its own.
pub(crate) fn load_with(directory: &Path, policies: Option<&Path>) -> Loaded {
    let Files { mut sources, mut diagnostics } = read(directory);
    let other = policies.map(read_policies);
    if other.is_some() {
        sources.retain(|source| role(&source.name) != Role::Policies);
        diagnostics.retain(|finding| finding.at.as_ref().is_none_or(|at| role(&at.file) != Role::Policies));
    }
    let mut parsed = parse(&sources, &host_facts(&sources));
    if let Some(Files { sources: files, diagnostics: found }) = other {
        if let Some(config) = parsed.config.as_mut().or(parsed.refused.as_mut().map(|refused| &mut refused.config)) {
            config.policies.clone_from(&files);
        }
        sources.extend(files);
        diagnostics.extend(found);
    }
    // A file that could not be read is an error that `parse` knows nothing of.
    let errors = diagnostics.iter().filter(|finding| finding.severity == Severity::Error);
    let unread: BTreeSet<Role> = errors.flat_map(unread).collect();
    diagnostics.extend(parsed.diagnostics);
    let mut misplaced = Vec::new();
    if let Some(config) = &parsed.config {
        diagnostics.extend(outside(config, &sources));
        misplaced = places::misplaced(config, directory);
    }
    diagnostics.extend(misplaced);
    let wrong = diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    let refused = match (parsed.config.take_if(|_| wrong), parsed.refused) {
        (Some(config), _) => Some(Refused { config, unread }),
        (None, Some(refused)) => Some(Refused { unread: &refused.unread | &unread, ..refused }),
        (None, None) => None,
    };
    diagnostics.extend(refused.iter().flat_map(further));
    diagnostics.sort_by_key(|finding| finding.at.as_ref().map(|at| (at.file.clone(), at.offset)));
    Loaded { config: parsed.config, diagnostics, sources }
}

/// What the file of a finding would have declared; a directory that cannot be listed could have held anything.
fn unread(finding: &Diagnostic) -> Vec<Role> {
    match &finding.at {
        Some(at) => vec![role(&at.file)],
        None => vec![Role::Accounts, Role::Destinations, Role::Signals, Role::Schemas],
    }
}

/// What a directory holds, with what was found in it and on this host, without parsing it: the same text is the same
/// configuration. `config` is what it held before.
pub(crate) fn look(directory: &Path, config: &Config) -> String {
    let Files { sources, mut diagnostics } = read(directory);
    diagnostics.extend(outside(config, &sources));
    fingerprint(&sources, &diagnostics)
}

/// What this host says about a configuration.
fn outside(config: &Config, sources: &[SourceFile]) -> Vec<Diagnostic> {
    let mut findings = unknown_users(config);
    findings.extend(scripts(config));
    findings.extend(people(config, sources));
    findings.extend(no_such_program(config));
    findings
}

/// The same of a directory that was read and parsed, with every finding. Findings that only parsing makes follow from the
/// text.
pub(crate) fn fingerprint(sources: &[SourceFile], findings: &[Diagnostic]) -> String {
    let outside = findings.iter().filter(|finding| OUTSIDE.contains(&finding.code)).cloned();
    print(sources, &outside.collect::<Vec<_>>())
}

/// Findings that are about more than the text of the files.
const OUTSIDE: [&str; 8] = [
    "unreadable",
    "not-utf-8",
    "world-writable",
    "unknown-user",
    "script-executable",
    "approver-is-account",
    "subordinate-uids",
    "no-such-program",
];

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
    hash.update(format!("{outside:?}{:?}", host_facts(sources)));
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

    const POLICIES: &str = "@id(\"typo\")\n@owner(\"o\")\n@reason(\"r\")\n\
        permit (principal, action == Action::\"connect\", resource in Destination::\"db\") when { contxt.port == 1 };\n\
        @id(\"invalid\")\n@owner(\"o\")\n@reason(\"r\")\n\
        permit (principal, action == Action::\"connect\", resource in Destination::\"db\") when { context.portt == 1 };\n\
        @id(\"named\")\n@owner(\"o\")\n@reason(\"r\")\n\
        permit (principal, action == Action::\"connect\", resource in Destination::\"dbb\");\n";

    /// The findings for these files besides a good account and `POLICIES`.
    fn found(files: &[(&str, &str)]) -> Vec<(String, &'static str)> {
        let directory = tempfile::tempdir().unwrap();
        let good = ("service-accounts.d/a.toml", "[service-account.a]\nmatch = { user = \"0\" }\n");
        for (name, text) in [good, ("policies.d/p.cedar", POLICIES)].iter().chain(files) {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let loaded = load(directory.path());
        assert!(loaded.config.is_none());
        let errors = loaded.diagnostics.iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| (finding.at.as_ref().map_or(String::new(), |at| at.file.clone()), finding.code)).collect()
    }

    #[test]
    fn errors_of_policies_are_found_beside_those_of_other_files() {
        let declared = ("destinations.d/d.toml", "[destination.db]\naddresses = [\"192.0.2.1\"]\nportz = [1]\n");
        let policy = |code| ("policies.d/p.cedar".to_owned(), code);
        let expected = vec![
            ("destinations.d/d.toml".to_owned(), "unknown-key"),
            policy("policy-syntax"),
            policy("policy-invalid"),
            policy("policy-unclassed"),
            ("writ.toml".to_owned(), "unknown-key"),
        ];
        assert_eq!(found(&[declared, ("writ.toml", "moode = \"observe\"\n")]), expected);
    }

    #[test]
    fn a_policy_is_not_blamed_for_a_destination_in_a_file_that_cannot_be_read() {
        let policy = |code| ("policies.d/p.cedar".to_owned(), code);
        let broken = [
            ("[destination.db\naddresses = []\n", "toml-syntax"),
            ("[destinations.db]\naddresses = [\"192.0.2.1\"]\n", "unknown-key"),
            ("[destination.db.main]\naddresses = [\"192.0.2.1\"]\n", "unquoted-name"),
        ];
        for (text, code) in broken {
            let expected =
                vec![("destinations.d/d.toml".to_owned(), code), policy("policy-syntax"), policy("policy-invalid")];
            assert_eq!(found(&[("destinations.d/d.toml", text)]), expected, "{text}");
        }
    }
}
