//! `writ check`: everything that is wrong with a configuration, at once, without privileges.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::Bundle;
use writ_core::table::Identities;

use super::output;
use crate::configuration::{self, render};

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check these policies instead of `policies.d`
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Print findings as JSON
    #[arg(long)]
    json: bool,
}

/// Validates; exit code 1 with findings.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let mut loaded = configuration::load(config_dir);
    let mut findings: Vec<Diagnostic> = loaded.diagnostics.clone();
    if let Some(config) = &mut loaded.config {
        if let Some(directory) = &args.policies {
            let read = configuration::read::read_policies(directory);
            findings.extend(read.diagnostics);
            config.policies.clone_from(&read.sources);
            loaded.sources.extend(read.sources);
        }
        let (_, found) = Bundle::compile(config);
        findings.extend(found);
        findings.extend(Identities::check(config));
    }
    let refused = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if args.json {
        println!("{}", render::to_json(&findings));
    } else {
        eprint!("{}", render::render(&findings, &loaded.sources, output::colours()));
        let warnings = findings.len() - refused;
        match (refused, &loaded.config) {
            (0, Some(config)) => println!(
                "ok: {} service accounts, {} destinations, {} policy files, {warnings} warnings",
                config.accounts.len(),
                config.destinations.len(),
                config.policies.len()
            ),
            _ => eprintln!("refused: {refused} errors, {warnings} warnings"),
        }
    }
    Ok(if refused == 0 && loaded.config.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
