//! `docs/configuration.md` and the code say the same.

use std::collections::BTreeSet;

use super::check_files;

const DOCUMENT: &str = include_str!("../../../../../docs/configuration.md");

/// The sources that name keys and findings.
const SOURCES: [&str; 13] = [
    include_str!("../account.rs"),
    include_str!("../agent.rs"),
    include_str!("../destination.rs"),
    include_str!("../draft.rs"),
    include_str!("../errno.rs"),
    include_str!("../https.rs"),
    include_str!("../network.rs"),
    include_str!("../section.rs"),
    include_str!("../signal.rs"),
    include_str!("../sink.rs"),
    include_str!("../ssf.rs"),
    include_str!("../value.rs"),
    include_str!("../whole.rs"),
];

/// What stands in quotes right after one of these, tests left out.
fn quoted_after(openings: &[&str]) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for source in SOURCES {
        let code = source.split("#[cfg(test)]").next().unwrap();
        for opening in openings {
            found.extend(
                code.split(opening).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()),
            );
        }
    }
    found
}

#[test]
fn the_example_is_accepted_without_a_finding() {
    let mut files = Vec::new();
    for block in DOCUMENT.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        files.push((text.lines().next().unwrap().trim_start_matches("# "), text));
    }
    assert_eq!(files.len(), 4);
    check_files(&files, &[]);
}

#[test]
fn every_finding_is_documented() {
    let codes = quoted_after(&["Fault::new(", "Diagnostic::error(", "Diagnostic::warning("]);
    assert!(codes.len() > 30 && codes.contains("overlapping-match"), "{codes:?}");
    let missing: Vec<_> = codes.into_iter().filter(|code| !DOCUMENT.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_key_is_documented() {
    let reads = ["string", "boolean", "parsed", "scalar", "scalars", "list", "choice", "duration", "section", "value"];
    let helper = "people(&mut section, ".to_owned();
    let openings: Vec<String> = reads.iter().map(|read| format!(".{read}(")).chain([helper]).collect();
    let keys = quoted_after(&openings.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(keys.len() > 30 && keys.contains("approvers") && keys.contains("segment-size"), "{keys:?}");
    // A table of its own has a heading instead of a row.
    let documented =
        |key: &str| DOCUMENT.contains(&format!("| `{key}` |")) || DOCUMENT.contains(&format!("### `[{key}]`"));
    let missing: Vec<_> = keys.into_iter().filter(|key| !documented(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
