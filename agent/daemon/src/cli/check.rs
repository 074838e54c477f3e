//! `writ check`: everything that is wrong with a configuration, at once, without privileges.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::policy::Bundle;

use super::output;
use crate::configuration::render::plural;
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
    let loaded = configuration::load_with(config_dir, args.policies.as_deref());
    let mut findings: Vec<Diagnostic> = loaded.diagnostics.clone();
    findings.extend(loaded.config.iter().flat_map(|config| Bundle::compile(config).1));
    let refused = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let (mut out, mut printed) = (std::io::stdout().lock(), Ok(()));
    if args.json {
        printed = writeln!(out, "{}", render::to_json(&findings));
    } else {
        eprint!("{}", render::render(&findings, &loaded.sources, output::colours()));
        match (refused, &loaded.config) {
            (0, Some(config)) => {
                printed = writeln!(
                    out,
                    "ok: {}, {}, {}, {}",
                    plural(config.accounts.len(), "service account"),
                    plural(config.destinations.len(), "destination"),
                    plural(config.policies.len(), "policy file"),
                    plural(findings.len(), "warning")
                );
            }
            // How many there are stands above it.
            _ => eprintln!("refused: no daemon takes this up; one that had a valid configuration goes on with that"),
        }
    }
    output::found(refused == 0 && loaded.config.is_some(), printed.map_err(anyhow::Error::from))
}
