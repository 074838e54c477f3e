//! Files that say less than they seem to: with line ends that Cedar does not know, or with nothing in them.

use super::source::statements;
use crate::config::SourceFile;
use crate::diagnostic::{Diagnostic, Location};

/// A carriage return without a line feed. To an editor it ends a line, to Cedar it does not: whatever stands behind a `//`
/// would be comment, to the next line feed or the end of the file.
pub(super) fn bare_cr(file: &SourceFile) -> Option<Diagnostic> {
    let at = file.text.match_indices('\r').map(|(at, _)| at);
    let at = at.into_iter().find(|at| file.text.get(at + 1..).is_none_or(|rest| !rest.starts_with('\n')))?;
    Some(
        Diagnostic::error("bare-cr", "a line ends in a carriage return alone, which Cedar does not take for its end")
            .help("save the file with line feeds (`tr '\\r' '\\n'`): a policy behind a comment would be part of it")
            .at(Location::of(&file.name, &file.text, at, 1)),
    )
}

/// A file of policies without a policy.
pub(super) fn empty(file: &SourceFile) -> Option<Diagnostic> {
    statements(file).is_empty().then(|| {
        Diagnostic::warning(
            "no-policy",
            "the file has no policy: it says nothing; a file that was cut short looks like this",
        )
        .help("restore its policies, or remove it")
        .at(Location::of(&file.name, &file.text, 0, 0))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{account, config};
    use super::super::{Bundle, Rebuilt, Text};
    use crate::config::SourceFile;

    const FORBID: &str = "@id(\"f\") @owner(\"o\") @reason(\"r\")\nforbid (principal, action, resource);\n";

    fn found(policies: &str) -> (bool, Vec<(&'static str, usize, usize)>) {
        let mut config = config(vec![account("report", &[])], "");
        config.policies = vec![SourceFile { name: "policies.d/test.cedar".into(), text: policies.into() }];
        let (bundle, findings) = Bundle::compile(&config);
        let place = |at: Option<&crate::diagnostic::Location>| at.map_or((0, 0), |at| (at.line, at.column));
        let findings = findings.iter().map(|finding| {
            let (line, column) = place(finding.at.as_ref());
            (finding.code, line, column)
        });
        (bundle.is_some(), findings.collect())
    }

    #[test]
    fn a_file_without_a_policy_is_warned_of() {
        for text in ["", "\n", "// forbid (principal, action, resource);"] {
            assert_eq!(found(text), (true, vec![("no-policy", 1, 1)]), "{text}");
        }
        assert_eq!(found(FORBID), (true, Vec::new()));
    }

    #[test]
    fn a_line_that_ends_in_a_carriage_return_alone_is_refused() {
        assert_eq!(found(&FORBID.replace('\n', "\r\n")), (true, Vec::new()));
        let hidden = format!("// nothing goes out\r{}", FORBID.replace('\n', "\r"));
        assert_eq!(found(&hidden), (false, vec![("bare-cr", 1, 20), ("no-policy", 1, 1)]));
        assert_eq!(found(&format!("{FORBID}// the end\r")).1, [("bare-cr", 3, 11)]);
        // What-if reads files as well.
        let files = [SourceFile { name: "p.cedar".into(), text: hidden }];
        let refused = Rebuilt::new(&[Text::written(&files)], None, &|_| true, std::iter::empty()).err();
        assert_eq!(refused.unwrap_or_default()[0].code, "bare-cr");
    }

    #[test]
    fn a_schema_with_such_line_ends_is_refused_too() {
        let mut config = config(Vec::new(), FORBID);
        config.schemas =
            vec![SourceFile { name: "schema.d/own.cedarschema".into(), text: "// own\rentity Own;\r".into() }];
        let findings = Bundle::compile(&config).1;
        let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["bare-cr"]);
    }
}
