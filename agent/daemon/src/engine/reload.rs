//! Reload: the configuration directory read again; in force whole, or refused with the one before still in force.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::Value;
use writ_abi::Active;
use writ_core::diagnostic::{Diagnostic, Severity};
use writ_core::record::Lifecycle;

use super::activate::{ActivateError, Source};
use super::refresh::Why;
use super::sessions::RECONFIGURED;
use super::status::ReloadResult;
use super::undeclared::declared;
use super::{Actor, Engine};
use crate::api::Reloaded;
use crate::configuration;

impl Engine {
    /// Applies the configuration directory. Returns once the kernel holds it.
    ///
    /// # Errors
    /// What is wrong, in a line and as findings; nothing changed.
    pub(crate) fn reload(&mut self, by: Option<&Actor>) -> Result<Reloaded, (String, Vec<Value>)> {
        let before = self.base_digest.clone();
        let matched = self.accounts_as_matched();
        let accounts = self.current().map(|current| declared(&current.config)).unwrap_or_default();
        let (began, moments) = (Instant::now(), self.moments_now());
        let loaded = configuration::load(&self.config_dir);
        let mut findings = loaded.diagnostics.clone();
        let outcome = match loaded.config {
            None => Err(findings.clone()),
            Some(config) => {
                let required = config.agent.kernel.require.iter();
                let required = required.filter_map(|wanted| Some((wanted, self.kernel.missing(wanted)?))).next();
                let moved = self.current().is_some_and(|current| current.config.agent.paths != config.agent.paths);
                if let Some((wanted, why)) = required {
                    let message =
                        format!("`[kernel] require` asks for `{wanted}`, which this kernel does not give: {why}");
                    Err(vec![Diagnostic::error("not-covered", message)])
                } else if moved {
                    let message = "`[paths]` cannot change while writ runs";
                    Err(vec![
                        Diagnostic::error("paths-changed", message)
                            .help("restart the daemon; enforcement stays in force meanwhile"),
                    ])
                } else {
                    self.activate(Source { config, files: loaded.sources, warnings: findings.clone() }).map_err(
                        |error| match error {
                            ActivateError::Refused(found) => found,
                            ActivateError::Install(error) => vec![Diagnostic::error("kernel", error.to_string())],
                        },
                    )
                }
            }
        };
        let caller = by.map(Actor::recorded);
        match outcome {
            Ok(()) => {
                let after = self.base_digest.clone();
                let undeclared = self.note_undeclared(&accounts);
                let generation = self.current().map_or(0, |current| Active(current.generation.active).generation());
                self.degraded.retain(|reason| reason != "config-rejected");
                self.last_reload = Some(ReloadResult { at: Timestamp::now(), ok: true, problem: None });
                let id = self.note_lifecycle(Lifecycle::Reload {
                    before: before.clone(),
                    after: after.clone(),
                    by: caller.clone(),
                    generation,
                    undeclared: undeclared.clone(),
                });
                self.judge_all_sessions(id.clone(), RECONFIGURED, began);
                // Accounts that were not there before, or that other processes belong to now.
                if matched != self.accounts_as_matched() {
                    self.take_up_open_connections(&id);
                }
                let why = Why { cause: "policy".to_owned(), id: Some(after.clone()), reason: None, by: caller };
                let applied_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.note_policy_changes(&moments, &why, applied_us);
                self.flush();
                findings = self.current().map(|current| current.warnings.clone()).unwrap_or_default();
                Ok(Reloaded {
                    before,
                    after,
                    generation,
                    undeclared,
                    warnings: findings.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect(),
                })
            }
            Err(found) => {
                let problems: Vec<String> = found
                    .iter()
                    .filter(|finding| finding.severity == Severity::Error)
                    .map(|finding| match &finding.at {
                        Some(at) => format!("{}:{}:{}: {}", at.file, at.line, at.column, finding.message),
                        None => finding.message.clone(),
                    })
                    .collect();
                let first = problems.first().cloned().unwrap_or_else(|| "the configuration is refused".into());
                self.last_reload = Some(ReloadResult { at: Timestamp::now(), ok: false, problem: Some(first.clone()) });
                self.note_lifecycle(Lifecycle::ReloadRefused { policy_digest: before, by: caller, problems });
                self.flush();
                Err((first, found.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect()))
            }
        }
    }
}
