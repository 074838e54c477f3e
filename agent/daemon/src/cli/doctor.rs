//! `writ doctor`: what this kernel gives, what is asked for, what is in force, and whether a forbidden connect is refused.

use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;
use serde::Serialize;
use writ_core::config::Mode;
use writ_core::printable::printable;

use super::output;
use crate::client::ClientError;
use crate::configuration;
use crate::engine::{SelfTest, Status};
use crate::kernel::{CgroupMount, ForeignProgram, features};
use crate::surroundings::{Surroundings, Vantage};

/// The second line's name, as `[kernel] require` and coverage have it.
const LSM: &str = "lsm";

/// What `doctor` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Try every known way out against a throw-away account, and say which are covered (root; leaves nothing behind)
    #[arg(long)]
    coverage: bool,
    /// With --coverage: only these techniques
    #[arg(long, value_name = "ID", requires = "coverage")]
    technique: Vec<String>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    name: String,
    /// `ok`, `partial`, `missing`, `unknown`
    state: &'static str,
    detail: String,
    /// Whether this makes the host weaker than configured.
    weaker: bool,
}

impl Finding {
    fn new(name: &str, state: &'static str, detail: impl Into<String>, weaker: bool) -> Self {
        Self { name: name.into(), state, detail: detail.into(), weaker }
    }
}

/// Examines; exit code 1 if the host is weaker than configured.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    if args.coverage {
        return super::coverage::run(args.json, &args.technique);
    }
    let agent = output::agent(config_dir);
    let mut findings = Vec::new();
    for feature in features() {
        let state = match feature.present {
            Some(true) => "ok",
            Some(false) => "missing",
            None => "unknown",
        };
        let required = agent.kernel.require.iter().any(|wanted| wanted == feature.name);
        findings.push(Finding::new(feature.name, state, feature.detail, required && feature.present != Some(true)));
    }
    findings.push(match CgroupMount::find(agent.paths.cgroup.as_deref()) {
        Ok(mount) if mount.partial() => Finding::new(
            "attachment",
            "partial",
            format!("{}: only processes below it are judged", mount.attached.display()),
            false,
        ),
        Ok(mount) => Finding::new("attachment", "ok", format!("{}: the whole host", mount.attached.display()), false),
        Err(error) => Finding::new("attachment", "missing", error.to_string(), true),
    });
    let asked = output::converse(config_dir, async |client| {
        // A live one: a process that must be refused tries to connect.
        client.post::<SelfTest>("/v1/self-test", &serde_json::json!({})).await?;
        client.get::<Status>("/v1/status").await
    });
    match asked {
        Ok(status) => {
            // What the daemon found by trying is worth more than what the kernel says of itself.
            findings.retain(|finding| finding.name != LSM);
            let why = status.missing.get(LSM);
            let required = agent.kernel.require.iter().any(|wanted| wanted == LSM);
            findings.push(match why {
                None => {
                    Finding::new(LSM, "ok", "families that are not IP are judged; attached, and seen to act", false)
                }
                Some(why) => {
                    Finding::new(LSM, "missing", format!("families that are not IP are not judged: {why}"), required)
                }
            });
            findings.extend(of_daemon(&status));
            findings.extend(of_surroundings(&status.surroundings));
        }
        // It runs, and is not for everybody to ask.
        Err(error) if matches!(error.downcast_ref(), Some(ClientError::Refused { status: 403, .. })) => {
            return Err(error);
        }
        Err(error) => {
            if let Some(vantage) = vantage(config_dir, &agent) {
                findings.extend(of_surroundings(&vantage.look()));
            }
            let detail = match error.downcast_ref::<ClientError>() {
                Some(ClientError::Unreachable { .. }) => "not running; enforcement that is pinned holds".to_owned(),
                Some(ClientError::Silent { .. }) => "running and silent; enforcement that is pinned holds".to_owned(),
                _ => format!("{error:#}"),
            };
            findings.push(Finding::new("daemon", "missing", detail, true));
        }
    }
    let weaker = findings.iter().any(|finding| finding.weaker);
    if output::is_json(args.json) {
        output::json(&serde_json::json!({ "weaker_than_configured": weaker, "findings": findings }))?;
    } else {
        for finding in &findings {
            let colour = match (finding.weaker, finding.state) {
                (true, _) => AnsiColor::Red,
                (false, "ok") => AnsiColor::Green,
                _ => AnsiColor::Yellow,
            };
            println!(
                "{:<18} {}  {}",
                finding.name,
                output::painted(&format!("{:<8}", finding.state), colour),
                printable(&finding.detail)
            );
        }
        println!(
            "\n{}",
            if weaker { "this host is weaker than configured" } else { "this host gives what is configured" }
        );
    }
    Ok(if weaker { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where a host without a daemon is looked at from: its configuration, if that is whole.
fn vantage(config_dir: &Path, agent: &writ_core::config::Agent) -> Option<Vantage> {
    Some(Vantage {
        accounts: configuration::load(config_dir).config?.accounts,
        mount: CgroupMount::find(agent.paths.cgroup.as_deref()).ok()?,
        pins: agent.paths.pins.clone().into(),
    })
}

fn of_surroundings(seen: &Surroundings) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &seen.foreign_programs {
        None => findings.push(Finding::new(
            "foreign-programs",
            "unknown",
            "who else is on the hooks could not be asked (as root it can)",
            false,
        )),
        Some(programs) if programs.is_empty() => {
            findings.push(Finding::new("foreign-programs", "ok", "nobody else is on the hooks", false));
        }
        Some(programs) => {
            let told = |program: &ForeignProgram| {
                let ForeignProgram { hook, cgroup, id, name } = program;
                let detail =
                    format!("program {id} `{name}` is on {hook} of cgroup `{cgroup}`: it may rewrite what writ judged");
                Finding::new("foreign-programs", "partial", detail, false)
            };
            findings.extend(programs.iter().map(told));
        }
    }
    for holder in &seen.not_containable {
        let pid = holder.pid.map_or_else(String::new, |pid| format!(" {pid}"));
        let detail = format!(
            "service account `{}`: {}{pid} `{}` holds {}, by which enforcement can be removed or altered",
            holder.account,
            holder.holder,
            holder.name,
            holder.capabilities.join(", ")
        );
        findings.push(Finding::new("not-containable", "partial", detail, false));
    }
    findings
}

fn of_daemon(status: &Status) -> Vec<Finding> {
    let mode = |mode: Mode| match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let mut findings = vec![
        Finding::new("daemon", "ok", format!("version {}, generation {}", status.version, status.generation), false),
        Finding::new(
            "mode",
            if status.not_enforced.is_empty() { "ok" } else { "partial" },
            match status.not_enforced.as_slice() {
                [] => format!("configured {}, in force {}", mode(status.mode), mode(status.effective_mode)),
                broken => format!("configured {}, not enforced: {}", mode(status.mode), broken.join(", ")),
            },
            !status.not_enforced.is_empty(),
        ),
    ];
    for reason in &status.degraded {
        findings.push(Finding::new("degraded", "partial", reason.clone(), true));
    }
    for account in status.accounts.iter().filter(|account| !account.unmatched.is_empty()) {
        let detail =
            format!("service account `{}`: nothing on this host is {}", account.name, account.unmatched.join(", "));
        findings.push(Finding::new("unmatched", "partial", detail, false));
    }
    for sink in status.sinks.iter().filter(|sink| !sink.ok) {
        findings.push(Finding::new(
            "sink",
            "missing",
            format!("{}: {}", sink.name, sink.error.as_deref().unwrap_or("")),
            true,
        ));
    }
    if let Some(test) = &status.self_test {
        let state = if test.passed { "ok" } else { "missing" };
        findings.push(Finding::new("self-test", state, test.detail.clone(), !test.passed));
    }
    findings
}
