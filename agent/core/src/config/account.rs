//! `[service-account.NAME]`: who it is, how its processes are found, and what it asks for.

use std::collections::BTreeMap;

use toml::de::DeValue;
use writ_abi::PathWalk;

use super::agent::MODES;
use super::draft::{Reference, References};
use super::errno::{EACCES, errno};
use super::fault::Fault;
use super::model::{Account, Attribute, Match, OnRecordLoss};
use super::section::Section;
use super::value::{file, kind, name, path, pattern, text};
use crate::diagnostic::Location;

const KEYS: [&str; 11] = [
    "owner",
    "team",
    "match",
    "executables",
    "requires-fresh",
    "on-record-loss",
    "errno",
    "mode",
    "learning",
    "revoke-grants-on",
    "attributes",
];

const MATCH_KEYS: [&str; 4] = ["user", "unit", "cgroup", "executable"];

/// Unit types whose units have processes.
const UNIT_TYPES: [&str; 6] = ["service", "socket", "slice", "scope", "mount", "swap"];

/// Unit types without processes: nothing would ever match.
const IDLE_UNIT_TYPES: [&str; 5] = ["target", "timer", "path", "device", "automount"];

/// Reads one account.
pub(super) fn read_account(
    mut section: Section<'_, '_>,
    own_name: String,
    at: Location,
    references: &mut References,
) -> Account {
    section.know(&KEYS);
    let losses = [("allow", OnRecordLoss::Allow), ("deny", OnRecordLoss::Deny)];
    Account {
        owner: section.parsed("owner", text),
        teams: plain(section.list("team", name)).unwrap_or_default(),
        matches: matches(&mut section, &own_name, &at, references),
        executables: plain(section.list("executables", file)).unwrap_or_default(),
        requires_fresh: requires_fresh(&mut section, &own_name, references),
        on_record_loss: section.choice("on-record-loss", &losses).unwrap_or_default(),
        errno: section.parsed("errno", errno).unwrap_or(EACCES),
        mode: section.choice("mode", &MODES),
        learning: section.duration("learning"),
        revoke_grants_on: plain(section.list("revoke-grants-on", pattern))
            .unwrap_or_else(|| vec!["workload.*".to_owned()]),
        attributes: attributes(&mut section, &own_name),
        name: own_name,
        at,
    }
}

fn plain<T, S>(list: Option<Vec<(T, S)>>) -> Option<Vec<T>> {
    Some(list?.into_iter().map(|(item, _)| item).collect())
}

fn requires_fresh(section: &mut Section<'_, '_>, account: &str, references: &mut References) -> Vec<String> {
    let mut kinds = Vec::new();
    for (kind, span) in section.list("requires-fresh", kind).unwrap_or_default() {
        references.fresh.push(Reference { from: account.to_owned(), to: kind.clone(), at: section.at(span) });
        kinds.push(kind);
    }
    kinds
}

/// `match = { … }`, or any of several tables.
fn matches(section: &mut Section<'_, '_>, account: &str, at: &Location, references: &mut References) -> Vec<Match> {
    let Some(value) = section.value("match") else {
        let fault =
            Fault::new("no-match", format!("service account `{account}` has no `match`: no process is ever it"));
        section.warn(at.offset..at.offset + at.length, fault.help("write e.g. match = { user = \"svc\" }"));
        return Vec::new();
    };
    let tables = match value.get_ref() {
        DeValue::Table(_) => std::slice::from_ref(value),
        DeValue::Array(array) => array.as_ref(),
        _ => return section.wrong_type("match", value, "a table or an array of tables").unwrap_or_default(),
    };
    if tables.is_empty() {
        section.refuse(value.span(), empty_match());
    }
    let mut matches = Vec::with_capacity(tables.len());
    for value in tables {
        let Some(table) = section.table_of("match", value) else { continue };
        let mut below = section.below(table, "`match`".to_owned());
        below.know(&MATCH_KEYS);
        if table.is_empty() {
            below.refuse(value.span(), empty_match());
            continue;
        }
        let found = Match {
            user: below.parsed("user", user),
            unit: below.parsed("unit", unit),
            cgroup: below.parsed("cgroup", cgroup),
            executable: below.parsed("executable", file),
        };
        // A key that could not be read leaves the table wider than it was meant: it is refused, not compared.
        if found.keys() != table.len() {
            continue;
        }
        if found.executable.is_some() && found.keys() == 1 {
            let message = format!("service account `{account}` is recognised by an executable alone");
            let help = "whoever starts it can make it do anything (LD_PRELOAD, ptrace): add `user`, `unit` or `cgroup`";
            below.warn(value.span(), Fault::new("executable-alone", message).help(help));
        }
        // Beside a unit, a cgroup or an executable it is those processes of root alone.
        if found.user.as_deref().is_some_and(|user| user == "root" || user == "0") && found.keys() == 1 {
            let message = format!(
                "service account `{account}` is every process of root: writ refuses them what it refuses service accounts, `reload` and `uninstall` too"
            );
            let help = "match by `unit` or `cgroup`, with `user` beside it if need be";
            below.warn(value.span(), Fault::new("matches-root", message).help(help));
        }
        references.matches.push((found.clone(), account.to_owned(), below.at(value.span())));
        matches.push(found);
    }
    matches
}

impl Match {
    /// The unit, unless the cgroup lies in the unit's own: whatever is in the one is in the other then, and the cgroup alone
    /// says the same.
    pub fn unit_besides_cgroup(&self) -> Option<&String> {
        let unit = self.unit.as_ref()?;
        let implied = self.cgroup.as_ref().is_some_and(|cgroup| {
            let ends = cgroup.match_indices('/').map(|(at, _)| at).chain([cgroup.len()]);
            let mut above =
                ends.filter_map(|end| cgroup.get(..end)).filter(|path| path.rsplit('/').next() == Some(unit));
            // Only below slices is a cgroup a system unit's.
            above.any(|path| PathWalk::over(path.as_bytes()).below_slices == 1)
        });
        (!implied).then_some(unit)
    }

    /// How many keys are set.
    pub(super) fn keys(&self) -> usize {
        [&self.user, &self.unit, &self.cgroup, &self.executable].into_iter().flatten().count()
    }
}

fn empty_match() -> Fault {
    Fault::new("empty-match", "`match` is empty: it would mean every process or none")
        .help("set at least one of `user`, `unit`, `cgroup`, `executable`")
}

/// A user name, or a uid in digits.
fn user(text: &str) -> Result<String, Fault> {
    let bad = |why: &str| Fault::new("bad-user", format!("`{text}` {why}"));
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The last uid is "no change" to setresuid(2) and "unknown" to everything else.
        return match text.parse::<u32>() {
            Ok(uid) if uid != u32::MAX => Ok(uid.to_string()),
            _ => Err(bad("is not a uid").help("uids are 0 to 4294967294")),
        };
    }
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | '%')) {
        return Err(bad("is not a user name").help("write a user name, or a uid in digits"));
    }
    Ok(text.to_owned())
}

/// A systemd unit that has processes.
fn unit(text: &str) -> Result<String, Fault> {
    let bad = |why: &str| Fault::new("bad-unit", format!("`{text}` {why}"));
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    if text.contains('*') {
        return Err(bad("has a `*`: units are matched whole").help("write each unit, or the `.slice` they share"));
    }
    if text.is_empty() || text.len() > 255 || !text.chars().all(allowed) {
        return Err(bad("is not a unit name"));
    }
    let (stem, suffix) = text.rsplit_once('.').unwrap_or((text, ""));
    if IDLE_UNIT_TYPES.contains(&suffix) {
        return Err(bad("is a unit without processes").help("name the `.service` it starts"));
    }
    if !UNIT_TYPES.contains(&suffix) {
        return Err(bad("has no unit suffix").help(format!("did you mean `{text}.service`?")));
    }
    if stem.is_empty() || stem.starts_with('@') {
        return Err(bad("is not a unit name"));
    }
    if let Some(template) = stem.strip_suffix('@') {
        return Err(bad("is a template, of which only instances run")
            .help(format!("write an instance, e.g. `{template}@1.{suffix}`, or the slice `system-{template}.slice`")));
    }
    Ok(text.to_owned())
}

/// A path below the cgroup2 mount.
fn cgroup(text: &str) -> Result<String, Fault> {
    if let Some(below) = text.strip_prefix("/sys/fs/cgroup").filter(|below| below.is_empty() || below.starts_with('/'))
    {
        let below = if below.is_empty() { "/" } else { below };
        return Err(Fault::new("bad-path", format!("`{text}` is a path below the mount already"))
            .help(format!("write it as /proc/PID/cgroup shows it: \"{below}\"")));
    }
    path(text)
}

/// Free attributes for policies.
fn attributes(section: &mut Section<'_, '_>, account: &str) -> BTreeMap<String, Attribute> {
    let mut attributes = BTreeMap::new();
    let Some(value) = section.value("attributes") else { return attributes };
    let Some(table) = section.table_of("attributes", value) else { return attributes };
    let mut below = section.below(table, format!("`[service-account.{account}.attributes]`"));
    for (key, value) in table {
        let key_name = match name(key.get_ref()) {
            Ok(name) => name,
            Err(fault) => {
                below.refuse(key.span(), fault);
                continue;
            }
        };
        let attribute = match value.get_ref() {
            DeValue::String(text) => Some(Attribute::Text(text.to_string())),
            DeValue::Boolean(boolean) => Some(Attribute::Bool(*boolean)),
            DeValue::Integer(_) => below.integer(&key_name, value).map(Attribute::Long),
            _ => below.wrong_type(&key_name, value, "a string, an integer or a boolean"),
        };
        if let Some(attribute) = attribute {
            attributes.insert(key_name, attribute);
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_a_suffix_and_processes() {
        for good in
            ["billing.service", "a@b.service", "system-x.slice", "s.socket", "run-r1.scope", "dev-sda\\x2d1.swap"]
        {
            assert!(unit(good).is_ok(), "{good}");
        }
        for (bad, part) in [
            ("billing", "no unit suffix"),
            ("billing.v2", "no unit suffix"),
            ("nightly.timer", "without processes"),
            ("a@.service", "template"),
            (".service", "not a unit name"),
            ("a b.service", "not a unit name"),
            ("ci-*.service", "matched whole"),
            ("", "not a unit name"),
        ] {
            let fault = unit(bad).unwrap_err();
            assert!(fault.message.contains(part), "{bad}: {fault}");
        }
        assert_eq!(unit("billing").unwrap_err().help.as_deref(), Some("did you mean `billing.service`?"));
    }

    #[test]
    fn a_uid_in_digits_is_a_uid() {
        assert_eq!(user("1001"), Ok("1001".to_owned()));
        assert_eq!(user("01001"), Ok("1001".to_owned()));
        for bad in ["", "4294967295", "99999999999", "a b", "a:b", "%group"] {
            assert_eq!(user(bad).unwrap_err().code, "bad-user", "{bad}");
        }
    }

    #[test]
    fn a_cgroup_is_written_as_proc_shows_it() {
        assert_eq!(cgroup("/system.slice/"), Ok("/system.slice".to_owned()));
        assert!(cgroup("/sys/fs/cgroup/demo").unwrap_err().help.unwrap().contains("\"/demo\""));
        assert!(cgroup("system.slice").is_err());
    }
}
