//! The configuration while its files are read: what is declared, and what refers to what.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::HostFacts;
use super::account::read_account;
use super::agent::{AGENT_KEYS, read_agent};
use super::destination::read_destination;
use super::fault::{Fault, nearest};
use super::model::{Account, Agent, Destination, Match, SignalKind, SourceFile};
use super::role::{DIRECTORIES, Role, role};
use super::section::{Section, Source};
use super::signal::read_signal;
use super::value::{kind as signal_kind, name};
use crate::diagnostic::{Diagnostic, Location};

/// More syntax errors than this in one file are counted instead of listed: they are echoes of the first.
const MAX_SYNTAX_ERRORS: usize = 20;

/// The keys below `[kind.NAME]` that are tables.
const TABLES: [&str; 2] = ["match", "attributes"];

/// Everything read so far.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) agent: Agent,
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) destinations: BTreeMap<String, Destination>,
    pub(super) signals: BTreeMap<String, SignalKind>,
    pub(super) policies: Vec<SourceFile>,
    pub(super) schemas: Vec<SourceFile>,
    pub(super) references: References,
    /// Roles of files that could not be read: what they would have declared is not known to be missing.
    pub(super) broken: BTreeSet<Role>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What refers to what, to be checked when everything is declared.
#[derive(Default)]
pub(super) struct References {
    /// Accounts to the signal kinds they require.
    pub(super) fresh: Vec<Reference>,
    /// Destinations to their parents.
    pub(super) parents: Vec<Reference>,
    /// Match tables, with the account and the place of each.
    pub(super) matches: Vec<(Match, String, Location)>,
}

/// One name used by another.
pub(super) struct Reference {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) at: Location,
}

impl Draft {
    /// Reads one file.
    pub(super) fn read(&mut self, file: &SourceFile, facts: &HostFacts) {
        match role(&file.name) {
            Role::Policies => self.policies.push(file.clone()),
            Role::Schemas => self.schemas.push(file.clone()),
            Role::Agent => self.read_toml(file, Role::Agent, |draft, source, table| {
                let section =
                    Section::new(source, table, "`writ.toml`".to_owned(), &AGENT_KEYS, &mut draft.diagnostics);
                draft.agent = read_agent(section, facts);
            }),
            Role::Accounts => self.read_tables(file, Role::Accounts, "service-account"),
            Role::Destinations => self.read_tables(file, Role::Destinations, "destination"),
            Role::Signals => self.read_tables(file, Role::Signals, "signal"),
            Role::Misplaced => self.diagnostics.push(misplaced(file)),
            Role::Ignored => {}
        }
    }

    fn read_toml(
        &mut self,
        file: &SourceFile,
        role: Role,
        read: impl for<'a> FnOnce(&mut Self, &'a Source<'a>, &'a DeTable<'a>),
    ) {
        let source = Source::new(file);
        let (table, errors) = DeTable::parse_recoverable(&file.text);
        if errors.is_empty() {
            return read(self, &source, table.get_ref());
        }
        // What was recovered around a syntax error is a guess; findings about guesses would mislead.
        self.broken.insert(role);
        if role == Role::Agent {
            // The best guess there is at where the daemon, its log and what it pinned are: better than where they would be
            // on another host.
            let (mut unsaid, facts) = (Vec::new(), HostFacts::default());
            let section = Section::open(&source, table.get_ref(), String::new(), &mut unsaid);
            self.agent.paths = read_agent(section, &facts).paths;
        }
        for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
            let at = source.at(error.span().unwrap_or(0..0));
            self.diagnostics.push(Diagnostic::error("toml-syntax", error.message().replace('\n', ", ")).at(at));
        }
        if let Some(more) = errors.len().checked_sub(MAX_SYNTAX_ERRORS).filter(|more| *more > 0) {
            let message = format!("{more} more syntax errors in `{}`", file.name.escape_debug());
            self.diagnostics
                .push(Diagnostic::error("toml-syntax", message).at(source.at(file.text.len()..file.text.len())));
        }
    }

    /// Reads `[kind.NAME]` tables.
    fn read_tables(&mut self, file: &SourceFile, role: Role, kind: &'static str) {
        self.read_toml(file, role, |draft, source, table| {
            let title = format!("`{}`", source.name);
            let mut top = Section::open(source, table, title, &mut draft.diagnostics);
            let mut unread = false;
            for key in top.keys().filter(|key| key.text != kind) {
                let fault = Fault::new("unknown-key", format!("unknown key `{}` in `{}`", key.text, source.name));
                top.refuse(key.span, fault.help(belongs(key.text, kind)));
                // It may be meant to declare something.
                unread = true;
            }
            let value = top.value(kind);
            if unread {
                draft.broken.insert(role);
            }
            let Some(value) = value else { return };
            let Some(names) = top.table_of(kind, value) else { return };
            for (key, value) in names {
                match named_table(kind, role, key, value) {
                    Ok((name, table)) => draft.declare(role, kind, name, source, source.at(key.span()), table),
                    Err((span, fault)) => {
                        Section::open(source, names, format!("`[{kind}]`"), &mut draft.diagnostics).refuse(span, fault);
                        draft.broken.insert(role);
                    }
                }
            }
        });
    }

    fn declare<'a>(
        &mut self,
        role: Role,
        kind: &str,
        name: String,
        source: &'a Source<'a>,
        at: Location,
        table: &'a DeTable<'a>,
    ) {
        let title = format!("`[{kind}.{name}]`");
        let first = match role {
            Role::Accounts => self.accounts.get(&name).map(|account| &account.at),
            Role::Destinations => self.destinations.get(&name).and_then(|destination| destination.at.as_ref()),
            _ => self.signals.get(&name).and_then(|signal| signal.at.as_ref()),
        };
        // The second of two is read for its findings alone: what it refers to is no part of the configuration.
        let mut dropped = References::default();
        let mut references = &mut self.references;
        if let Some(first) = first {
            let message =
                format!("{title} is declared twice: here and at {}:{}:{}", first.file, first.line, first.column);
            let finding = Diagnostic::error("duplicate", message).help("remove one, or rename it");
            self.diagnostics.push(finding.at(at.clone()));
            references = &mut dropped;
        }
        let section = Section::open(source, table, title, &mut self.diagnostics);
        match role {
            Role::Accounts => {
                let account = read_account(section, name.clone(), at, references);
                self.accounts.entry(name).or_insert(account);
            }
            Role::Destinations => {
                let destination = read_destination(section, name.clone(), at, references);
                self.destinations.entry(name).or_insert(destination);
            }
            _ => {
                let signal = read_signal(section, name.clone(), at);
                self.signals.entry(name).or_insert(signal);
            }
        }
    }
}

/// The name and the contents of a `[kind.NAME]` table.
fn named_table<'a>(
    kind: &str,
    role: Role,
    key: &Spanned<DeString<'a>>,
    value: &'a Spanned<DeValue<'a>>,
) -> Result<(String, &'a DeTable<'a>), (Range<usize>, Fault)> {
    let written = key.get_ref();
    let DeValue::Table(table) = value.get_ref() else {
        let fault = Fault::new("wrong-type", format!("`{written}` must be a table"));
        return Err((key.span(), fault.help(format!("each has a name: write `[{kind}.NAME]` above its keys"))));
    };
    // `[signal.edr.malware]` is a table in a table to TOML.
    let mut keys = table.iter();
    if let (Some((rest, value)), None) = (keys.next(), keys.next())
        && value.get_ref().is_table()
        && !TABLES.contains(&rest.get_ref().as_ref())
    {
        let whole = format!("{written}.{}", rest.get_ref());
        let fault = Fault::new("unquoted-name", format!("`[{kind}.{whole}]` is a table within a table"));
        return Err((rest.span(), fault.help(format!("write a name with a dot in quotes: `[{kind}.\"{whole}\"]`"))));
    }
    let parse = if role == Role::Signals { signal_kind } else { name };
    parse(written).map(|name| (name, table)).map_err(|fault| (key.span(), fault))
}

/// Where a key belongs that stands in a file of `[kind.NAME]` tables.
fn belongs(key: &str, kind: &str) -> String {
    let elsewhere = match key {
        "service-account" => "service-accounts.d",
        "destination" => "destinations.d",
        "signal" => "signals.d",
        _ if AGENT_KEYS.contains(&key) => return "it belongs in `writ.toml`".to_owned(),
        _ => match nearest(key, [kind]) {
            Some(near) => return format!("did you mean `{near}`?"),
            None => return format!("every table here is `[{kind}.NAME]`"),
        },
    };
    format!("`[{key}.NAME]` belongs in a file in `{elsewhere}/`")
}

fn misplaced(file: &SourceFile) -> Diagnostic {
    let places = DIRECTORIES.map(|(directory, extension, _)| format!("`{directory}/*.{extension}`"));
    Diagnostic::warning("not-read", format!("`{}` is not read: nothing in it is in force", file.name.escape_debug()))
        .help(format!("writ reads `writ.toml`, {}", places.join(", ")))
        .at(Location { file: file.name.clone(), line: 1, column: 1, offset: 0, length: 0 })
}
