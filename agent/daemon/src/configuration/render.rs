//! Findings as a terminal or a program reads them.

use std::fmt::{self, Display, Write};

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode, SourceSpan};
use writ_core::config::SourceFile;
use writ_core::diagnostic::{Diagnostic, Severity};

/// Every finding with the lines it is about; each has `file:line:column` in its text, on one line, for other tools.
pub(crate) fn render(diagnostics: &[Diagnostic], sources: &[SourceFile], color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    // Without wrapping: a path broken at a hyphen is found by no editor and no grep.
    // Without miette's own place: it counts columns in other units.
    let handler =
        GraphicalReportHandler::new_themed(theme).with_wrap_lines(false).without_primary_span_start().with_links(false);
    let mut text = String::new();
    for finding in diagnostics {
        let source = finding.at.as_ref().and_then(|at| sources.iter().find(|source| source.name == at.file));
        let shown = Shown { finding, source: source.filter(|source| is_within(finding, source)) };
        let mut one = String::new();
        if handler.render_report(&mut one, &shown).is_err() {
            one = format!("{shown}\n");
        }
        text.push_str(&one);
        text.push('\n');
    }
    let count = |severity| diagnostics.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if errors + warnings > 0 {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}, {}", plural(errors, "error"), plural(warnings, "warning"));
    }
    text
}

/// The findings as one JSON array.
pub(crate) fn to_json(diagnostics: &[Diagnostic]) -> String {
    // Strings and numbers only: nothing in a finding can fail to be JSON.
    serde_json::to_string_pretty(diagnostics).unwrap_or_else(|_| "[]".to_owned())
}

/// A number of things, as it is said.
pub(crate) fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Whether the place lies in the text; it may not where a file was read differently from how it is shown.
fn is_within(finding: &Diagnostic, source: &SourceFile) -> bool {
    finding.at.as_ref().is_some_and(|at| source.text.get(at.offset..at.offset.saturating_add(at.length)).is_some())
}

/// A finding as miette draws it.
#[derive(Debug)]
struct Shown<'a> {
    finding: &'a Diagnostic,
    source: Option<&'a SourceFile>,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.finding.at {
            write!(f, "{}:{}:{}: ", at.file, at.line, at.column)?;
        }
        match &self.finding.policy {
            // Most messages about a policy name it.
            Some(policy) if !self.finding.message.contains(&format!("policy `{policy}`")) => {
                write!(f, "policy `{policy}`: {}", self.finding.message)
            }
            _ => f.write_str(&self.finding.message),
        }
    }
}

impl std::error::Error for Shown<'_> {}

impl miette::Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn Display + 'b>> {
        let severity = match self.finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        Some(Box::new(format!("{severity}[{}]", self.finding.code)))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.finding.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'b>(&'b self) -> Option<Box<dyn Display + 'b>> {
        self.finding.help.as_ref().map(|help| Box::new(help) as Box<dyn Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.map(|source| &source.text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.source?;
        let at = self.finding.at.as_ref()?;
        let span = SourceSpan::from((at.offset, at.length));
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(None, span))))
    }
}

#[cfg(test)]
mod tests {
    use writ_core::config::{HostFacts, parse};
    use writ_core::diagnostic::Location;

    use super::*;

    fn sources(files: &[(&str, &str)]) -> Vec<SourceFile> {
        files.iter().map(|(name, text)| SourceFile { name: (*name).to_owned(), text: (*text).to_owned() }).collect()
    }

    #[test]
    fn a_finding_shows_its_place_its_line_and_what_to_do() {
        let sources = sources(&[("writ.toml", "mode = \"observe\"\nlogs = 1\n[log]\n")]);
        let parsed = parse(&sources, &HostFacts::default());
        let text = render(&parsed.diagnostics, &sources, false);
        let expected = "\
error[unknown-key]

  × writ.toml:2:1: unknown key `logs` in `writ.toml`
   ╭────
 1 │ mode = \"observe\"
 2 │ logs = 1
   · ────
 3 │ [log]
   ╰────
  help: did you mean `log`?

1 error, 0 warnings
";
        assert_eq!(text, expected);
    }

    #[test]
    fn every_place_is_in_the_text_however_long_the_path() {
        let name = format!("service-accounts.d/{}.toml", "very-long-".repeat(30));
        let sources = sources(&[(&name, "[service-account.a]\nmatch = { unit = \"x\" }\n\"ö\" = 1\r\n")]);
        let parsed = parse(&sources, &HostFacts::default());
        for color in [false, true] {
            let text = render(&parsed.diagnostics, &sources, color);
            for place in [format!("{name}:2:18"), format!("{name}:3:1")] {
                assert!(text.contains(&place), "{place} in {text}");
            }
        }
    }

    #[test]
    fn a_finding_without_its_file_is_shown_all_the_same() {
        let place = Location { file: "gone.toml".into(), line: 7, column: 3, offset: 99, length: 5 };
        let finding = Diagnostic::error("unreadable", "cannot read `gone.toml`").at(place).policy("p1");
        for sources in [sources(&[]), sources(&[("gone.toml", "short")])] {
            let text = render(std::slice::from_ref(&finding), &sources, false);
            assert!(text.contains("gone.toml:7:3: policy `p1`: cannot read `gone.toml`"), "{text}");
        }
    }

    #[test]
    fn every_place_of_a_text_can_be_drawn() {
        let text = "ä = 1\r\n\tb = 2\n\n";
        let sources = sources(&[("writ.toml", text)]);
        for offset in (0..=text.len()).filter(|offset| text.is_char_boundary(*offset)) {
            for length in [0, 1, text.len() - offset] {
                let finding = Diagnostic::warning("any", "x").at(Location::of("writ.toml", text, offset, length));
                let place = finding.at.as_ref().map(|at| format!("writ.toml:{}:{}: x", at.line, at.column)).unwrap();
                assert!(render(&[finding], &sources, false).contains(&place), "{offset} {length}");
            }
        }
    }

    #[test]
    fn a_policy_is_named_once() {
        let named = Diagnostic::warning("no-owner", "policy `a` has no `@owner`").policy("a");
        let other = Diagnostic::warning("never", "it can never match").policy("a");
        let text = render(&[named, other], &[], false);
        assert!(text.contains(" policy `a` has no `@owner`") && !text.contains("`a`: policy"), "{text}");
        assert!(text.contains("policy `a`: it can never match"), "{text}");
    }

    #[test]
    fn no_finding_is_no_text_and_an_empty_array() {
        assert_eq!((render(&[], &[], true), to_json(&[])), (String::new(), "[]".to_owned()));
    }

    #[test]
    fn json_has_the_place_apart() {
        let sources = sources(&[("writ.toml", "lgo = 1")]);
        let json = to_json(&parse(&sources, &HostFacts::default()).diagnostics);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value[0]["severity"], "error");
        assert_eq!(value[0]["code"], "unknown-key");
        assert_eq!(value[0]["at"]["file"], "writ.toml");
        assert_eq!((value[0]["at"]["line"].as_u64(), value[0]["at"]["column"].as_u64()), (Some(1), Some(1)));
    }
}
