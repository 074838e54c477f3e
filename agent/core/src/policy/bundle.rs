//! A compiled configuration: validated policies, indexed by account, with everything needed to ask and to archive them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cedar_policy::{Authorizer, Schema};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use sha2::{Digest, Sha256};
use writ_abi::{Address, Family, NAT64_PREFIXES, Nat64Prefix, Protocol, Verdict};

use super::account::AccountPolicy;
use super::action::OwnActions;
use super::classes::Classes;
use super::granted::Granted;
use super::inputs::Inputs;
use super::judge::{Evaluation, Judge};
use super::moment::Moment;
use super::parse::PolicyInfo;
use super::places::Places;
use super::question::{Names, Question, Subject, WrittenRequest};
use super::row::{self, Row, StateKey};
use super::state::{AccountState, Approval};
use super::{UNLISTED, compile};
use crate::config::{Config, Destination};
use crate::diagnostic::{Diagnostic, Severity};

/// One attempt as Cedar is asked about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// `Action::"connect"`
    Connect {
        /// The address; judged in its canonical form.
        ip: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// Whether the account has not been there before.
        new_destination: bool,
        /// Path of the executable, if known.
        executable: Option<String>,
    },
    /// `Action::"open-socket"`
    OpenSocket {
        /// The family.
        family: Family,
    },
}

/// A configuration compiled and found free of errors, with the grants that are live. Cheap to clone: what does not change
/// with a grant is shared.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub(crate) authorizer: Authorizer,
    pub(crate) names: Arc<Names>,
    pub(crate) destinations: Arc<BTreeMap<String, Destination>>,
    /// The same by prefix.
    pub(super) places: Arc<Places>,
    pub(super) accounts: BTreeMap<String, Arc<AccountPolicy>>,
    /// The configuration's; grants are kept with their accounts.
    pub(super) policies: Arc<BTreeMap<String, PolicyInfo>>,
    pub(super) order: Arc<Vec<String>>,
    pub(super) inputs: Arc<Inputs>,
    pub(super) executables: Arc<BTreeSet<String>>,
    /// Without grants.
    pub(super) classes: Arc<Classes>,
    pub(super) granted: BTreeMap<String, Granted>,
    pub(super) zone: TimeZone,
    pub(super) nat64: [Nat64Prefix; NAT64_PREFIXES],
    pub(super) schema: Arc<str>,
    pub(super) cedar_schema: Arc<Schema>,
    pub(super) own_actions: Arc<OwnActions>,
    /// For principals that are no account: entities of the operator's own types.
    pub(super) outsiders: Arc<Judge>,
    pub(super) entities: Arc<str>,
    pub(super) digest: Arc<str>,
}

/// A digest as files in the archive are named after it.
pub(crate) fn named(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().fold(String::from("sha256-"), |name, byte| format!("{name}{byte:02x}"))
}

/// What there is for one account.
#[derive(Clone, Copy)]
pub(crate) struct OfAccount<'a> {
    bundle: &'a Bundle,
    policy: &'a AccountPolicy,
}

impl OfAccount<'_> {
    /// As [`Bundle::row_over`].
    pub(crate) fn row_over(&self, classes: &Classes, state: &AccountState, moment: Moment) -> Row {
        row::row(self.bundle, classes, self.policy, state, moment)
    }

    /// What of a state its policies can see.
    pub(crate) fn state_key(&self, state: &AccountState, moment: &Moment) -> StateKey {
        StateKey::new(self.policy, state, moment)
    }

    /// The moment of a state.
    pub(crate) fn moment(&self, state: &AccountState) -> Moment {
        self.bundle.moment(state)
    }

    /// As [`Bundle::next_boundary`].
    pub(crate) fn next_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        self.policy.shared.calendar.next_boundary(now, &self.bundle.zone)
    }

    /// One moment for each class of moments that can be met from `from` until `until` (milliseconds); `None` if there are more than
    /// `limit`.
    pub(crate) fn reachable(&self, from: &Moment, until: Option<i64>, limit: usize) -> Option<Vec<Moment>> {
        self.policy.shared.calendar.reachable(from, until, limit)
    }
}

impl Bundle {
    /// Compiles a configuration: the bundle, if there is no error, and every finding.
    pub fn compile(config: &Config) -> (Option<Self>, Vec<Diagnostic>) {
        let mut findings = Vec::new();
        let bundle = compile::compile(config, &mut findings);
        let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
        (bundle.filter(|_| !refused), findings)
    }

    /// Digest over policies, schema, destinations and accounts as evaluated, without grants.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The configuration's policies by id.
    pub fn policies(&self) -> &BTreeMap<String, PolicyInfo> {
        &self.policies
    }

    /// A policy by its id: the configuration's, or a grant.
    pub fn policy(&self, id: &str) -> Option<&PolicyInfo> {
        let granted = || self.granted.values().find_map(|granted| granted.policies.get(id));
        self.policies.get(id).or_else(granted)
    }

    /// Ids of the policies that can match an account, in file order.
    pub fn policies_of(&self, account: &str) -> &[String] {
        self.accounts.get(account).map_or(&[], |account| &account.shared.policies)
    }

    /// Whether the account is declared.
    pub fn has_account(&self, account: &str) -> bool {
        self.accounts.contains_key(account)
    }

    /// Whether some policy asks for the executable.
    pub fn classes_executables(&self) -> bool {
        self.inputs.classes_executables() || self.granted.values().any(|granted| granted.inputs.classes_executables())
    }

    /// Whether a policy of the account names this socket family.
    pub fn names_family(&self, account: &str, family: Family) -> bool {
        self.accounts.get(account).is_some_and(|account| account.shared.inputs.families.contains(&family))
    }

    /// The classes without any approval.
    pub fn classes(&self) -> &Arc<Classes> {
        &self.classes
    }

    /// The classes that tell apart what policies and grants ask, and these approved endpoints, by account.
    pub fn classes_with(
        &self,
        mut approvals: BTreeMap<String, BTreeSet<Approval>>,
    ) -> Result<Arc<Classes>, Box<Diagnostic>> {
        approvals.retain(|_, approvals| !approvals.is_empty());
        if approvals.is_empty() && self.granted.is_empty() {
            return Ok(Arc::clone(&self.classes));
        }
        let mut inputs = Inputs::clone(&self.inputs);
        for granted in self.granted.values() {
            inputs.merge(&granted.inputs);
        }
        Classes::build(&inputs, &self.destinations, &self.executables, approvals).map(Arc::new)
    }

    /// The text of all policies as evaluated, loadable by the stock `cedar`; its verdict is the would-be one.
    pub fn archived_policies(&self) -> String {
        self.archive(|_| true)
    }

    /// The same without observe-mode policies: `cedar` gives the enforced verdict (a deny may be an escalation).
    pub fn archived_enforced_policies(&self) -> String {
        self.archive(|policy| !policy.observes)
    }

    /// The schema's text.
    pub fn archived_schema(&self) -> &str {
        &self.schema
    }

    /// Destinations and accounts as JSON: what entities are made of.
    pub fn archived_entities(&self) -> &str {
        &self.entities
    }

    /// Ids of the policies whose refusal a person may lift.
    pub fn escalating(&self) -> BTreeSet<&str> {
        self.policies.values().filter(|policy| policy.escalates).map(|policy| policy.id.as_str()).collect()
    }

    /// The first instant after `now` at which time alone may change what an account may do; `None`: never.
    pub fn next_boundary(&self, account: &str, now: Timestamp) -> Option<Timestamp> {
        self.of(account)?.next_boundary(now)
    }

    /// The destinations an endpoint is in, parents included.
    pub fn groups_of(&self, ip: IpAddr, port: u16, protocol: Protocol) -> BTreeSet<String> {
        self.places.groups(&self.destinations, self.canonical(ip), port, protocol)
    }

    /// The form in which an address is judged: see [`writ_abi::Address::canonical`].
    pub fn canonical(&self, ip: IpAddr) -> IpAddr {
        Address::from(ip).canonical(&self.nat64).into()
    }

    /// Asks Cedar about one attempt, without classes: the reference for rows, and what replay and simulate use.
    pub fn evaluate(&self, account: &str, state: &AccountState, attempt: &Attempt) -> Evaluation {
        let asked = self
            .ask(account, state, attempt, |policy, question| policy.evaluate(&self.authorizer, &self.names, question));
        asked.unwrap_or_else(|| Evaluation::plain(Verdict::Deny))
    }

    /// The request in the form that `cedar authorize --request-json` takes; `None` if there is no such account.
    pub fn cedar_request(&self, account: &str, state: &AccountState, attempt: &Attempt) -> Option<WrittenRequest> {
        self.ask(account, state, attempt, |_, question| question.written())
    }

    /// What [`Self::evaluate`] and [`Self::cedar_request`] say, asked once; `None` if there is no such account.
    pub fn evaluate_written(
        &self,
        account: &str,
        state: &AccountState,
        attempt: &Attempt,
    ) -> Option<(Evaluation, WrittenRequest)> {
        self.ask(account, state, attempt, |policy, question| {
            (policy.evaluate(&self.authorizer, &self.names, question), question.written())
        })
    }

    /// The entities in the form that `cedar authorize --entities` takes; `None` if there is no such account.
    pub fn cedar_entities(&self, account: &str, attempt: &Attempt) -> Option<Value> {
        let state = AccountState::quiet(Timestamp::UNIX_EPOCH);
        self.ask(account, &state, attempt, |_, question| question.entities_json())
    }

    /// The account's row in a state: every class of attempts, asked once each. An unknown account's row denies.
    pub fn row(&self, account: &str, state: &AccountState) -> Row {
        let state = self.canonical_state(state);
        let approvals = BTreeMap::from([(account.to_owned(), state.approvals.iter().cloned().collect())]);
        match self.classes_with(approvals) {
            Ok(classes) => self.row_over(&classes, account, &state, self.moment(&state)).compacted(),
            Err(finding) => Row::denied(&self.classes, Some(finding.message)),
        }
    }

    /// The same over classes that were built before, not yet compacted: rows of one account have one shape.
    ///
    /// The state's approvals must be among those of the classes.
    pub(crate) fn row_over(&self, classes: &Classes, account: &str, state: &AccountState, moment: Moment) -> Row {
        match self.of(account) {
            Some(of) => of.row_over(classes, state, moment),
            None => Row::denied(classes, None),
        }
    }

    /// What there is for one account, found once; `None` if there is no such account.
    pub(crate) fn of(&self, account: &str) -> Option<OfAccount<'_>> {
        Some(OfAccount { bundle: self, policy: self.accounts.get(account)? })
    }

    /// The moment of a state.
    pub(crate) fn moment(&self, state: &AccountState) -> Moment {
        Moment::at(state.now, &self.zone)
    }

    /// The state with its approved addresses in canonical form.
    pub(crate) fn canonical_state(&self, state: &AccountState) -> AccountState {
        let mut state = state.clone();
        for approval in &mut state.approvals {
            approval.address = self.canonical(approval.address);
        }
        state
    }

    fn archive(&self, keep: impl Fn(&PolicyInfo) -> bool) -> String {
        let kept = self.order.iter().filter_map(|id| self.policies.get(id)).filter(|policy| keep(policy));
        kept.map(|policy| format!("{}\n\n", policy.text)).collect()
    }

    fn ask<T>(
        &self,
        account: &str,
        state: &AccountState,
        attempt: &Attempt,
        answer: impl FnOnce(&AccountPolicy, &Question<'_>) -> T,
    ) -> Option<T> {
        let policy = self.accounts.get(account)?;
        let state = self.canonical_state(state);
        let groups;
        let (subject, executable, approvals) = match attempt {
            Attempt::OpenSocket { family } => (Subject::OpenSocket(*family), UNLISTED, BTreeSet::new()),
            Attempt::Connect { ip, port, protocol, new_destination, executable } => {
                groups = self.groups_of(*ip, *port, *protocol);
                let (ip, port, protocol, new_destination) = (self.canonical(*ip), *port, *protocol, *new_destination);
                let path = executable.as_deref();
                let asked = &policy.shared.inputs.executables;
                let listed = |path: &&str| self.executables.contains(*path) || asked.contains(*path);
                let name = path.filter(listed).unwrap_or(UNLISTED);
                let approvals = state.approved(ip, port, protocol, path);
                (Subject::Connect { ip, port, protocol, new_destination, groups: &groups }, name, approvals)
            }
        };
        let question = Question {
            account: &policy.account,
            subject,
            executable,
            risk: state.risk,
            signals: &state.signals,
            fresh: &state.fresh,
            approvals,
            moment: self.moment(&state),
        };
        Some(answer(policy, &question))
    }
}
