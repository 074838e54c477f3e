//! The people and users a configuration names, as this host knows them: who is not there, who is a service account, and who
//! can have uids that are nobody's.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{Group, Uid, User};
use writ_abi::LEAST_SUBORDINATE;
use writ_core::config::{Config, SourceFile};
use writ_core::diagnostic::{Diagnostic, Location};
use writ_core::table::Subordinates;

/// Ranges of uids that users may map in user namespaces of their own: subuid(5).
pub(crate) const SUBUID: &str = "/etc/subuid";

/// What the host's user database says. A lookup that fails says nothing.
struct Database<'a> {
    user: &'a dyn Fn(&str) -> Option<Option<u32>>,
    /// The members of a group, by name.
    group: &'a dyn Fn(&str) -> Option<Option<Vec<String>>>,
}

/// What this host says about approvers, operators, and the users that accounts are matched by.
pub(super) fn people(config: &Config, sources: &[SourceFile]) -> Vec<Diagnostic> {
    let user = |name: &str| User::from_name(name).ok().map(|found| found.map(|user| user.uid.as_raw()));
    let group = |name: &str| Group::from_name(name).ok().map(|found| found.map(|group| group.mem));
    let database = Database { user: &user, group: &group };
    let mut findings = unknown(config, sources, &database);
    findings.extend(own_approvers(config, sources, &database));
    let names = |uid: u32| User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let text = fs::read(SUBUID).unwrap_or_default();
    findings.extend(subordinate_uids(config, &String::from_utf8_lossy(&text), &database, &names));
    findings
}

/// Where `writ.toml` names somebody first.
fn place(sources: &[SourceFile], person: &str) -> Option<Location> {
    let file = sources.iter().find(|source| source.name == "writ.toml")?;
    let quoted = [format!("\"{person}\""), format!("'{person}'")];
    let (at, length) = quoted.iter().find_map(|quoted| Some((file.text.find(quoted.as_str())?, quoted.len())))?;
    Some(Location::of(&file.name, &file.text, at, length))
}

fn placed(finding: Diagnostic, at: Option<Location>) -> Diagnostic {
    match at {
        Some(at) => finding.at(at),
        None => finding,
    }
}

fn unknown(config: &Config, sources: &[SourceFile], database: &Database<'_>) -> Vec<Diagnostic> {
    let lists = [("approvers", &config.agent.approvers), ("operators", &config.agent.operators)];
    let mut findings = Vec::new();
    for (key, people) in lists {
        for person in people {
            let (absent, kind) = match person.strip_prefix('%') {
                Some(group) => ((database.group)(group) == Some(None), "group"),
                None => (!is_uid(person) && (database.user)(person) == Some(None), "user"),
            };
            if absent {
                let name = person.trim_start_matches('%');
                let message = format!("`{key}`: no {kind} `{name}` exists on this host");
                let help = "it stands for nobody until it appears: create it, or correct the name";
                let finding = Diagnostic::warning("unknown-user", message).help(help);
                findings.push(placed(finding, place(sources, person)));
            }
        }
    }
    findings
}

fn is_uid(user: &str) -> bool {
    !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit())
}

impl Database<'_> {
    fn uid(&self, user: &str) -> Option<u32> {
        if is_uid(user) { user.parse().ok() } else { (self.user)(user).flatten() }
    }
}

/// Approvers whose user an account is matched by.
fn own_approvers(config: &Config, sources: &[SourceFile], database: &Database<'_>) -> Vec<Diagnostic> {
    let mut accounts: BTreeMap<u32, &str> = BTreeMap::new();
    for account in config.accounts.values() {
        let users = account.matches.iter().filter_map(|found| database.uid(found.user.as_deref()?));
        users.for_each(|uid| {
            accounts.entry(uid).or_insert(&account.name);
        });
    }
    let mut findings = Vec::new();
    for person in &config.agent.approvers {
        let members = match person.strip_prefix('%') {
            Some(group) => (database.group)(group).flatten().unwrap_or_default(),
            None => vec![person.clone()],
        };
        // Root is named with reason, and a match by it has a warning of its own.
        let uids = members.iter().filter_map(|member| database.uid(member)).filter(|uid| *uid != 0);
        for account in uids.filter_map(|uid| accounts.get(&uid)) {
            let message =
                format!("approver `{person}` is the user of service account `{account}`, or has it as a member");
            let help = "whatever runs as the account could approve for other accounts: name people as approvers";
            let finding = Diagnostic::warning("approver-is-account", message).help(help);
            findings.push(placed(finding, place(sources, person)));
        }
    }
    findings
}

/// Accounts found by nothing but a user who may also run as uids that the kernel does not look for: from 65,536 on it knows
/// whose they are.
fn subordinate_uids(
    config: &Config,
    text: &str,
    database: &Database<'_>,
    names: &dyn Fn(u32) -> Option<String>,
) -> Vec<Diagnostic> {
    // Without the file, or with nothing in it, nobody has such a range, and nobody needs to be looked up.
    if text.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for account in config.accounts.values() {
        // A cgroup holds whatever uid its processes take.
        let alone = account.matches.iter().filter(|found| found.unit.is_none() && found.cgroup.is_none());
        for user in alone.filter_map(|found| found.user.as_deref()) {
            let Some(uid) = database.uid(user) else { continue };
            let called = [Some(user.to_owned()), Some(uid.to_string()), names(uid)];
            let rows = Subordinates::read(text, &called.into_iter().flatten().map(|name| (name, uid)).collect());
            let Some(row) = rows.iter().find(|row| row.first < LEAST_SUBORDINATE) else { continue };
            let message = format!(
                "service account `{}`: user `{user}` has the uids {} to {} in {SUBUID}: its processes can run as them, and are then not the account",
                account.name, row.first, row.last
            );
            let help =
                "give it a range from 65536 on, or none (`usermod --del-subuids`), or match by `unit` or `cgroup` too";
            findings.push(Diagnostic::warning("subordinate-uids", message).help(help).at(account.at.clone()));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use writ_core::config::{HostFacts, parse};

    use super::*;

    const WRIT: &str =
        "approvers = [\"root\", \"alice\", \"%security\", \"%wheel\", \"svc\"]\noperators = [\"bob\", \"1001\"]\n";

    /// A configuration, with a service account for each user, of a host that knows root, alice, svc and the group security.
    fn asked<T>(matches: &[&str], ask: impl FnOnce(&Config, &[SourceFile], &Database<'_>) -> T) -> T {
        let accounts = matches.iter().enumerate();
        let accounts = accounts.map(|(index, found)| format!("[service-account.a{index}]\nmatch = {{ {found} }}\n"));
        let file = |name: &str, text: String| SourceFile { name: name.to_owned(), text };
        let files = [file("service-accounts.d/a.toml", accounts.collect()), file("writ.toml", WRIT.to_owned())];
        let config = parse(&files, &HostFacts::default()).config.unwrap();
        let user = |name: &str| match name {
            "root" => Some(Some(0)),
            "alice" => Some(Some(1000)),
            "svc" => Some(Some(1001)),
            "svc2" => Some(Some(1002)),
            _ => Some(None),
        };
        let group = |name: &str| Some((name == "security").then(|| vec!["alice".to_owned(), "svc2".to_owned()]));
        ask(&config, &files, &Database { user: &user, group: &group })
    }

    #[test]
    fn people_that_do_not_exist_are_named_with_their_place() {
        let found = asked(&[], unknown);
        let shown: Vec<(&str, usize, usize)> = found
            .iter()
            .map(|finding| finding.at.as_ref().map_or(("", 0, 0), |at| (finding.code, at.line, at.column)))
            .collect();
        assert_eq!(shown, [("unknown-user", 1, 44), ("unknown-user", 2, 14)]);
        assert!(found[0].message.contains("no group `wheel`"), "{found:?}");
        assert!(found[1].message.contains("no user `bob`"), "{found:?}");
    }

    #[test]
    fn an_approver_that_is_a_service_accounts_user_is_named() {
        let by = |matches: &[&str]| -> Vec<String> {
            asked(matches, own_approvers).into_iter().map(|finding| finding.message).collect()
        };
        assert_eq!(by(&["user = \"other\"", "user = \"root\""]), [""; 0]);
        for (found, person) in [("svc", "svc"), ("1001", "svc"), ("svc2", "%security"), ("1000", "alice")] {
            let message = format!("approver `{person}` is the user of service account `a0`, or has it as a member");
            assert!(by(&[&format!("user = \"{found}\"")]).contains(&message), "{found}");
        }
    }

    #[test]
    fn a_user_with_subordinate_uids_is_warned_of_where_it_is_all_an_account_is_found_by() {
        let names = |uid: u32| (uid == 1001).then(|| "svc".to_owned());
        let by = |matches: &[&str], text: &str| -> Vec<&'static str> {
            let found = asked(matches, |config, _, database| subordinate_uids(config, text, database, &names));
            found.into_iter().map(|finding| finding.code).collect()
        };
        let ranges = "# a comment\nother:1:2\n\nsvc:1000:65536\n";
        for found in ["user = \"svc\"", "user = \"1001\"", "user = \"svc\", executable = \"/bin/x\""] {
            assert_eq!(by(&[found], ranges), ["subordinate-uids"], "{found}");
            assert_eq!(by(&[found], "1001:1000:65536"), ["subordinate-uids"], "{found}");
        }
        for text in ["", "svc:1000:0", "svc:100000:65536", "svc", "svc:x:y", "other:1000:65536"] {
            assert_eq!(by(&["user = \"svc\""], text), [""; 0], "{text}");
        }
        assert_eq!(by(&["user = \"svc\", unit = \"x.service\"", "cgroup = \"/batch\""], ranges), [""; 0]);
    }
}
