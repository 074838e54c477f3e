//! `writ status`: what is in force, for people and for fleet tools.

use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;
use comfy_table::Cell;
use writ_core::config::Mode;
use writ_core::printable::printable;

use super::output;
use crate::client::ClientError;
use crate::engine::Status;
use crate::process::file_at;

/// What `status` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The daemon is not running.
const NOT_RUNNING: u8 = 3;
/// The daemon has not put a policy in force yet.
const STARTING: u8 = 4;

/// Shows the status; exit code 3 if nothing runs, 4 while it starts.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let asked = output::converse(config_dir, async |client| client.get::<Status>("/v1/status").await);
    let status = match asked {
        Ok(status) => status,
        Err(error) => {
            let code = match error.downcast_ref::<ClientError>() {
                Some(ClientError::Unreachable { .. }) if log_is_written(&output::log(config_dir)) => STARTING,
                Some(ClientError::Unreachable { .. }) => NOT_RUNNING,
                Some(ClientError::Refused { status: 503, .. }) => STARTING,
                _ => return Err(error),
            };
            let state = if code == NOT_RUNNING { "not-running" } else { "starting" };
            if output::is_json(args.json) {
                output::json(&serde_json::json!({ "state": state }))?;
            } else {
                eprintln!("{state}: {}", printable(&format!("{error:#}")));
            }
            return Ok(ExitCode::from(code));
        }
    };
    if output::is_json(args.json) {
        output::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&output::shown(&status)?);
    Ok(ExitCode::SUCCESS)
}

/// Whether a daemon holds the log though nobody listens yet: it is on its way. The lock is only looked at: who took it, even
/// for a moment, could keep the daemon from starting.
pub(super) fn log_is_written(log: &Path) -> bool {
    let Some((device, inode)) = file_at(log.join("lock")) else { return false };
    let device = (device >> 20, device & 0xf_ffff);
    let held = |lock: &procfs::Lock| lock.inode == inode && (lock.devmaj, lock.devmin) == device;
    procfs::locks().is_ok_and(|locks| locks.iter().any(held))
}

fn show(status: &Status) {
    let mode = |mode: Mode| match mode {
        Mode::Enforce => output::painted("enforce", AnsiColor::Green),
        Mode::Observe => output::painted("observe", AnsiColor::Yellow),
    };
    println!("writ {}  {}  generation {}", status.version, mode(status.effective_mode), status.generation);
    if status.mode != status.effective_mode {
        println!("{}", output::painted("the mode in force is not the one configured", AnsiColor::Red));
    }
    for reason in &status.degraded {
        println!("{} {reason}", output::painted("degraded:", AnsiColor::Red));
    }
    for account in &status.undeclared {
        println!("{} {account}: its processes are not judged any more", output::painted("undeclared:", AnsiColor::Red));
    }
    if let Some(test) = &status.self_test {
        let result = if test.passed {
            output::painted("passed", AnsiColor::Green)
        } else {
            output::painted("FAILED", AnsiColor::Red)
        };
        println!("self-test {result} {}: {}", output::ago(test.at), test.detail);
    }
    if let Some(detached) = &status.detachment {
        let state = if detached.failed.is_empty() { "attached again" } else { "NOT ATTACHED" };
        let programs = detached.programs.join(" ");
        println!("{} {programs} {}: {state}", output::painted("detached: ", AnsiColor::Red), output::ago(detached.at));
    }
    println!("bundle    {}", status.bundle.as_deref().unwrap_or("unknown"));
    println!("policies  {}", status.policy_digest);
    println!("sessions  {}", status.sessions);
    println!("cgroup    {}{}", status.cgroup, if status.partial { "  (part of the host)" } else { "" });
    println!("coverage  {}", status.coverage.join(" "));
    let records = status.records;
    println!(
        "attempts  {} seen, {} recorded, {} lost, {} in flight",
        records.seen, records.recorded, records.lost, records.in_flight
    );
    println!("log       {} records, {} signed", status.checkpoint.size, status.checkpoint.signed.unwrap_or(0));
    for program in status.surroundings.foreign_programs.iter().flatten() {
        let word = output::painted("foreign program:", AnsiColor::Yellow);
        println!("{word} {} `{}` on {} of cgroup `{}`", program.id, program.name, program.hook, program.cgroup);
    }
    for holder in &status.surroundings.not_containable {
        let word = output::painted("not containable:", AnsiColor::Red);
        let pid = holder.pid.map_or_else(String::new, |pid| format!(" {pid}"));
        let held = holder.capabilities.join(", ");
        println!("{word} account {}: {}{pid} `{}` holds {held}", holder.account, holder.holder, holder.name);
    }
    for sink in status.sinks.iter().filter(|sink| sink.kind != "log") {
        println!(
            "sink      {} ({}): {} sent, {} waiting, {} lost",
            sink.name, sink.kind, sink.delivered, sink.waiting, sink.lost
        );
    }
    for sink in status.sinks.iter().filter(|sink| !sink.ok) {
        println!(
            "{} {}: {}",
            output::painted("failing:", AnsiColor::Red),
            sink.name,
            sink.error.as_deref().unwrap_or("unknown")
        );
    }
    if status.accounts.is_empty() {
        println!("\nno service accounts are declared");
        return;
    }
    let mut table = output::table(&["account", "mode", "risk", "signals", "grants", "changes next", "note"]);
    for account in &status.accounts {
        let note = if account.offboarded {
            "offboarded".to_owned()
        } else if account.unmatched.is_empty() {
            String::new()
        } else {
            format!("unmatched: {}", account.unmatched.join(", "))
        };
        table.add_row([
            Cell::new(&account.name),
            output::mode_cell(account.mode),
            Cell::new(account.risk),
            Cell::new(account.signals.join(" ")),
            Cell::new(account.grants.join("\n")),
            Cell::new(account.valid_until.map_or_else(String::new, |until| until.strftime("%F %T").to_string())),
            Cell::new(note),
        ]);
    }
    println!("\n{table}");
}
