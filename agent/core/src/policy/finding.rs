//! Cedar's errors as findings: its own words and help, at the place it names.

use crate::diagnostic::{Diagnostic, Location};

/// A finding from one of Cedar's errors. `locate` turns a byte range of the text Cedar was given into a place.
pub(crate) fn from_cedar(
    code: &'static str,
    error: &dyn miette::Diagnostic,
    locate: &dyn Fn(usize, usize) -> Option<Location>,
) -> Diagnostic {
    let mut message = error.to_string().replace('\n', " ");
    let label = error.labels().and_then(|mut labels| labels.next());
    if let Some(text) = label.as_ref().and_then(|label| label.label()) {
        message = format!("{message}: {text}");
    }
    let mut finding = Diagnostic::error(code, message);
    finding.help = error.help().map(|help| help.to_string());
    finding.at = label.and_then(|label| locate(label.offset(), label.len()));
    finding
}
