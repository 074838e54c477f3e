//! Reading one TOML table: every key by its type, every finding with its place, no finding ends the reading.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, suggest};
use super::model::SourceFile;
use super::value::duration;
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::printable::printable;

/// A file and where its lines begin, so that a place costs a search and not a walk through the file.
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a SourceFile) -> Self {
        let line_starts = std::iter::once(0).chain(file.text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: &file.name, text: &file.text, line_starts }
    }

    /// The place of a span, as [`Location::of`] would find it.
    pub(super) fn at(&self, span: Range<usize>) -> Location {
        let line = self.line_starts.partition_point(|start| *start <= span.start).max(1);
        let line_start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(line_start..span.start).map_or(0, |before| before.chars().count()) + 1;
        Location { file: self.name.to_owned(), line, column, offset: span.start, length: span.len() }
    }
}

/// A string and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
    pub(super) span: Range<usize>,
}

/// One table being read.
pub(super) struct Section<'a, 'd> {
    source: &'a Source<'a>,
    table: &'a DeTable<'a>,
    /// The header an operator would look for, in messages: `[signal.edr]`, or the file's name.
    title: String,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'a, 'd> Section<'a, 'd> {
    /// Starts reading a table that may have these keys; any other is reported.
    pub(super) fn new(
        source: &'a Source<'a>,
        table: &'a DeTable<'a>,
        title: String,
        known: &[&str],
        diagnostics: &'d mut Vec<Diagnostic>,
    ) -> Self {
        let mut section = Self { source, table, title, diagnostics };
        section.know(known);
        section
    }

    /// Reports every key but these.
    pub(super) fn know(&mut self, known: &[&str]) {
        for key in self.keys().filter(|key| !known.contains(&key.text)) {
            let fault = Fault::new("unknown-key", format!("unknown key `{}` in {}", key.text, self.title))
                .help(suggest(key.text, known.iter().copied()));
            self.refuse(key.span, fault);
        }
    }

    /// Starts reading a table whose keys are not known yet.
    pub(super) fn open(
        source: &'a Source<'a>,
        table: &'a DeTable<'a>,
        title: String,
        diagnostics: &'d mut Vec<Diagnostic>,
    ) -> Self {
        Self { source, table, title, diagnostics }
    }

    /// Reports a value that cannot be used.
    pub(super) fn refuse(&mut self, span: Range<usize>, fault: Fault) {
        self.report(Severity::Error, span, fault);
    }

    /// Reports something the operator should know.
    pub(super) fn warn(&mut self, span: Range<usize>, fault: Fault) {
        self.report(Severity::Warning, span, fault);
    }

    fn report(&mut self, severity: Severity, span: Range<usize>, fault: Fault) {
        let Fault { code, message, help } = fault;
        let (message, help) = (printable(&message).into_owned(), help.map(|help| printable(&help).into_owned()));
        self.diagnostics.push(Diagnostic {
            severity,
            code,
            message,
            help,
            policy: None,
            at: Some(self.source.at(span)),
        });
    }

    /// The place of a span in this file.
    pub(super) fn at(&self, span: Range<usize>) -> Location {
        self.source.at(span)
    }

    /// Where a key's value stands, if the key is there.
    pub(super) fn span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get(key).map(Spanned::span)
    }

    /// The keys, in the order of their names, with their places.
    pub(super) fn keys(&self) -> impl Iterator<Item = Text<'a>> + use<'a> {
        self.table.keys().map(|key| Text { text: key.get_ref().as_ref(), span: key.span() })
    }

    /// The raw value of a key.
    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    /// A table below this one.
    pub(super) fn section(&mut self, key: &str, known: &[&str]) -> Option<Section<'a, '_>> {
        let value = self.table.get(key)?;
        let title = format!("`[{key}]`");
        let table = self.table_of(key, value)?;
        Some(Section::new(self.source, table, title, known, self.diagnostics))
    }

    /// A table's contents where the value is one; else a finding.
    pub(super) fn table_of(&mut self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Option<&'a DeTable<'a>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => self.wrong_type(key, value, "a table"),
        }
    }

    /// A section over a table found by [`Self::table_of`].
    pub(super) fn below(&mut self, table: &'a DeTable<'a>, title: String) -> Section<'a, '_> {
        Section::open(self.source, table, title, self.diagnostics)
    }

    /// A string.
    pub(super) fn string(&mut self, key: &str) -> Option<Text<'a>> {
        let value = self.table.get(key)?;
        self.text_of(key, value)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.wrong_type(key, value, "`true` or `false`"),
        }
    }

    /// A string that means something.
    pub(super) fn parsed<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, Fault>) -> Option<T> {
        let text = self.string(key)?;
        self.accept(key, text.span, parse(text.text))
    }

    /// A duration.
    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        let parse = |scalar: &Scalar<'_>| match scalar {
            Scalar::Text(text) => Some(duration(text)),
            Scalar::Number(number) => Some(duration(&number.to_string())),
        };
        self.scalar(key, "a duration", parse)
    }

    /// An integer that is not too large.
    pub(super) fn integer(&mut self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Option<i64> {
        self.scalar_of(key, value, "an integer", |scalar| match scalar {
            Scalar::Number(number) => Some(Ok(*number)),
            Scalar::Text(_) => None,
        })
    }

    /// A value that is a string or an integer that means something.
    pub(super) fn scalar<T>(
        &mut self,
        key: &str,
        wanted: &str,
        parse: impl Fn(&Scalar<'_>) -> Option<Result<T, Fault>>,
    ) -> Option<T> {
        let value = self.table.get(key)?;
        self.scalar_of(key, value, wanted, parse)
    }

    /// An array of strings that mean something; what cannot be used is reported and left out.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<(T, Range<usize>)>> {
        let values = self.array(key)?;
        let mut list = Vec::with_capacity(values.len());
        for value in values {
            let Some(text) = self.text_of(key, value) else { continue };
            if let Some(item) = self.accept(key, text.span.clone(), parse(text.text)) {
                list.push((item, text.span));
            }
        }
        Some(list)
    }

    /// An array of strings or integers that mean something.
    pub(super) fn scalars<T>(
        &mut self,
        key: &str,
        wanted: &str,
        parse: impl Fn(&Scalar<'_>) -> Option<Result<T, Fault>>,
    ) -> Option<Vec<T>> {
        let values = self.array(key)?;
        Some(values.iter().filter_map(|value| self.scalar_of(key, value, wanted, &parse)).collect())
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |text| match choices.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(*meaning),
            None => Err(Fault::new("unknown-value", format!("`{text}` is not a value it can have"))
                .help(suggest(text, choices.iter().map(|(word, _)| *word)))),
        })
    }

    fn array(&mut self, key: &str) -> Option<&'a [Spanned<DeValue<'a>>]> {
        let value = self.table.get(key)?;
        match value.get_ref() {
            DeValue::Array(array) => Some(array),
            _ => self.wrong_type(key, value, "an array"),
        }
    }

    fn text_of(&mut self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Option<Text<'a>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Text { text, span: value.span() }),
            _ => self.wrong_type(key, value, "a string"),
        }
    }

    fn scalar_of<T>(
        &mut self,
        key: &str,
        value: &'a Spanned<DeValue<'a>>,
        wanted: &str,
        parse: impl Fn(&Scalar<'_>) -> Option<Result<T, Fault>>,
    ) -> Option<T> {
        let result = match value.get_ref() {
            DeValue::String(text) => parse(&Scalar::Text(text)),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => parse(&Scalar::Number(number)),
                Err(_) => Some(Err(Fault::new("bad-number", format!("`{integer}` does not fit in 64 bits")))),
            },
            _ => None,
        };
        match result {
            Some(result) => self.accept(key, value.span(), result),
            None => self.wrong_type(key, value, wanted),
        }
    }

    fn accept<T>(&mut self, key: &str, span: Range<usize>, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                let message = format!("`{key}`: {}", fault.message);
                self.refuse(span, Fault { message, ..fault });
                None
            }
        }
    }

    pub(super) fn wrong_type<T>(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let fault = Fault::new("wrong-type", format!("`{key}` in {} must be {wanted}, not {found}", self.title));
        let written = self.source.text.get(value.span()).unwrap_or_default();
        let fault = match (wanted, value.get_ref()) {
            ("a string", DeValue::Integer(_)) => fault.help(format!("write it in quotes: \"{written}\"")),
            ("an array", DeValue::String(_) | DeValue::Integer(_)) => {
                fault.help(format!("write it in brackets: [{written}]"))
            }
            _ => fault,
        };
        self.refuse(value.span(), fault);
        None
    }
}

/// A string or an integer.
pub(super) enum Scalar<'a> {
    Text(&'a str),
    Number(i64),
}
