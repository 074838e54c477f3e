//! writ: decides at run time what a host's service accounts may connect to, and proves every decision.

mod cli;
#[expect(dead_code, reason = "the daemon that writes the log is not wired up yet")]
mod log;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Stands in for the real command line until it is wired up.
#[derive(Parser)]
struct Writ {
    /// The log directory
    #[arg(long, default_value = "/var/log/writ")]
    log: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show records
    Tail(cli::TailArgs),
    /// Check the log
    Verify(cli::VerifyArgs),
    /// One record's proof
    Prove(cli::ProveArgs),
    /// One record's story
    Explain(cli::ExplainArgs),
    /// What each account did
    Report(cli::ReportArgs),
}

fn main() -> ExitCode {
    let writ = Writ::parse();
    let log = &writ.log;
    let done = match &writ.command {
        Command::Tail(args) => cli::tail(args, log),
        Command::Verify(args) => cli::verify(args, log),
        Command::Prove(args) => cli::prove(args, log),
        Command::Explain(args) => cli::explain(args, log),
        Command::Report(args) => cli::report(args, log),
    };
    done.unwrap_or_else(|error| {
        eprintln!("writ: {error:#}");
        ExitCode::from(70)
    })
}
