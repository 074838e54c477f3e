//! `writ tail`: records as they were written, from the oldest, or the last ones and then those that come.

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use writ_core::record::{Body, Place, Record, Verdict, to_ocsf};

use super::find::{Filter, begin, each, last, since};
use super::output;
use super::show::summary;
use crate::log::{Follow, Layout, own_key};

/// How often a followed log is looked at: well within the 300 ms a reader may lag behind.
const LOOK: Duration = Duration::from_millis(50);
/// What `-f` shows of the past.
const RECENT: usize = 10;

/// Options of `tail`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct TailArgs {
    /// Show the last 10 records, then each new one
    #[arg(short, long)]
    pub follow: bool,
    /// Only records about this account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// Only decisions and observations with this verdict
    #[arg(long, value_parser = ["allow", "deny", "escalate"])]
    pub verdict: Option<String>,
    /// Only records of this type
    #[arg(long = "type", value_parser = Body::TYPES, value_name = "TYPE")]
    pub kind: Option<String>,
    /// Only records since a time, or for a duration: 15m, 2h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// One JSON record a line, as written (the default when not a terminal)
    #[arg(long, conflicts_with = "ocsf")]
    pub json: bool,
    /// OCSF 1.8 events, one a line
    #[arg(long)]
    pub ocsf: bool,
    /// The log directory, such as a copy; without it, the configured one
    #[arg(long, value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
}

/// How a record is shown.
pub(super) enum Form {
    Json,
    /// With the log that events name, if it has a key.
    Ocsf(Option<String>),
    Text(Folding),
}

/// Repeats on a terminal are shown as one line with their number, whichever process they are of.
#[derive(Default)]
pub(super) struct Folding {
    pub(super) colours: bool,
    waiting: Option<Waiting>,
}

/// A line that is not shown yet: it may come again.
struct Waiting {
    key: String,
    time: String,
    text: String,
    colour: Option<AnsiColor>,
    times: u64,
}

/// Shows the log below `log`.
pub(crate) fn tail(args: &TailArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let log = args.log.as_deref().unwrap_or(log);
    let terminal = io::stdout().is_terminal();
    let filter = Filter {
        account: args.account.clone(),
        verdict: args.verdict.clone(),
        kind: args.kind.clone(),
        since: args.since.as_deref().map(since).transpose()?,
    };
    let form = match (args.ocsf, args.json || !terminal) {
        (true, _) => {
            let key = own_key(&Layout::new(log), &mut Vec::new());
            Form::Ocsf(key.map(|key| format!("{}+{:08x}", key.name(), key.id())))
        }
        (false, true) => Form::Json,
        (false, false) => Form::Text(Folding { colours: output::paints(), ..Folding::default() }),
    };
    let output = io::BufWriter::new(io::stdout().lock());
    show(args, log, &filter, form, output)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show(
    args: &TailArgs,
    log: &Path,
    filter: &Filter,
    mut form: Form,
    mut output: impl Write,
) -> anyhow::Result<()> {
    if !args.follow {
        output::a_log(log)?;
        each(log, |index, line| if filter.matches(line) { form.write(index, line, &mut output) } else { Ok(()) })?;
        form.end(&mut output)?;
        return Ok(output.flush()?);
    }
    // With `--since`, everything since then: a shipper that restarts must not miss what came meanwhile.
    let mut follow = if let Some(since) = &filter.since {
        Follow::from_index(log, begin(log, since)?)
    } else {
        let (recent, next) = last(log, filter, RECENT)?;
        recent.iter().try_for_each(|(index, line)| form.write(*index, line, &mut output))?;
        Follow::from_index(log, next)
    };
    loop {
        while let Some((index, line)) = follow.next_line()? {
            if filter.matches(&line) {
                form.write(index, &line, &mut output)?;
            }
        }
        form.end(&mut output)?;
        output.flush()?;
        std::thread::sleep(LOOK);
    }
}

impl Form {
    fn write(&mut self, index: u64, line: &[u8], output: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Json => {
                output.write_all(line)?;
                output.write_all(b"\n")?;
            }
            Self::Ocsf(log) => {
                let record = Record::from_line(line)?;
                let place = log.as_deref().map(|log| Place { log, index });
                if let Some(event) = to_ocsf(&record, place.as_ref()) {
                    writeln!(output, "{event}")?;
                }
            }
            Self::Text(folding) => {
                let line = output::shown_line(line);
                let line = match Record::from_line(&line) {
                    Ok(record) => Waiting {
                        key: key(&record),
                        time: record.time.to_string(),
                        text: summary(&record),
                        colour: colour(&record),
                        times: 1,
                    },
                    Err(error) => {
                        let text = format!("{error}: {}", String::from_utf8_lossy(&line));
                        Waiting { key: text.clone(), time: String::new(), text, colour: Some(AnsiColor::Red), times: 1 }
                    }
                };
                folding.write(line, output)?;
            }
        }
        Ok(())
    }

    /// Nothing more for now.
    fn end(&mut self, output: &mut impl Write) -> anyhow::Result<()> {
        if let Self::Text(folding) = self { folding.flush(output) } else { Ok(()) }
    }
}

impl Folding {
    fn write(&mut self, line: Waiting, output: &mut impl Write) -> anyhow::Result<()> {
        if let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.key == line.key) {
            waiting.times += 1;
            waiting.time = line.time;
            waiting.text = line.text;
            return Ok(());
        }
        self.flush(output)?;
        self.waiting = Some(line);
        Ok(())
    }

    fn flush(&mut self, output: &mut impl Write) -> anyhow::Result<()> {
        let Some(Waiting { time, text, colour, times, .. }) = self.waiting.take() else { return Ok(()) };
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let word = match colour.filter(|_| self.colours) {
            Some(colour) => {
                let style = Style::new().fg_color(Some(colour.into()));
                format!("{style}{word}{style:#}")
            }
            None => word.to_owned(),
        };
        let times = if times > 1 { format!(" ×{times}") } else { String::new() };
        writeln!(output, "{} {word} {rest}{times}", time.get(11..19).unwrap_or(&time))?;
        Ok(())
    }
}

/// What makes a record a repeat: all that is shown but the process id.
fn key(record: &Record) -> String {
    let mut alike = record.clone();
    if let Body::Decision(judged) | Body::Observation(judged) = &mut alike.body
        && let Some(process) = &mut judged.process
    {
        process.pid = 0;
    }
    summary(&alike)
}

fn colour(record: &Record) -> Option<AnsiColor> {
    match &record.body {
        Body::Decision(judged) => Some(match judged.verdict {
            Verdict::Allow => AnsiColor::Green,
            Verdict::Escalate => AnsiColor::Yellow,
            Verdict::Deny => AnsiColor::Red,
        }),
        Body::Observation(judged) if judged.verdict != Verdict::Allow => Some(AnsiColor::Cyan),
        Body::Cut(_) | Body::Loss(_) => Some(AnsiColor::Red),
        Body::Escalation(_) => Some(AnsiColor::Yellow),
        Body::Change(_) | Body::Grant(_) => Some(AnsiColor::Cyan),
        Body::Observation(_) | Body::Lifecycle(_) => None,
    }
}
