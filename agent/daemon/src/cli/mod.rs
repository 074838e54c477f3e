//! The command line: what each command takes, and which file does it.

mod account;
mod break_glass;
mod cedar;
mod check;
mod coverage;
mod doctor;
mod draft;
mod escalation;
mod explain;
mod find;
mod grant;
mod init;
mod judgements;
mod lookup;
mod output;
mod packaging;
mod prove;
mod reload;
mod replay;
mod report;
mod run;
pub(crate) mod show;
mod signal;
mod simulate;
mod status;
mod tail;
#[cfg(test)]
mod tests;
mod top;
mod uninstall;
mod verify;
mod whatif;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::engine;

/// Wrong usage (sysexits.h `EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// An internal error (sysexits.h `EX_SOFTWARE`).
pub(crate) const INTERNAL: u8 = 70;
/// Not permitted (sysexits.h `EX_NOPERM`).
pub(crate) const NOT_PERMITTED: u8 = 77;

/// Where the configuration is, unless it is said.
pub(crate) const CONFIG_DIR: &str = "/etc/writ";

/// Decides at run time what this host's service accounts may connect to, and proves every decision.
#[derive(Debug, Parser)]
#[command(name = "writ", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// The configuration directory
    #[arg(long, global = true, value_name = "DIR", default_value = CONFIG_DIR, env = "WRIT_CONFIG_DIR")]
    pub config_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground; ready when policy is in force
    Run(run::Args),
    /// Validate the configuration; needs no privileges and no daemon
    Check(check::Args),
    /// Apply the configuration; returns when the kernel holds it
    Reload(reload::Args),
    /// Show kernel features, coverage, requested and effective mode
    Doctor(doctor::Args),
    /// Show what is in force
    Status(status::Args),
    /// Tell what a connect would meet
    Simulate(simulate::Args),
    /// Show records: every retained one, oldest first; with -f the last 10, then live
    Tail(tail::TailArgs),
    /// Check a log: tree, checkpoints, signatures, sequences, losses
    Verify(verify::VerifyArgs),
    /// Decide every recorded attempt again, from the log directory alone
    Replay(replay::ReplayArgs),
    /// Decide every recorded attempt under other policies, and list what would change
    Whatif(whatif::WhatifArgs),
    /// Write one record's self-contained proof (C2SP tlog-proof)
    Prove(prove::ProveArgs),
    /// Tell one record's story
    Explain(explain::ExplainArgs),
    /// Tell what each account did
    Report(report::ReportArgs),
    /// Send, list and clear signals
    Signal(signal::Args),
    /// Make, list and revoke just-in-time grants
    Grant(grant::Args),
    /// List, approve and deny attempts that wait for a person
    Escalation(escalation::Args),
    /// Show accounts; offboard, reinstate, draft a policy
    Account(account::Args),
    /// Only observe for a while; recorded, and ended by the kernel
    BreakGlass(break_glass::Args),
    /// Tell the calling account what it was refused, why, and what to do next
    Why(why::Args),
    /// Show accounts and traffic, redrawn every second
    Top(top::Args),
    /// Draft a configuration in observe mode from what this host does; overwrites nothing
    Init(init::Args),
    /// Remove programs, maps and pins
    Uninstall(uninstall::Args),
    /// Print a shell's completion script
    #[command(hide = true)]
    Completions(packaging::CompletionsArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(packaging::ManArgs),
    /// Try a technique: a process of `doctor --coverage`
    #[command(hide = true)]
    Attempt {
        /// What, where, as whom (JSON)
        order: String,
    },
    /// Run as `run` does, and end with the process that asked for it: the confined writ of `doctor --coverage`
    #[command(hide = true)]
    CoverageInstance,
    /// Be refused: the self-test's own process
    #[command(hide = true)]
    SelfTestProbe {
        /// The judged cgroup; without it, the configured one
        cgroup: Option<PathBuf>,
    },
}

/// Parses the command line and does it.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            match error.kind() {
                // clap's own message lists every subcommand, hidden ones too.
                clap::error::ErrorKind::MissingSubcommand => eprint!("{}", Cli::command().render_help()),
                _ => drop(error.print()),
            }
            return match error.kind() {
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    let done = match cli.command {
        // Techniques enter namespaces, which a process with a second thread may not.
        Command::Attempt { order } => coverage::attempt(&order),
        _ => crate::stack::deep(move || command(&cli)).unwrap_or_else(|error| Err(error.into())),
    };
    done.unwrap_or_else(|error| output::failure(&error))
}

/// Does what was asked.
fn command(cli: &Cli) -> anyhow::Result<ExitCode> {
    let directory = cli.config_dir.as_path();
    match &cli.command {
        Command::Run(args) => run::run(directory, args),
        Command::Check(args) => check::run(directory, args),
        Command::Reload(args) => reload::run(directory, args),
        Command::Doctor(args) => doctor::run(directory, args),
        Command::Status(args) => status::run(directory, args),
        Command::Simulate(args) => simulate::run(directory, args),
        Command::Tail(args) => tail::tail(args, &output::log(directory)),
        Command::Verify(args) => verify::verify(args, &output::log(directory)),
        Command::Replay(args) => replay::replay(args, &output::log(directory)),
        Command::Whatif(args) => whatif::whatif(args, directory, &output::log(directory)),
        Command::Prove(args) => prove::prove(args, &output::log(directory)),
        Command::Explain(args) => explain::explain(args, &output::log(directory)),
        Command::Report(args) => report::report(args, &output::log(directory)),
        Command::Signal(args) => signal::run(directory, args),
        Command::Grant(args) => grant::run(directory, args),
        Command::Escalation(args) => escalation::run(directory, args),
        Command::Account(args) => account::run(directory, args),
        Command::BreakGlass(args) => break_glass::run(directory, args),
        Command::Why(args) => why::run(directory, args),
        Command::Top(args) => top::run(directory, args),
        Command::Init(args) => init::run(directory, args),
        Command::Completions(args) => packaging::completions(args),
        Command::Man(args) => packaging::man(args),
        Command::Uninstall(args) => uninstall::run(directory, args),
        Command::Attempt { order } => coverage::attempt(order),
        Command::CoverageInstance => coverage::instance(directory),
        Command::SelfTestProbe { cgroup } => {
            let configured = || output::agent(directory).paths.cgroup;
            let cgroup = cgroup.as_ref().map(|path| path.display().to_string()).or_else(configured);
            let probed = engine::self_test_probe(cgroup.as_deref());
            println!("{}", probed.detail);
            Ok(ExitCode::from(probed.code))
        }
    }
}
