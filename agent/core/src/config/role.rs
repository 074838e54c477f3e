//! What a file below the configuration directory is for, by its name alone.

/// What a file is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// `writ.toml`
    Agent,
    /// `service-accounts.d/*.toml`
    Accounts,
    /// `destinations.d/*.toml`
    Destinations,
    /// `signals.d/*.toml`
    Signals,
    /// `policies.d/*.cedar`
    Policies,
    /// `schema.d/*.cedarschema`
    Schemas,
    /// It looks like configuration but lies where nothing is read: worth a warning, since a forbid in it is not in force.
    Misplaced,
    /// Nothing to writ: other files, editor backups, dot files.
    Ignored,
}

/// The directories, the extension of the files read from them, and what these are for.
pub const DIRECTORIES: [(&str, &str, Role); 5] = [
    ("service-accounts.d", "toml", Role::Accounts),
    ("destinations.d", "toml", Role::Destinations),
    ("signals.d", "toml", Role::Signals),
    ("policies.d", "cedar", Role::Policies),
    ("schema.d", "cedarschema", Role::Schemas),
];

/// What a file is for, by its name below the configuration directory.
pub fn role(name: &str) -> Role {
    let (directory, base) = name.rsplit_once('/').unwrap_or(("", name));
    // Emacs writes `.#x.toml` and `#x.toml#`; other editors' backups have another extension.
    if name.split('/').any(|part| part.starts_with(['.', '#'])) {
        return Role::Ignored;
    }
    let Some((_, extension)) = base.rsplit_once('.') else { return Role::Ignored };
    if name == "writ.toml" {
        return Role::Agent;
    }
    match DIRECTORIES.iter().find(|(known, wanted, _)| *known == directory && *wanted == extension) {
        Some((_, _, role)) => *role,
        // A slip of the shift key too.
        None if matches!(extension.to_ascii_lowercase().as_str(), "toml" | "cedar" | "cedarschema") => Role::Misplaced,
        None => Role::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_file_is_for() {
        for (name, expected) in [
            ("writ.toml", Role::Agent),
            ("service-accounts.d/billing.toml", Role::Accounts),
            ("destinations.d/db.v2.toml", Role::Destinations),
            ("signals.d/edr.toml", Role::Signals),
            ("policies.d/10-base.cedar", Role::Policies),
            ("schema.d/broker.cedarschema", Role::Schemas),
            ("other.toml", Role::Misplaced),
            ("policies.d/base.toml", Role::Misplaced),
            ("policies.d/team/base.cedar", Role::Misplaced),
            ("policy.d/base.cedar", Role::Misplaced),
            ("policies.d/base.Cedar", Role::Misplaced),
            ("Writ.TOML", Role::Misplaced),
            ("policies.d/base.cedar~", Role::Ignored),
            ("policies.d/.base.cedar", Role::Ignored),
            ("policies.d/#base.cedar#", Role::Ignored),
            (".git/x.toml", Role::Ignored),
            ("README.md", Role::Ignored),
            ("LICENSE", Role::Ignored),
            ("", Role::Ignored),
        ] {
            assert_eq!(role(name), expected, "{name}");
        }
    }
}
