//! What may stand in a policy's annotations: a slip in a name would silently change what the policy means.

use cedar_policy::Policy;

use super::parse::Parsed;
use super::source::Statement;
use crate::config::distance;
use crate::diagnostic::Diagnostic;

/// The annotations that mean something to writ.
const KNOWN: [&str; 8] = ["id", "owner", "reason", "controls", "decision", "mode", "scope", "max_ttl"];

/// How the ids of policies begin that writ makes itself.
pub(crate) const GENERATED: [&str; 2] = ["requires-fresh:", "grant:"];

/// Annotations that are a slip away from a known one. All others are the operator's own.
pub(super) fn misspelt(policy: &Policy, statement: &Statement<'_>, id: &str) -> Vec<Diagnostic> {
    let slips = policy.annotations().filter_map(|(name, _)| Some((name, meant(name)?)));
    let mut found: Vec<Diagnostic> = slips
        .map(|(name, known)| {
            Diagnostic::error("policy-annotation", format!("`@{name}` is not an annotation of writ's"))
                .help(format!("did you mean `@{known}`? An annotation of your own needs a name less like it"))
                .policy(id)
                .at(statement.annotation(name).unwrap_or_else(|| statement.head()))
        })
        .collect();
    found.sort_by_key(|finding| finding.at.as_ref().map(|at| at.offset));
    found
}

fn meant(name: &str) -> Option<&'static str> {
    if KNOWN.contains(&name) {
        return None;
    }
    let near = |known: &&&str| {
        let (distance, short) = (distance(name, known), known.len() <= 4);
        // Two letters of four make another word (`@note`), unless they only changed places.
        distance <= 1 || distance == 2 && (!short || letters(name) == letters(known))
    };
    KNOWN.iter().filter(near).min_by_key(|known| distance(name, known)).copied()
}

fn letters(name: &str) -> Vec<char> {
    let mut letters: Vec<char> = name.chars().map(|letter| letter.to_ascii_lowercase()).collect();
    letters.sort_unstable();
    letters
}

/// Why an id cannot be one that a person gives.
pub(super) fn bad_id(parsed: &Parsed<'_>) -> Option<Diagnostic> {
    let id = parsed.info.id.as_str();
    let at = parsed.statement.annotation("id").unwrap_or_else(|| parsed.statement.head());
    let refused = |message: String, help: &str| {
        Some(Diagnostic::error("policy-id", message).help(help).policy(id.escape_debug().to_string()).at(at))
    };
    if id.chars().any(char::is_control) {
        let message = format!("policy id `{}` has control characters in it", id.escape_debug());
        return refused(message, "records and terminals show ids: write a plain name");
    }
    let prefix = GENERATED.iter().find(|prefix| id.starts_with(**prefix))?;
    let message = format!("policy id `{id}` begins with `{prefix}`, as only policies do that writ makes itself");
    refused(message, "give it another `@id`")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::errors;
    use super::*;

    #[test]
    fn a_slip_in_an_annotation_is_refused_and_another_name_is_not() {
        for (name, known) in [
            ("decison", "decision"),
            ("desicion", "decision"),
            ("Decision", "decision"),
            ("mdoe", "mode"),
            ("mod", "mode"),
            ("modes", "mode"),
            ("max_tll", "max_ttl"),
            ("maxttl", "max_ttl"),
            ("control", "controls"),
            ("scoep", "scope"),
            ("onwer", "owner"),
            ("reasn", "reason"),
            ("di", "id"),
        ] {
            assert_eq!(meant(name), Some(known), "{name}");
        }
        for name in KNOWN.into_iter().chain(["note", "ticket", "severity", "team", "date", "url", "cve"]) {
            assert_eq!(meant(name), None, "{name}");
        }
        let text =
            "@id(\"p\") @owner(\"o\")\n@decison(\"escalate\") @ticket(\"T-1\")\nforbid (principal, action, resource);";
        let found = errors(text);
        assert_eq!(found.len(), 1, "{found:#?}");
        let at = found[0].at.as_ref().unwrap();
        assert_eq!((found[0].code, at.line, at.column), ("policy-annotation", 2, 1));
        assert!(found[0].help.as_deref().unwrap().contains("did you mean `@decision`?"));
    }

    #[test]
    fn an_id_is_plain_text_that_writ_does_not_use_itself() {
        for id in ["grant:G-1", "requires-fresh:billing", "a\\nb", "a\\u{1b}[2J"] {
            let found = errors(&format!("@id(\"{id}\") @owner(\"o\")\npermit (principal, action, resource);"));
            assert_eq!(found.len(), 1, "{id}: {found:#?}");
            let at = found[0].at.as_ref().unwrap();
            assert_eq!((found[0].code, at.line, at.column), ("policy-id", 1, 1));
            assert!(!found[0].message.contains(char::is_control));
        }
        assert_eq!(errors("@id(\"team/grants: 7\") permit (principal, action, resource);"), []);
    }
}
