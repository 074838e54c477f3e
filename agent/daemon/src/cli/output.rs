//! How commands speak: tables and colour on a terminal, JSON when piped or asked, errors with what to do.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use writ_core::config::{Agent, Mode};
use writ_core::diagnostic::Severity;
use writ_core::printable::{printable, printable_lines};

use super::{INTERNAL, NOT_PERMITTED, USAGE};
use crate::client::{Client, ClientError};
use crate::configuration;
use crate::engine::agent_alone;
use crate::log::Layout;

/// The width tables have at least.
const NARROWEST: u16 = 80;

/// Whether a command prints JSON: asked to, or not speaking to a terminal.
pub(super) fn is_json(asked: bool) -> bool {
    asked || !io::stdout().is_terminal()
}

/// Whether errors may be coloured.
pub(super) fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a value as JSON, indented where a person reads it.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if io::stdout().is_terminal() {
        serde_json::to_writer_pretty(&mut out, value)?;
    } else {
        serde_json::to_writer(&mut out, value)?;
    }
    writeln!(out)?;
    Ok(())
}

/// What is about to be shown to a person, with every text in it written out where a terminal would obey it: paths, names and
/// evidence are chosen by the accounts they are of. JSON is printed from what this was given, which is exact.
///
/// # Errors
/// It cannot be read back.
pub(super) fn shown<T: Serialize + DeserializeOwned>(exact: &T) -> anyhow::Result<T> {
    let mut value = serde_json::to_value(exact)?;
    write_out(&mut value);
    Ok(serde_json::from_value(value)?)
}

/// The same for a record as it stands in the log.
pub(super) fn shown_line(line: &[u8]) -> Cow<'_, [u8]> {
    // What a terminal obeys is escaped, DEL, or no ASCII: most lines have none of it.
    if !line.iter().any(|byte| matches!(byte, b'\\' | 0x7f..)) {
        return Cow::Borrowed(line);
    }
    match serde_json::from_slice(line) {
        Ok(mut value) => {
            write_out(&mut value);
            Cow::Owned(value.to_string().into_bytes())
        }
        Err(_) => Cow::Owned(printable(&String::from_utf8_lossy(line)).into_owned().into_bytes()),
    }
}

fn write_out(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(written) = printable(text) {
                *text = written;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_out),
        Value::Object(members) => {
            let taken = std::mem::take(members);
            members.extend(taken.into_iter().map(|(name, mut member)| {
                write_out(&mut member);
                (printable(&name).into_owned(), member)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A table with these columns.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|column| column.to_uppercase()));
    // An id that goes over two lines cannot be copied: a line that is too long for the terminal can.
    for (column, _) in table.column_iter_mut().zip(columns).filter(|(_, name)| ["id", "grants"].contains(name)) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    // A terminal that does not say how wide it is, or is hardly that: better cut by it than one letter a line.
    if table.width().is_some_and(|width| width < NARROWEST) {
        table.set_width(NARROWEST);
    }
    table
}

/// A word in a colour, in a table.
pub(super) fn cell(word: impl ToString, colour: Color) -> Cell {
    let cell = Cell::new(word);
    if paints() { cell.fg(colour) } else { cell }
}

/// An account's mode, in a table.
pub(super) fn mode_cell(mode: Mode) -> Cell {
    match mode {
        Mode::Enforce => cell("enforce", Color::Green),
        Mode::Observe => cell("observe", Color::Yellow),
    }
}

/// Whether what is printed may be coloured.
pub(super) fn paints() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A word in a colour, on a terminal.
pub(super) fn painted(word: &str, colour: AnsiColor) -> String {
    if !paints() {
        return word.to_owned();
    }
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{word}{style:#}")
}

/// A command's own refusal, with the exit code it means.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refusal {
    code: u8,
    text: String,
}

/// There is no log where one was to be read, as far as the caller may see.
pub(super) fn no_log(directory: &Path) -> anyhow::Error {
    match directory.read_dir() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            anyhow::Error::from(error).context(format!("cannot read {}", directory.display()))
        }
        _ => usage(format!("{}: there is no log here: name the directory that holds `records`", directory.display())),
    }
}

/// Refuses where there is no log (see [`no_log`]).
pub(super) fn a_log(directory: &Path) -> anyhow::Result<()> {
    if Layout::new(directory).records().is_dir() { Ok(()) } else { Err(no_log(directory)) }
}

/// What was asked makes no sense: exit code 64.
pub(super) fn usage(text: impl Into<String>) -> anyhow::Error {
    Refusal { code: USAGE, text: text.into() }.into()
}

/// Why something is done, for those who read the record: a blank one says nothing.
pub(super) fn reason(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        Err("it is blank: say why, for those who read the record")
    } else {
        Ok(text.to_owned())
    }
}

/// What was asked for is not there: exit code 1.
pub(super) fn not_found(text: impl Into<String>) -> anyhow::Error {
    Refusal { code: 1, text: text.into() }.into()
}

/// It cannot be done, for a reason that is not the program's: exit code 1.
pub(super) fn refused(text: impl Into<String>) -> anyhow::Error {
    Refusal { code: 1, text: text.into() }.into()
}

/// An error with its causes; what a cause repeats is said once.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What was found, once it is printed: a reader that has seen enough (`| head`) does not change the exit code that says it.
///
/// # Errors
/// It could not be printed for another reason.
pub(super) fn found(well: bool, printed: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    match printed {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

/// Whether nobody reads any more what is printed.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = match (error.downcast_ref::<io::Error>(), error.downcast_ref::<serde_json::Error>()) {
        (Some(error), _) => Some(error.kind()),
        (_, Some(error)) => error.io_error_kind(),
        _ => None,
    };
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// Says what went wrong, and turns it into the exit code it means.
pub(super) fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // The reader has seen enough (`| head`).
    }
    let bold = if colours() { Style::new().bold().fg_color(Some(AnsiColor::Red.into())) } else { Style::new() };
    // What the daemon says is one line, and quotes what it was given; other errors may have lines of their own.
    let text = told(error);
    let text = if error.is::<ClientError>() { printable(&text) } else { printable_lines(&text) };
    eprintln!("{bold}error{bold:#}: {text}");
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return ExitCode::from(refusal.code);
    }
    let Some(refused) = error.downcast_ref::<ClientError>() else {
        let denied = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
        let denied = denied.into_iter().any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
        return ExitCode::from(if denied { NOT_PERMITTED } else { INTERNAL });
    };
    match refused {
        ClientError::Refused { problem, .. } => {
            // What is wrong with a request or in what it asks for, the message says; the rest is for who writes clients.
            let plain = matches!(problem.code.as_str(), "invalid-request" | "refused");
            if let Some(hint) = problem.hint.as_ref().filter(|_| !plain) {
                eprintln!("  hint: {}", printable(hint));
            }
        }
        ClientError::Unreachable { .. } => {
            eprintln!("  hint: is it running? `systemctl status writ`; enforcement that is pinned holds either way");
        }
        ClientError::Silent { .. } => {
            eprintln!(
                "  hint: it is stopped or hangs: `systemctl restart writ`; enforcement that is pinned holds either way"
            );
        }
        ClientError::Garbled(_) => {}
    }
    ExitCode::from(refused.exit_code())
}

/// What is wrong with `writ.toml`, if anything is: where the daemon and its files are may then not be what it was to say.
pub(super) fn in_doubt(config_dir: &Path) -> Option<String> {
    let loaded = configuration::load(config_dir);
    let wrong = loaded.diagnostics.iter().find(|finding| {
        finding.severity == Severity::Error && finding.at.as_ref().is_some_and(|at| at.file == "writ.toml")
    })?;
    let place = wrong.at.as_ref().map(|at| format!("{}:{}:{}", at.file, at.line, at.column)).unwrap_or_default();
    Some(format!("{place}: {}", wrong.message))
}

/// What `writ.toml` says; the defaults if it cannot be read.
pub(super) fn agent(config_dir: &Path) -> Agent {
    agent_alone(&configuration::read::read_agent(config_dir).sources)
}

/// The socket that the configuration names; the default if the configuration cannot be read.
pub(super) fn socket(config_dir: &Path) -> PathBuf {
    PathBuf::from(agent(config_dir).paths.socket)
}

/// The log directory that the configuration names; the default if the configuration cannot be read.
pub(super) fn log(config_dir: &Path) -> PathBuf {
    PathBuf::from(agent(config_dir).paths.log)
}

/// Runs a conversation with the daemon.
pub(super) fn converse<T>(
    config_dir: &Path,
    talk: impl AsyncFnOnce(Client<'_>) -> Result<T, ClientError>,
) -> anyhow::Result<T> {
    let socket = socket(config_dir);
    let talked = converse_at(&socket, talk);
    let unreachable = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. }));
    if talked.as_ref().err().is_some_and(unreachable)
        && let Some(why) = in_doubt(config_dir)
    {
        eprintln!("warning: `{}` may not be where the daemon listens: {why}", socket.display());
    }
    talked
}

/// The same with whoever listens at this socket.
pub(super) fn converse_at<T>(
    socket: &Path,
    talk: impl AsyncFnOnce(Client<'_>) -> Result<T, ClientError>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(talk(Client::new(socket)))?)
}

/// How long until an instant, as people say it.
pub(super) fn ahead(at: Timestamp) -> String {
    span(at.duration_since(Timestamp::now()))
}

/// How long since an instant, as people say it.
pub(super) fn ago(at: Timestamp) -> String {
    format!("{} ago", span(Timestamp::now().duration_since(at)))
}

fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}
