//! Text that somebody else wrote, as it may be shown: on one line, and without what a terminal would obey.

use std::borrow::Cow;

/// The text with control characters, line breaks and what turns the direction of text written out: `\n`, `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    shown(text, |_| false)
}

/// The same for text whose own lines and columns are kept.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    shown(text, |c| matches!(c, '\n' | '\t'))
}

fn shown(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hidden = |c: char| is_hidden(c) && !kept(c);
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Controls (C0, DEL, C1), the direction of text, what has no width, and what some readers take for the end of a line.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable("/opt/a\u{1b}[2J\r\nb\u{7f}\u{9b}1m"), "/opt/a\\u{1b}[2J\\r\\nb\\u{7f}\\u{9b}1m");
        assert_eq!(
            printable("a\u{202e}b\u{2066}\u{200e}\u{feff}\u{2028}"),
            "a\\u{202e}b\\u{2066}\\u{200e}\\u{feff}\\u{2028}"
        );
        assert_eq!(printable_lines("a\n\tb\r\u{1b}"), "a\n\tb\\r\\u{1b}");
    }

    #[test]
    fn other_text_is_as_it_was() {
        for text in ["/usr/bin/psql", "zahlung-übersicht", "支払い", "a\\n"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        }
    }
}
