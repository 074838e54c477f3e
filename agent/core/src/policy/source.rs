//! Policy text cut into statements, and the places in it that findings point at.
//!
//! Cedar's public syntax tree carries no locations, and one syntax error would hide the rest of a file. So a file is cut at
//! its semicolons, every statement is parsed by Cedar on its own, and the token list says where things are.

use std::ops::Range;

use cedar_policy::Policy;

use super::extent;
use super::parse::Form;
use crate::config::SourceFile;
use crate::diagnostic::Location;

/// One token: what it is, and where in the statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Word,
    Text,
    Mark,
}

/// One policy as written: from its first annotation to its semicolon.
#[derive(Clone, Debug)]
pub(crate) struct Statement<'a> {
    /// The file it is in.
    pub(crate) file: &'a SourceFile,
    /// Where it starts in the file.
    pub(crate) offset: usize,
    /// The same as line and column, from 1: a file is searched for line ends once, not once a policy.
    line: usize,
    column: usize,
    /// Its text.
    pub(crate) text: &'a str,
    pub(super) tokens: Vec<Token>,
}

/// Cuts a file into statements. Text after the last semicolon is a statement too, for Cedar to refuse.
pub(crate) fn statements(file: &SourceFile) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut pending: Vec<Token> = Vec::new();
    let mut place = Place { offset: 0, line: 1, column: 1 };
    for token in tokens(&file.text) {
        let ends = token.kind == Kind::Mark && file.text.get(token.at.clone()) == Some(";");
        pending.push(token);
        if ends {
            found.extend(statement(file, std::mem::take(&mut pending), &mut place));
        }
    }
    found.extend(statement(file, pending, &mut place));
    found
}

/// A place that moves forward through a text.
struct Place {
    offset: usize,
    line: usize,
    column: usize,
}

impl Place {
    fn advance(&mut self, text: &str, to: usize) {
        for char in text.get(self.offset..to).unwrap_or("").chars() {
            (self.line, self.column) = if char == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
        }
        self.offset = to;
    }
}

fn statement<'a>(file: &'a SourceFile, mut tokens: Vec<Token>, place: &mut Place) -> Option<Statement<'a>> {
    let (start, end) = (tokens.first()?.at.start, tokens.last()?.at.end);
    place.advance(&file.text, start);
    for token in &mut tokens {
        token.at = token.at.start - start..token.at.end - start;
    }
    let (line, column) = (place.line, place.column);
    Some(Statement { file, offset: start, line, column, text: file.text.get(start..end)?, tokens })
}

pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, first)) = chars.next() {
        let mut end = start + first.len_utf8();
        let kind = match first {
            _ if first.is_whitespace() => continue,
            '/' if chars.peek().is_some_and(|(_, next)| *next == '/') => {
                while chars.next_if(|(_, next)| *next != '\n').is_some() {}
                continue;
            }
            '"' => {
                let mut escaped = false;
                for (at, next) in chars.by_ref() {
                    end = at + next.len_utf8();
                    match next {
                        _ if escaped => escaped = false,
                        '\\' => escaped = true,
                        '"' => break,
                        _ => {}
                    }
                }
                Kind::Text
            }
            _ if first.is_alphanumeric() || first == '_' => {
                while let Some((at, next)) = chars.next_if(|(_, next)| next.is_alphanumeric() || *next == '_') {
                    end = at + next.len_utf8();
                }
                Kind::Word
            }
            _ => Kind::Mark,
        };
        found.push(Token { kind, at: start..end });
    }
    found
}

impl Statement<'_> {
    /// A byte range of the statement as a place in its file.
    pub(crate) fn location(&self, range: Range<usize>) -> Location {
        let mut place = Place { offset: 0, line: self.line, column: self.column };
        place.advance(self.text, range.start);
        Location {
            file: self.file.name.clone(),
            line: place.line,
            column: place.column,
            offset: self.offset + range.start,
            length: range.len(),
        }
    }

    /// The place of the statement's effect and scope, or of all of it if it has none.
    pub(crate) fn head(&self) -> Location {
        let scope = self.scope().unwrap_or(0..self.tokens.len());
        let start = scope.start.saturating_sub(1);
        self.location(self.span(start..scope.end).unwrap_or(0..self.text.len()))
    }

    /// The place of the `nth` use (from 0) of a context attribute, or of `resource`, within the conditions.
    pub(crate) fn input(&self, name: &str, nth: usize) -> Option<Location> {
        let body = self.scope()?.end..self.tokens.len();
        let quoted = format!("\"{name}\"");
        let found = body.filter_map(|index| {
            if name == "resource" {
                // `context.resource` or `Ns::resource` would be something else.
                let free = index.checked_sub(1).is_none_or(|before| !matches!(self.word(before), "." | ":"));
                return (self.word(index) == name && free).then_some(index..index + 1);
            }
            if self.word(index) != "context" {
                return None;
            }
            let dotted = self.word(index + 1) == "." && self.word(index + 2) == name;
            let indexed = self.word(index + 1) == "[" && self.word(index + 2) == quoted;
            if dotted { Some(index..index + 3) } else { indexed.then_some(index..index + 4) }
        });
        let range = found.into_iter().nth(nth)?;
        Some(self.location(self.span(range)?))
    }

    /// The place of the first string literal with this value, its entity type included.
    pub(crate) fn literal(&self, value: &str) -> Option<Location> {
        self.literal_from(0, value)
    }

    /// The same within the conditions.
    pub(crate) fn compared(&self, value: &str) -> Option<Location> {
        self.literal_from(self.scope()?.end, value)
    }

    fn literal_from(&self, start: usize, value: &str) -> Option<Location> {
        let quoted = format!("\"{}\"", value.escape_debug());
        let index = (start..self.tokens.len()).find(|index| self.word(*index) == quoted)?;
        let typed = index >= 3 && self.word(index - 1) == ":" && self.word(index - 2) == ":";
        Some(self.location(self.span(if typed { index - 3 } else { index }..index + 1)?))
    }

    /// The place of an annotation, name and value.
    pub(crate) fn annotation(&self, name: &str) -> Option<Location> {
        let index = (1..self.tokens.len()).find(|index| self.word(*index) == name && self.word(*index - 1) == "@")?;
        let end = if self.word(index + 1) == "(" { index + 4 } else { index + 1 };
        Some(self.location(self.span(index - 1..end)?))
    }

    /// The string literals in its conditions, as they are written.
    pub(crate) fn strings(&self) -> Vec<String> {
        let body = self.scope().map_or(0, |scope| scope.end);
        let literals = self.tokens.iter().skip(body).filter(|token| token.kind == Kind::Text);
        let texts = literals.filter_map(|token| self.text.get(token.at.clone()));
        texts.map(|text| text.trim_matches('"').to_owned()).collect()
    }

    /// The value of its `@id`, read as Cedar reads string literals.
    pub(crate) fn id(&self) -> Option<String> {
        self.parsed(Form::Evaluated)?.annotation("id").map(str::to_owned)
    }

    /// What Cedar reads in it; `None` if it cannot, or is not to be asked.
    pub(crate) fn parsed(&self, form: Form) -> Option<Policy> {
        extent::beyond(self, form).is_none().then(|| Policy::parse(None, self.text).ok())?
    }

    /// The statement with a clause added before its semicolon; `None` if it does not end in one.
    pub(crate) fn with_clause(&self, clause: &str) -> Option<String> {
        Some(format!("{}\n{clause};", self.text.strip_suffix(';')?))
    }

    fn word(&self, index: usize) -> &str {
        self.tokens.get(index).and_then(|token| self.text.get(token.at.clone())).unwrap_or("")
    }

    fn span(&self, tokens: Range<usize>) -> Option<Range<usize>> {
        let last = tokens.end.checked_sub(1)?.min(self.tokens.len().checked_sub(1)?);
        Some(self.tokens.get(tokens.start)?.at.start..self.tokens.get(last)?.at.end)
    }

    /// The tokens of the scope, parentheses included: the first group after `permit` or `forbid`.
    fn scope(&self) -> Option<Range<usize>> {
        let effect = (0..self.tokens.len()).find(|index| {
            matches!(self.word(*index), "permit" | "forbid")
                && self.word(*index + 1) == "("
                && self.before(*index) != "@"
        })?;
        let end = (effect + 1..self.tokens.len()).find(|index| self.word(*index) == ")")?;
        Some(effect + 1..end + 1)
    }

    fn before(&self, index: usize) -> &str {
        index.checked_sub(1).map_or("", |before| self.word(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile { name: "p.cedar".into(), text: text.into() }
    }

    #[test]
    fn statements_end_at_semicolons_outside_strings_and_comments() {
        let file = file(
            "// a; b\n@id(\"x;\\\";\")\npermit (principal, action, resource); forbid(principal, action, resource)",
        );
        let found = statements(&file);
        let texts: Vec<_> = found.iter().map(|statement| statement.text).collect();
        assert_eq!(
            texts,
            ["@id(\"x;\\\";\")\npermit (principal, action, resource);", "forbid(principal, action, resource)"]
        );
    }

    #[test]
    fn the_nth_use_of_an_input_is_found_whichever_way_it_is_written() {
        let file = file("permit(principal, action, resource)\nwhen { context.port == 1 || context[\"port\"] > 2 };");
        let found = statements(&file);
        let at = found[0].input("port", 1).unwrap();
        assert_eq!((at.line, at.column, at.length), (2, 29, 15));
        assert_eq!(found[0].input("port", 2), None);
    }

    #[test]
    fn resource_in_the_scope_is_not_a_use_in_the_conditions() {
        let file = file("permit(principal, action, resource) when { resource in [Destination::\"a\"] };");
        let at = statements(&file)[0].input("resource", 0).unwrap();
        assert_eq!(at.column, 44);
    }

    #[test]
    fn a_clause_is_added_after_a_trailing_comment() {
        let file = file("forbid(principal, action, resource) // why\n;");
        let text = statements(&file)[0].with_clause("unless { true }").unwrap();
        assert_eq!(text, "forbid(principal, action, resource) // why\n\nunless { true };");
    }
}
