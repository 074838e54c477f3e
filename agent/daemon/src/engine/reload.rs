//! Reload: the configuration directory read again; in force whole, or refused with the one before still in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::Value;
use writ_abi::Active;
use writ_core::config::{Match, SourceFile};
use writ_core::diagnostic::{Diagnostic, Location, Severity};
use writ_core::record::Lifecycle;

use super::activate::{ActivateError, Source};
use super::refresh::{Why, micros_since};
use super::sessions::RECONFIGURED;
use super::status::ReloadResult;
use super::undeclared::declared;
use super::{Actor, Engine, Moment};
use crate::api::Reloaded;
use crate::configuration;

impl Engine {
    /// Applies the configuration directory. Returns once the kernel holds it.
    ///
    /// # Errors
    /// What is wrong, in a line and as findings; nothing changed.
    pub(crate) fn reload(&mut self, by: Option<&Actor>) -> Result<Reloaded, (String, Vec<Value>)> {
        self.check_attached();
        if self.is_detached() {
            let message = "programs are not attached, and could not be attached again (`writ status` names them): nothing \
                           that is put in force would be";
            let finding = Diagnostic::error("detached", message).help("restart the daemon");
            return Err(self.note_reload_refused(by, &[finding]));
        }
        let before = self.base_digest.clone();
        let matched = self.accounts_as_matched();
        let accounts = self.current().map(|current| declared(&current.config)).unwrap_or_default();
        let (began, moments) = (Instant::now(), self.moments_now());
        let seen =
            self.applied.as_ref().and(self.current()).map(|now| configuration::look(&self.config_dir, &now.config));
        if seen.is_some() && seen == self.applied && self.reapply().is_ok() {
            return Ok(self.note_reload(before, by, &moments, (&accounts, &matched), began));
        }
        let loaded = configuration::load(&self.config_dir);
        let applied = configuration::fingerprint(&loaded.sources, &loaded.diagnostics);
        let findings = loaded.diagnostics.clone();
        let outcome = match loaded.config {
            None => Err(findings),
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
                    let finding = Diagnostic::error("paths-changed", message)
                        .help("restart the daemon; enforcement stays in force meanwhile");
                    Err(vec![match paths_at(&loaded.sources) {
                        Some(at) => finding.at(at),
                        None => finding,
                    }])
                } else {
                    self.activate(Source {
                        config: Arc::new(config),
                        files: loaded.sources,
                        warnings: findings.clone(),
                    })
                    .map_err(|error| match error {
                        ActivateError::Refused(found) => found,
                        ActivateError::Install(error) => vec![Diagnostic::error("kernel", error.to_string())],
                    })
                }
            }
        };
        match outcome {
            Ok(()) => {
                self.applied = Some(applied);
                Ok(self.note_reload(before, by, &moments, (&accounts, &matched), began))
            }
            Err(found) => Err(self.note_reload_refused(by, &found)),
        }
    }

    /// Records that a configuration was refused; what is wrong, in a line and as findings.
    fn note_reload_refused(&mut self, by: Option<&Actor>, found: &[Diagnostic]) -> (String, Vec<Value>) {
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
        self.note_lifecycle(Lifecycle::ReloadRefused {
            policy_digest: self.base_digest.clone(),
            by: by.map(Actor::recorded),
            problems,
        });
        self.flush();
        (first, found.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect())
    }

    /// Records that a configuration is in force, and what it changed.
    fn note_reload(
        &mut self,
        before: String,
        by: Option<&Actor>,
        moments: &BTreeMap<String, Arc<Moment>>,
        (accounts, matched): (&BTreeSet<String>, &[(String, Vec<Match>)]),
        began: Instant,
    ) -> Reloaded {
        let applied_us = micros_since(began);
        let caller = by.map(Actor::recorded);
        let after = self.base_digest.clone();
        let undeclared = self.note_undeclared(accounts);
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
        let why = Why { cause: "policy".to_owned(), id: Some(after.clone()), by: caller, ..Why::default() };
        self.note_policy_changes(moments, &why, applied_us);
        self.flush();
        let warnings = self.current().map(|current| current.warnings.clone()).unwrap_or_default();
        let warnings = warnings.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect();
        Reloaded { before, after, generation, undeclared, warnings }
    }
}

/// Where `writ.toml` says what lies where.
fn paths_at(sources: &[SourceFile]) -> Option<Location> {
    let agent = sources.iter().find(|source| source.name == "writ.toml")?;
    let table = "[paths]";
    agent.text.find(table).map(|offset| Location::of(&agent.name, &agent.text, offset, table.len()))
}
