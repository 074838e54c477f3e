//! What the configuration refers to on this host: resolvers, time zones, users.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use nix::unistd::User;
use writ_core::config::{Config, HostFacts, SourceFile};
use writ_core::diagnostic::Diagnostic;

/// The stub that programs ask, and the servers that systemd-resolved asks in turn.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What this host says about resolvers, and about time zones where a configuration names one: to list them is to open every file
/// of the zone database, for each command that only wants to know where the socket is.
pub(crate) fn host_facts(sources: &[SourceFile]) -> HostFacts {
    // A file that is not there names no resolver; `check` says so where an account cannot reach any.
    let resolvers: BTreeSet<IpAddr> =
        RESOLVER_FILES.iter().filter_map(|path| fs::read(path).ok()).flat_map(|text| resolvers(&text)).collect();
    let zones = sources.iter().any(|source| source.text.contains("time-zone")).then(time_zones);
    HostFacts { resolvers: resolvers.into_iter().collect(), time_zones: zones.filter(|zones| !zones.is_empty()) }
}

/// Names of the time zones that this host knows.
fn time_zones() -> BTreeSet<String> {
    jiff::tz::db().available().map(|zone| zone.to_string()).collect()
}

/// The `nameserver` lines of resolv.conf(5).
fn resolvers(text: &[u8]) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local server is written with its zone; it is judged without it.
        address.split('%').next()?.parse().ok()
    };
    String::from_utf8_lossy(text).lines().filter_map(address).collect()
}

/// Users that accounts are matched by and that do not exist (yet).
pub(super) fn unknown_users(config: &Config) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for account in config.accounts.values() {
        for user in account.matches.iter().filter_map(|found| found.user.as_deref()) {
            let is_uid = user.bytes().all(|byte| byte.is_ascii_digit());
            // A lookup that fails says nothing about the user.
            if !is_uid && matches!(User::from_name(user), Ok(None)) {
                let message = format!("service account `{}`: no user `{user}` exists on this host", account.name);
                let help = "the account is `unmatched` until the user appears: create it, or correct `match`";
                findings.push(Diagnostic::warning("unknown-user", message).help(help).at(account.at.clone()));
            }
        }
    }
    findings
}

/// Executables that accounts are matched by and that are scripts: no process ever runs those.
pub(super) fn scripts(config: &Config) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for account in config.accounts.values() {
        for path in account.matches.iter().filter_map(|found| found.executable.as_deref()) {
            if is_script(Path::new(path)) {
                let message = format!(
                    "service account `{}`: `{path}` is a script, which the kernel runs its interpreter for",
                    account.name
                );
                let help = "no process is matched by it: match by `user` or `unit`, or by a program that is compiled";
                findings.push(Diagnostic::warning("script-executable", message).help(help).at(account.at.clone()));
            }
        }
    }
    findings
}

/// Whether a file is run by an interpreter that its first line names.
pub(crate) fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    // Nothing but a regular file is opened: opening a pipe would wait for somebody.
    let regular = fs::metadata(path).is_ok_and(|found| found.is_file());
    regular && fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_zones_are_listed_where_one_is_named() {
        let facts = |text: &str| host_facts(&[SourceFile { name: "writ.toml".into(), text: text.into() }]);
        let named = facts("time-zone = \"Europe/Berlin\"\n").time_zones;
        assert_eq!(named.map(|zones| zones.contains("Europe/Berlin")), Some(true));
        assert_eq!(facts("mode = \"enforce\"\n").time_zones, None);
    }

    #[test]
    fn name_servers_are_read_as_the_resolver_reads_them() {
        let text = b"# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch example\nnameserver 127.0.0.53\n\
            nameserver\tfe80::1%eth0 \nnameserver\nnameserver not-an-address\nnameservers 192.0.2.3\n\xff\n\
            nameserver 192.0.2.4 # trailing";
        let expected: Vec<IpAddr> =
            ["127.0.0.53", "fe80::1", "192.0.2.4"].map(|address| address.parse().unwrap()).to_vec();
        assert_eq!(resolvers(text), expected);
    }
}
