//! `writ doctor --coverage`: every known way out, tried against a throw-away account on a stage that leads nowhere.

use std::path::Path;
use std::process::ExitCode;

use anstyle::AnsiColor;
use nix::unistd::Uid;
use writ_techniques::{CATALOGUE, Order, Technique};

use super::{NOT_PERMITTED, USAGE, output, run as daemon};
use crate::coverage::{Outcome, Row, Stage, StageError, Who, judge};

/// As a shell reports a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Tries and reports; exit code 1 if less is stopped than the catalogue claims for this kernel.
pub(super) fn run(json: bool, chosen: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(unknown) = chosen.iter().find(|id| writ_techniques::find(id).is_none()) {
        eprintln!(
            "error: there is no technique `{unknown}`; `writ doctor --coverage` without --technique names them all"
        );
        return Ok(ExitCode::from(USAGE));
    }
    if !Uid::effective().is_root() {
        eprintln!("error: `writ doctor --coverage` needs root: it runs a confined writ and a throw-away account");
        return Ok(ExitCode::from(NOT_PERMITTED));
    }
    let json = output::is_json(json);
    let kernel =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let techniques: Vec<&'static Technique> =
        CATALOGUE.iter().filter(|technique| chosen.is_empty() || chosen.iter().any(|id| id == technique.id)).collect();
    let rows = match try_all(&techniques, &kernel, json) {
        Ok(rows) => rows,
        Err(StageError::Interrupted) => {
            eprintln!("error: {}", StageError::Interrupted);
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error.into()),
    };
    let weaker = rows.iter().filter(|row| row.weaker).count();
    if json {
        output::json(&rows)?;
    } else {
        let of = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
        println!(
            "\nLinux {kernel}: {} covered, {} refused, {} residual, {} untested; {weaker} weaker than claimed",
            of(Outcome::Covered),
            of(Outcome::Refused),
            of(Outcome::Residual),
            of(Outcome::Untested)
        );
    }
    Ok(if weaker > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn try_all(techniques: &[&'static Technique], kernel: &str, json: bool) -> Result<Vec<Row>, StageError> {
    let mut stage = Stage::set()?;
    let mut rows = Vec::new();
    for technique in techniques {
        let (control, account) = if technique.is_tried() {
            (stage.attempt(technique, Who::Control)?, stage.attempt(technique, Who::Account)?)
        } else {
            Default::default()
        };
        let row = judge(technique, stage.has_lsm(), kernel, &control, &account);
        if !json {
            show(&row);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn show(row: &Row) {
    let colour = match (row.weaker, row.outcome) {
        (true, _) => AnsiColor::Red,
        (false, Outcome::Covered | Outcome::Refused) => AnsiColor::Green,
        (false, _) => AnsiColor::Yellow,
    };
    let outcome = output::painted(&format!("{:<8}", row.outcome.name()), colour);
    println!("{:<24} {outcome}  {} [{}]", row.technique, row.title, row.hook);
    if !row.detail.is_empty() {
        println!("{:<24} {:<8}  {}", "", "", row.detail);
    }
    if !row.remedy.is_empty() {
        println!("{:<24} {:<8}  add: {}", "", "", row.remedy);
    }
}

/// Tries as ordered, and prints what came of it.
pub(super) fn attempt(order: &str) -> anyhow::Result<ExitCode> {
    let order = match Order::from_json(order) {
        Ok(order) => order,
        Err(why) => {
            eprintln!("error: the order cannot be read: {why}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    writ_techniques::die_with_parent()?;
    output::json(&order.carry_out())?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the daemon for as long as whoever started it is there.
pub(super) fn instance(config_dir: &Path) -> anyhow::Result<ExitCode> {
    writ_techniques::die_with_parent()?;
    daemon::run(config_dir, &daemon::Args::default())
}
