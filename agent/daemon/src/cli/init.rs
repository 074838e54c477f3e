//! `writ init`: a first configuration in observe mode from what this host does now; nothing that exists is overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use writ_core::printable::is_hidden;

use super::output;
use crate::process::{Owner, Service, services};

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Drafts into the configuration directory.
pub(super) fn run(config_dir: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let found = services();
    let mut files: Vec<(String, String)> = vec![("writ.toml".to_owned(), AGENT.to_owned())];
    for (name, service) in named(&found) {
        files.push((format!("service-accounts.d/{name}.toml"), account(&name, service)));
        if !service.peers.is_empty() {
            files.push((format!("policies.d/{name}.cedar"), policy(&name, service)));
        }
    }
    let (mut written, mut kept) = (Vec::new(), Vec::new());
    for directory in ["service-accounts.d", "destinations.d", "policies.d", "signals.d", "schema.d"] {
        let path = config_dir.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
    }
    // An account that is configured already is somebody's work: neither it nor its policies are added to.
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (file, text) in &files {
        let path = config_dir.join(file);
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if known.contains(&stem) {
            kept.push(file.clone());
            continue;
        }
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut opened) => {
                opened.write_all(text.as_bytes()).with_context(|| format!("cannot write `{}`", path.display()))?;
                written.push(file.clone());
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                kept.push(file.clone());
                if file.starts_with("service-accounts.d/") {
                    known.insert(stem);
                }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write `{}`", path.display())),
        }
    }
    if output::is_json(args.json) {
        output::json(&json!({ "written": written, "kept": kept, "accounts": found.len() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for file in &written {
        println!("wrote {}", config_dir.join(file).display());
    }
    for file in &kept {
        println!("kept  {}, which was there", config_dir.join(file).display());
    }
    println!(
        "\n{} services found. Next: `writ check`, then start writ; nothing is refused in observe mode.",
        found.len()
    );
    Ok(ExitCode::SUCCESS)
}

const AGENT: &str = "\
# Drafted by `writ init`. Observe: what would be refused is recorded, nothing is refused.
# When an account's report is clean, set `mode = \"enforce\"` in its own file.
mode = \"observe\"
";

/// Accounts by a name of their own: a unit and a user may be called alike.
fn named(found: &[Service]) -> BTreeMap<String, &Service> {
    let mut names: BTreeMap<String, &Service> = BTreeMap::new();
    for service in found {
        let plain = match &service.owner {
            Owner::Unit(unit) => unit.trim_end_matches(".service"),
            Owner::User(user) => user,
        };
        let plain: String = plain
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '-' })
            .collect();
        let mut name = plain.clone();
        let mut number = 2;
        while names.contains_key(&name) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        names.insert(name, service);
    }
    names
}

fn account(name: &str, service: &Service) -> String {
    let by = match &service.owner {
        Owner::Unit(unit) => format!("unit = {}", quoted(unit)),
        Owner::User(user) => format!("user = {}", quoted(user)),
    };
    let mut out = format!(
        "# Drafted by `writ init`: found with sockets open. Say who answers for it.\n[service-account.{}]\n",
        quoted(name)
    );
    let _ = writeln!(out, "owner = \"unassigned\"\nmatch = {{ {by} }}");
    let executables: Vec<String> = service.executables.iter().map(|path| quoted(path)).collect();
    let _ = writeln!(
        out,
        "# Seen: {}. Listed, anything else raises workload.unexpected-executable.",
        executables.join(", ")
    );
    let _ = writeln!(out, "# executables = [{}]", executables.join(", "));
    if !service.listens.is_empty() {
        let ports: Vec<String> = service.listens.iter().map(u16::to_string).collect();
        let _ = writeln!(out, "# Listens on: {}. Accepting needs no policy.", ports.join(", "));
    }
    out
}

fn policy(name: &str, service: &Service) -> String {
    let mut out = String::from(
        "// Drafted by `writ init` from connections that were open. Review, and say who owns each and why.\n",
    );
    for (number, (address, port, protocol)) in service.peers.iter().enumerate() {
        let _ = write!(
            out,
            "\n@id(\"init-{name}-{}\")\n@owner(\"unassigned\")\n@reason(\"found open by writ init; say why\")\npermit (\n  \
             principal == ServiceAccount::{},\n  action == Action::\"connect\",\n  resource\n) when {{\n  \
             context.ip.isInRange(ip(\"{address}\")) && context.port == {port} && context.protocol == \"{protocol}\"\n}};\n",
            number + 1,
            quoted(name)
        );
    }
    out
}

/// A basic string of TOML; of names, which are ASCII, a string of Cedar as well. Whoever runs a program chooses its path: a line
/// break in it would end the comment it stands in, and the rest be configuration.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '\\' | '"' => out.extend(['\\', letter]),
            _ if is_hidden(letter) => drop(write!(out, "\\U{:08X}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use writ_core::config::{SourceFile, parse};
    use writ_core::diagnostic::Severity;
    use writ_core::policy::Bundle;

    use super::*;
    use crate::configuration::host::host_facts;

    #[test]
    fn a_path_with_line_breaks_stays_within_its_comment() {
        let path = "/tmp/a\n[service-account.b]\r\u{2028}\"".to_owned();
        let service = Service {
            owner: Owner::User("root".into()),
            executables: BTreeSet::from([path.clone()]),
            listens: BTreeSet::new(),
            peers: BTreeSet::new(),
        };
        let text = account("a", &service);
        assert_eq!(text.lines().filter(|line| line.starts_with('[')).count(), 1, "{text}");
        let list = text.lines().find_map(|line| line.strip_prefix("# executables = ")).unwrap();
        let read: toml::Table = toml::from_str(&format!("list = {list}")).unwrap();
        assert_eq!(read["list"][0].as_str(), Some(path.as_str()));
    }

    #[test]
    fn a_draft_is_a_configuration_that_check_accepts() {
        let service = |owner| Service {
            owner,
            executables: BTreeSet::from(["/usr/sbin/nginx".to_owned()]),
            listens: BTreeSet::from([80, 443]),
            peers: BTreeSet::from([
                ("10.0.0.7".parse().unwrap(), 5432, "tcp"),
                ("fd00::1".parse().unwrap(), 53, "udp"),
            ]),
        };
        let found = vec![service(Owner::Unit("nginx@a.service".into())), service(Owner::User("nginx-a".into()))];
        let mut files = vec![SourceFile { name: "writ.toml".into(), text: AGENT.into() }];
        for (name, service) in named(&found) {
            files.push(SourceFile { name: format!("service-accounts.d/{name}.toml"), text: account(&name, service) });
            files.push(SourceFile { name: format!("policies.d/{name}.cedar"), text: policy(&name, service) });
        }
        let parsed = parse(&files, &host_facts(&files));
        let config = parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        assert_eq!(config.accounts.keys().collect::<Vec<_>>(), ["nginx-a", "nginx-a-2"]);
        let (bundle, findings) = Bundle::compile(&config);
        assert!(bundle.is_some() && findings.iter().all(|finding| finding.severity != Severity::Error), "{findings:?}");
    }
}
