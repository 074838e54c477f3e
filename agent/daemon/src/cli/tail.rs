//! `writ tail`: records as they were written, from the oldest, or the last ones and then those that come.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use writ_core::record::{Body, Place, Record, to_ocsf};

use super::find::{Filter, begin, each, last, since};
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
}

/// How a record is shown.
pub(super) enum Form {
    Json,
    /// With the log that events name, if it has a key.
    Ocsf(Option<String>),
    Text(Folding),
}

/// Repeats on a terminal are shown as one line with their number.
#[derive(Default)]
pub(super) struct Folding {
    shown: Option<(String, String)>,
    repeats: u64,
}

/// Shows the log below `log`.
pub(crate) fn tail(args: &TailArgs, log: &Path) -> anyhow::Result<ExitCode> {
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
        (false, false) => Form::Text(Folding::default()),
    };
    let output = io::BufWriter::new(io::stdout().lock());
    match show(args, log, &filter, form, output) {
        // The reader has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

pub(super) fn show(
    args: &TailArgs,
    log: &Path,
    filter: &Filter,
    mut form: Form,
    mut output: impl Write,
) -> anyhow::Result<()> {
    if !args.follow {
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
                let (time, text) = match Record::from_line(line) {
                    Ok(record) => (record.time.to_string(), summary(&record)),
                    Err(error) => (String::new(), format!("{error}: {}", String::from_utf8_lossy(line))),
                };
                folding.write(time, text, output)?;
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
    fn write(&mut self, time: String, text: String, output: &mut impl Write) -> anyhow::Result<()> {
        if let Some((last, shown)) = &mut self.shown
            && *shown == text
        {
            *last = time;
            self.repeats += 1;
            return Ok(());
        }
        self.flush(output)?;
        writeln!(output, "{} {text}", time.get(11..19).unwrap_or(&time))?;
        self.shown = Some((time, text));
        Ok(())
    }

    fn flush(&mut self, output: &mut impl Write) -> anyhow::Result<()> {
        if let Some((time, text)) = self.shown.as_ref().filter(|_| self.repeats > 0) {
            writeln!(output, "{} {text} ×{}", time.get(11..19).unwrap_or(time), self.repeats)?;
        }
        self.repeats = 0;
        Ok(())
    }
}
