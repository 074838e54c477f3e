//! `writ account`: what each account may do now, and its end: list, show, offboard, reinstate, draft-policy.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::{Cell, Color};
use serde_json::Value;

use super::{draft, output};
use crate::api::ReasonBody;
use crate::client::segment;
use crate::engine::AccountStatus;

/// What `account` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the accounts and their stances
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one account: stance, risk and why, signals, grants, baseline, what ends next
    Show {
        /// The account
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End all access of an account, in every mode, until it is reinstated
    Offboard(ReasonArgs),
    /// Undo an offboarding
    Reinstate(ReasonArgs),
    /// Draft a least-privilege policy from what the account was recorded doing; needs no daemon
    DraftPolicy(draft::DraftArgs),
}

#[derive(Debug, clap::Args)]
struct ReasonArgs {
    /// The account
    name: String,
    /// Why
    #[arg(long, value_parser = output::reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::List { json } => list(config_dir, *json)?,
        Command::Show { name, json } => {
            let path = format!("/v1/accounts/{}", segment(name));
            let shown: Value = output::converse(config_dir, async |client| client.get(&path).await)?;
            if output::is_json(*json) {
                output::json(&shown)?;
            } else {
                show(&output::shown(&shown)?);
            }
        }
        Command::Offboard(asked) => change(config_dir, asked, "offboard", "offboarded: every connect is refused")?,
        Command::Reinstate(asked) => change(config_dir, asked, "reinstate", "reinstated: its policies hold again")?,
        Command::DraftPolicy(asked) => draft::draft(asked, config_dir, &output::log(config_dir))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn change(config_dir: &Path, asked: &ReasonArgs, word: &str, said: &str) -> anyhow::Result<()> {
    let path = format!("/v1/accounts/{}/{word}", segment(&asked.name));
    let body = ReasonBody { reason: asked.reason.clone() };
    let done: Value = output::converse(config_dir, async |client| client.post(&path, &body).await)?;
    if output::is_json(asked.json) {
        return output::json(&done);
    }
    println!("{} {said}", asked.name);
    Ok(())
}

fn list(config_dir: &Path, json: bool) -> anyhow::Result<()> {
    let accounts: Vec<AccountStatus> = output::converse(config_dir, async |client| client.get("/v1/accounts").await)?;
    if output::is_json(json) {
        return output::json(&accounts);
    }
    if accounts.is_empty() {
        println!("no service accounts are declared");
    } else {
        println!("{}", table(&output::shown(&accounts)?));
    }
    Ok(())
}

/// The accounts as `list` and `top` show them.
pub(super) fn table(accounts: &[AccountStatus]) -> comfy_table::Table {
    let mut table = output::table(&["account", "owner", "mode", "risk", "signals", "grants", "changes next", "note"]);
    for account in accounts {
        let mut notes: Vec<String> = Vec::new();
        if account.offboarded {
            notes.push("offboarded".to_owned());
        }
        if !account.unmatched.is_empty() {
            notes.push(format!("unmatched: {}", account.unmatched.join(", ")));
        }
        table.add_row([
            Cell::new(&account.name),
            Cell::new(account.owner.as_deref().unwrap_or_default()),
            output::mode_cell(account.mode),
            Cell::new(account.risk),
            Cell::new(account.signals.join(" ")),
            Cell::new(account.grants.join("\n")),
            Cell::new(account.valid_until.map_or_else(String::new, output::ahead)),
            if account.offboarded { output::cell(notes.join(", "), Color::Red) } else { Cell::new(notes.join(", ")) },
        ]);
    }
    table
}

fn show(account: &Value) {
    let text = |pointer: &str| match account.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let list = |pointer: &str| account.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let member = |value: &Value, name: &str| match value.get(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let plain = |pointer: &str| {
        let words: Vec<String> =
            list(pointer).iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)).collect();
        if words.is_empty() { "-".to_owned() } else { words.join(" ") }
    };
    println!("{}  owner {}  mode {}", text("/name"), text("/owner"), text("/mode"));
    println!("stance       {}  epoch {}", text("/stance_digest"), text("/epoch"));
    println!("changes next {}", text("/valid_until"));
    println!("offboarded   {}", text("/offboarded"));
    println!("policies     {}", plain("/policies"));
    println!("executables  {}", plain("/executables"));
    println!("risk         {}", text("/risk"));
    for part in list("/risk_explained/contributions") {
        println!("  {:>3}  {}  {}", member(&part, "risk"), member(&part, "kind"), member(&part, "signal"));
    }
    for grant in list("/live_grants") {
        println!(
            "grant        {} → {} until {}",
            member(&grant, "id"),
            member(&grant, "destination"),
            member(&grant, "expires")
        );
    }
    for approval in list("/approvals") {
        println!(
            "approval     {} → {}:{} until {}",
            member(&approval, "id"),
            member(&approval, "address"),
            member(&approval, "port"),
            member(&approval, "expires")
        );
    }
    println!("seen         {}", plain("/destinations_seen"));
}
