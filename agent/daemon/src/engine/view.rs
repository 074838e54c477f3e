//! What can be asked without changing anything: one account in full, and what a connect would meet now.

use jiff::Timestamp;
use serde_json::{Value, json};
use writ_abi::Protocol;
use writ_core::config::Config;
use writ_core::policy::{AccountState, Attempt, Bundle, Evaluation};
use writ_core::record::PolicyRef;
use writ_core::signal::Signal;

use super::{Engine, Refusal};
use crate::api::{SimulateBody, Simulated};
use crate::surroundings::Vantage;

impl Engine {
    /// Where writ's surroundings are to be looked at from.
    pub(crate) fn vantage(&self) -> Option<Vantage> {
        let config = &self.current()?.config;
        Some(Vantage {
            accounts: config.accounts.clone(),
            mount: self.kernel.cgroup().clone(),
            pins: config.agent.paths.pins.clone().into(),
        })
    }

    /// One account in full: stance, risk and why, grants, baseline, what comes next.
    pub(crate) fn account_view(&self, name: &str) -> Option<Value> {
        let current = self.current()?;
        let account = current.config.accounts.get(name)?;
        let status = self.account_status(name)?;
        let now = Timestamp::now();
        let live = self.live.account(name, now, &current.config, current.config.agent.risk, self.base.digest());
        let index = u32::from(*current.indices.get(name)?);
        let mut seen: Vec<String> = self
            .kernel
            .seen()
            .into_iter()
            .filter(|(account, ..)| *account == index)
            .map(|(_, octets, _)| writ_abi::Address::from_octets(octets).to_string())
            .collect();
        seen.sort();
        let mut view = serde_json::to_value(&status).ok()?;
        let members = view.as_object_mut()?;
        members.insert("teams".into(), json!(account.teams));
        members.insert("executables".into(), json!(account.executables));
        members.insert("risk_explained".into(), json!(live.risk(now)));
        members.insert("live_signals".into(), json!(live.signals));
        members.insert("live_grants".into(), json!(live.grants));
        members.insert("approvals".into(), json!(live.approved));
        members.insert("freshness".into(), json!(live.freshness(&account.requires_fresh, now)));
        members.insert("policies".into(), json!(current.bundle.policies_of(name)));
        members.insert("sessions".into(), json!(self.sessions(Some(name))));
        members.insert("destinations_seen".into(), json!(seen));
        Some(view)
    }

    /// Live signals, of one account or of all.
    ///
    /// # Errors
    /// There is no such account, and no signal about one.
    pub(crate) fn signals(&self, account: Option<&str>) -> Result<Vec<Signal>, Refusal> {
        let wanted = |signal: &&Signal| account.is_none_or(|account| signal.account == account);
        let found: Vec<Signal> = self.live.signals().all(Timestamp::now()).filter(wanted).cloned().collect();
        let config = self.config()?;
        match account.filter(|account| found.is_empty() && !config.accounts.contains_key(*account)) {
            Some(unknown) => Err(Refusal::NotFound(config.no_such_account(unknown))),
            None => Ok(found),
        }
    }

    /// What a connect would meet, from live state.
    ///
    /// # Errors
    /// There is no such account.
    pub(crate) fn simulate(&self, asked: &SimulateBody) -> Result<Simulated, Refusal> {
        let current = self.current().ok_or(Refusal::NotReady)?;
        let at = asked.at.unwrap_or_else(Timestamp::now);
        let live =
            self.live.account(&asked.account, at, &current.config, current.config.agent.risk, self.base.digest());
        let situation = live.situation(at);
        let mut state = situation.state;
        if let Some(risk) = asked.risk {
            state.risk = risk;
        }
        let new = || self.is_new(&asked.account, current.bundle.canonical(asked.address), at);
        let mut simulated = simulate(&current.config, &current.bundle, asked, &state, new)?;
        simulated.live = true;
        if situation.offboarded {
            simulated.verdict = "deny".into();
            simulated.would = "deny".into();
            simulated.reason_code = "offboarded".into();
            simulated.policies.clear();
        }
        if situation.break_glass_until.is_some() {
            simulated.effective_mode = "observe".into();
        }
        Ok(simulated)
    }
}

/// What a connect would meet in a state. `new`: whether the account has not been there, where the question does not say.
///
/// # Errors
/// There is no such account, or the protocol is not known.
pub(crate) fn simulate(
    config: &Config,
    bundle: &Bundle,
    asked: &SimulateBody,
    state: &AccountState,
    new: impl FnOnce() -> bool,
) -> Result<Simulated, Refusal> {
    let account =
        config.accounts.get(&asked.account).ok_or_else(|| Refusal::NotFound(config.no_such_account(&asked.account)))?;
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.name() == asked.protocol)
        .ok_or_else(|| Refusal::Invalid(format!("protocol `{}` is neither `tcp` nor `udp`", asked.protocol)))?;
    let attempt = Attempt::Connect {
        ip: asked.address,
        port: asked.port,
        protocol,
        new_destination: asked.new_destination.unwrap_or_else(new),
        executable: asked.executable.clone(),
    };
    let Evaluation { verdict, would, reason, policies, errors, .. } = bundle.evaluate(&asked.account, state, &attempt);
    let named = |id: &String| PolicyRef::new(id, bundle.policy(id));
    let determining = if errors.is_empty() { &policies } else { &errors };
    let name = |verdict: writ_abi::Verdict| writ_core::record::Verdict::from(verdict).name().to_owned();
    Ok(Simulated {
        verdict: name(verdict),
        would: name(would),
        effective_mode: match account.effective_mode(config.agent.mode) {
            writ_core::config::Mode::Enforce => "enforce".into(),
            writ_core::config::Mode::Observe => "observe".into(),
        },
        reason_code: reason.code().into(),
        policies: determining.iter().map(named).collect(),
        groups: bundle.groups_of(asked.address, asked.port, protocol).into_iter().collect(),
        live: false,
    })
}
