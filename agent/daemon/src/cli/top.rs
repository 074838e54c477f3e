//! `writ top`: the accounts and what passes, redrawn every second; once, as JSON, when not on a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{account, output};
use crate::engine::Status;

const EVERY: Duration = Duration::from_secs(1);

/// What `top` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show it once
    #[arg(long)]
    once: bool,
    /// Print the status as JSON, once
    #[arg(long)]
    json: bool,
}

/// Draws until interrupted.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let ask = || output::converse(config_dir, async |client| client.get::<Status>("/v1/status").await);
    if args.json || (!io::stdout().is_terminal() && !args.once) {
        output::json(&ask()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut before: Option<(Instant, u64)> = None;
    loop {
        let mut status = output::shown(&ask()?)?;
        let now = Instant::now();
        let rate = before.map_or(0, |(then, seen)| {
            let passed = status.records.seen.saturating_sub(seen);
            let milliseconds = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1);
            passed.saturating_mul(1_000) / milliseconds
        });
        before = Some((now, status.records.seen));
        // What needs a person first.
        status.accounts.sort_by(|a, b| b.risk.cmp(&a.risk).then_with(|| a.name.cmp(&b.name)));
        let mut out = io::stdout().lock();
        if !args.once {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        let records = status.records;
        writeln!(
            out,
            "writ {}  generation {}  {rate} attempts/s  {} seen  {} lost  {} in the log{}\n\n{}",
            status.version,
            status.generation,
            records.seen,
            records.lost,
            status.checkpoint.size,
            status.degraded.iter().map(|reason| format!("  degraded: {reason}")).collect::<String>(),
            account::table(&status.accounts)
        )?;
        out.flush()?;
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
        drop(out);
        std::thread::sleep(EVERY);
    }
}
