//! What the configuration refers to on this host: resolvers, time zones, users.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use nix::unistd::User;
use writ_core::config::{Config, HostFacts};
use writ_core::diagnostic::Diagnostic;

/// The stub that programs ask, and the servers that systemd-resolved asks in turn.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What this host says about resolvers and time zones.
pub(crate) fn host_facts() -> HostFacts {
    // A file that is not there names no resolver; `check` says so where an account cannot reach any.
    let resolvers: BTreeSet<IpAddr> =
        RESOLVER_FILES.iter().filter_map(|path| fs::read(path).ok()).flat_map(|text| resolvers(&text)).collect();
    let zones: BTreeSet<String> = jiff::tz::db().available().map(|zone| zone.to_string()).collect();
    HostFacts { resolvers: resolvers.into_iter().collect(), time_zones: Some(zones).filter(|zones| !zones.is_empty()) }
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

#[cfg(test)]
mod tests {
    use super::*;

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
