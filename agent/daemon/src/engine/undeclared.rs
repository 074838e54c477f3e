//! Accounts that a configuration declares no more: whoever removed one by mistake is told at once, and as long as it lasts.

use std::collections::BTreeSet;

use writ_core::config::Config;
use writ_core::diagnostic::Diagnostic;

use super::Engine;

impl Engine {
    /// Notes which accounts of an earlier configuration the one in force does not declare; returns those that are new, and
    /// warns about each.
    pub(crate) fn note_undeclared(&mut self, before: &BTreeSet<String>) -> Vec<String> {
        let Some(current) = &mut self.current else { return Vec::new() };
        self.undeclared.retain(|name| !current.config.accounts.contains_key(name));
        let gone: Vec<String> =
            before.iter().filter(|name| !current.config.accounts.contains_key(*name)).cloned().collect();
        for name in &gone {
            let message = format!(
                "service account `{name}` is no longer declared: its processes are not judged any more, and may reach \
                 everything"
            );
            tracing::warn!(account = name, "{message}");
            let help = format!(
                "if that is a mistake, declare it again and reload; to end its access, keep it declared and run `writ \
                 account offboard {name} --reason …`"
            );
            current.warnings.push(Diagnostic::warning("account-undeclared", message).help(help));
        }
        self.undeclared.extend(gone.iter().cloned());
        gone
    }
}

/// The accounts a configuration declares.
pub(crate) fn declared(config: &Config) -> BTreeSet<String> {
    config.accounts.keys().cloned().collect()
}
