//! Names of signal kinds, and the patterns that select them.

/// The longest kind name.
const MAX_KIND: usize = 128;

/// Whether a text can name a kind: dotted words of letters, digits, `-` and `_`.
pub fn is_kind(text: &str) -> bool {
    text.len() <= MAX_KIND
        && text.split('.').all(|word| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

/// Whether a pattern selects a kind. `*` stands for any text, dots included; everything else for itself, so
/// `workload.*` selects `workload.shell` and `workload.executable.replaced` but not `workload`.
pub fn kind_matches(pattern: &str, kind: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == kind };
    let Some(mut kind) = kind.strip_prefix(head) else { return false };
    let mut pieces = rest.split('*').peekable();
    // The leftmost match of each piece leaves the most for the next: no backtracking, linear per piece.
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return kind.ends_with(piece);
        }
        match kind.split_once(piece) {
            Some((_, after)) => kind = after,
            None => return false,
        }
    }
    true
}

/// Whether any of the patterns selects the kind.
pub fn matches_any(patterns: &[String], kind: &str) -> bool {
    patterns.iter().any(|pattern| kind_matches(pattern, kind))
}

#[cfg(test)]
mod tests {
    use super::{is_kind, kind_matches};

    #[test]
    fn a_star_stands_for_any_text_and_everything_else_for_itself() {
        for (pattern, kind, expected) in [
            ("workload.*", "workload.shell", true),
            ("workload.*", "workload.executable.replaced", true),
            ("workload.*", "workload", false),
            ("workload.*", "workloads.shell", false),
            ("*", "anything.at.all", true),
            ("*.malware", "edr.malware", true),
            ("*.malware", "edr.malware.x", false),
            ("edr.*.high", "edr.a.b.high", true),
            ("edr.*.high", "edr.high", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("a**c", "abc", true),
            ("edr.malware", "edr.malware", true),
            ("edr.malware", "edr.Malware", false),
            ("edr?malware", "edr.malware", false),
            ("", "", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(kind_matches(pattern, kind), expected, "{pattern} against {kind}");
        }
    }

    #[test]
    fn a_kind_is_dotted_words() {
        for kind in ["edr.malware", "credential-rotated", "a.b.c_d", "X9"] {
            assert!(is_kind(kind), "{kind}");
        }
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a\nb", "workload.*", "é", &"a".repeat(129)] {
            assert!(!is_kind(text), "{text}");
        }
    }
}
