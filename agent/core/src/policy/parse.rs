//! One policy as written: parsed by Cedar, its annotations read, its atoms found, and the text that is evaluated.

use cedar_policy::pst::{self, ActionConstraint, EntityOrSlot, PrincipalConstraint, ResourceConstraint};
use cedar_policy::{Effect, Policy, PolicyId, Template};
use serde::Serialize;

use super::atoms::{self, Culprit};
use super::inputs::Inputs;
use super::kinds::Kinds;
use super::schema::quoted;
use super::source::Statement;
use super::{annotation, extent, finding};
use crate::diagnostic::{Diagnostic, Location, Severity};

/// What records and listings say about a policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PolicyInfo {
    /// `@id`
    pub id: String,
    /// `@owner`
    pub owner: Option<String>,
    /// `@reason`
    pub reason: Option<String>,
    /// `@controls`, split at commas.
    pub controls: Vec<String>,
    /// Whether it forbids.
    pub forbids: bool,
    /// `@decision("escalate")`
    pub escalates: bool,
    /// `@mode("observe")`
    pub observes: bool,
    /// `@scope`: what a permit is narrowed to, split at spaces; `None`: not narrowed.
    pub scope: Option<std::collections::BTreeSet<String>>,
    /// `@max_ttl`: how long what is issued on a permit may live.
    pub max_ttl: Option<std::time::Duration>,
    /// Where it is written.
    pub at: Location,
    /// Its text as evaluated.
    pub text: String,
}

/// A policy ready to be indexed.
#[derive(Clone, Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) info: PolicyInfo,
    pub(crate) statement: Statement<'a>,
    /// The policy as evaluated, named by its `@id`.
    pub(crate) policy: Policy,
    pub(crate) principal: Principal,
    pub(crate) actions: Actions,
    pub(crate) inputs: Inputs,
    pub(crate) kinds: Kinds,
    /// It cannot be used, and a finding says why; what else is wrong with it can be looked for.
    pub(crate) refused: bool,
}

impl Parsed<'_> {
    /// If it can be used.
    pub(crate) fn usable(self) -> Option<Self> {
        Some(self).filter(|parsed| !parsed.refused)
    }
}

/// Which accounts a policy's scope can match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Principal {
    Any,
    Account(String),
    Team(String),
    Nobody,
}

/// Which actions a policy's scope can match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Actions {
    pub(crate) connect: bool,
    pub(crate) open_socket: bool,
    pub(crate) others: bool,
}

impl Actions {
    /// Without connects and sockets, where the scope is tied to a resource of another type: they go to endpoints.
    fn for_resource(self, resource: &ResourceConstraint) -> Self {
        let (ResourceConstraint::Eq(EntityOrSlot::Entity(pst::EntityUID { ty, .. }))
        | ResourceConstraint::Is(ty)
        | ResourceConstraint::IsIn(ty, _)) = resource
        else {
            return self;
        };
        let elsewhere = self.others && !matches!(ty.to_string().as_str(), "Endpoint" | "Destination");
        Self { connect: self.connect && !elsewhere, open_socket: self.open_socket && !elsewhere, others: self.others }
    }
}

/// Whether a policy's text is as a person wrote it, or as it was evaluated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Escalating policies are still to be given their clause about approvals.
    Written,
    /// They have it: the text came out of an archive.
    Evaluated,
}

/// Reads one statement as a person wrote it. Findings are pushed; `None` if it cannot be read.
pub(crate) fn policy<'a>(
    statement: Statement<'a>,
    destinations: &dyn Fn(&str) -> bool,
    findings: &mut Vec<Diagnostic>,
) -> Option<Parsed<'a>> {
    policy_in(Form::Written, statement, destinations, findings)
}

/// Reads one statement in either form.
pub(crate) fn policy_in<'a>(
    form: Form,
    statement: Statement<'a>,
    destinations: &dyn Fn(&str) -> bool,
    findings: &mut Vec<Diagnostic>,
) -> Option<Parsed<'a>> {
    let before = findings.len();
    if let Some(finding) = extent::beyond(&statement, form) {
        findings.push(finding);
        return None;
    }
    let parsed = match Policy::parse(None, statement.text) {
        Ok(parsed) => parsed,
        Err(_) if Template::parse(None, statement.text).is_ok() => {
            findings.push(
                Diagnostic::error("policy-template", "a policy template (`?principal`, `?resource`) is not evaluated")
                    .help("write one policy for each account, or use `writ grant create`")
                    .at(statement.head()),
            );
            return None;
        }
        Err(errors) => {
            let locate = |offset, length: usize| Some(statement.location(offset..offset + length));
            findings.extend(errors.iter().map(|error| finding::from_cedar("policy-syntax", error, &locate)));
            return None;
        }
    };
    let mut info = annotations(&parsed, &statement, findings)?;
    let tree = match parsed.to_pst() {
        Ok(pst::Policy::Static(tree)) => tree,
        _ => {
            findings.push(
                Diagnostic::error("policy-unclassed", "the policy's syntax tree cannot be read")
                    .help("use Cedar's operators as docs/policy.md lists them")
                    .policy(&info.id)
                    .at(statement.head()),
            );
            return None;
        }
    };
    let actions = actions(&tree.body().action).for_resource(&tree.body().resource);
    let mut inputs = Inputs::default();
    if actions.connect || actions.open_socket {
        match atoms::inputs(tree.body(), destinations) {
            Ok(found) => inputs = found,
            Err(refusals) => findings.extend(refusals.into_iter().map(|refusal| {
                let at = match &refusal.culprit {
                    Culprit::Input(name, nth) => statement.input(name, *nth),
                    Culprit::Literal(value) => statement.literal(value),
                    Culprit::Policy => None,
                };
                Diagnostic::error("policy-unclassed", refusal.message)
                    .help(refusal.help)
                    .policy(&info.id)
                    .at(at.unwrap_or_else(|| statement.head()))
            })),
        }
    }
    let refused = findings.iter().skip(before).any(|finding| finding.severity == Severity::Error);
    let mut policy = parsed.new_id(PolicyId::new(&info.id));
    inputs.approvals |= info.escalates && (actions.connect || actions.open_socket);
    if info.escalates && form == Form::Written {
        let clause = format!("unless {{ context.approvals.contains({}) }}", quoted(&info.id));
        info.text = statement.with_clause(&clause)?;
        policy = Policy::parse(Some(PolicyId::new(&info.id)), &info.text).ok()?;
    }
    // An escape can spell it another way.
    inputs.now = info.text.contains("now") || info.text.contains('\\');
    let principal = principal(&tree.body().principal);
    Some(Parsed { info, statement, policy, principal, actions, inputs, kinds: Kinds::of(tree.body()), refused })
}

fn annotations(policy: &Policy, statement: &Statement<'_>, findings: &mut Vec<Diagnostic>) -> Option<PolicyInfo> {
    let Some(id) = policy.annotation("id").filter(|id| !id.is_empty()) else {
        findings.push(
            Diagnostic::error("policy-id", "the policy has no `@id`")
                .help("write `@id(\"a-unique-name\")` before it: records and approvals name policies by it")
                .at(statement.head()),
        );
        return None;
    };
    findings.extend(annotation::misspelt(policy, statement, id));
    let text = |name: &str| policy.annotation(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let at = |name: &str| statement.annotation(name).unwrap_or_else(|| statement.head());
    let refused = |name: &str, message: String, help: &str| {
        Diagnostic::error("policy-annotation", message).help(help).policy(id).at(at(name))
    };
    let forbids = policy.effect() == Effect::Forbid;
    match policy.annotation("decision") {
        None => {}
        Some("escalate") if forbids => {}
        Some("escalate") => findings.push(refused(
            "decision",
            "`@decision(\"escalate\")` on a permit has no meaning: only a refusal can be escalated".into(),
            "write a forbid with it, or remove it",
        )),
        Some(other) => findings.push(refused(
            "decision",
            format!("`@decision(\"{other}\")` is not known"),
            "write `@decision(\"escalate\")`, or remove it",
        )),
    }
    match policy.annotation("mode") {
        None | Some("observe") => {}
        Some(other) => findings.push(refused(
            "mode",
            format!("`@mode(\"{other}\")` is not known"),
            "write `@mode(\"observe\")`, or remove it: policies are enforced otherwise",
        )),
    }
    for name in ["scope", "max_ttl"].into_iter().filter(|name| forbids && policy.annotation(name).is_some()) {
        findings.push(refused(
            name,
            format!("`@{name}` on a forbid has no meaning: only a permit can be narrowed"),
            "write it on the permit, or remove it",
        ));
    }
    let max_ttl = policy.annotation("max_ttl").and_then(|written| match crate::config::duration(written) {
        Ok(duration) => Some(duration),
        Err(_) => {
            let help = "write a number and a unit, as `@max_ttl(\"15m\")`";
            findings.push(refused("max_ttl", format!("`@max_ttl(\"{written}\")` is not a duration"), help));
            None
        }
    });
    for (name, what) in [("owner", "who answers for it"), ("reason", "why it exists")] {
        if text(name).is_none() {
            findings.push(
                Diagnostic::warning("policy-annotation", format!("policy `{id}` has no `@{name}`"))
                    .help(format!("write `@{name}(\"…\")`: records tell {what}"))
                    .policy(id)
                    .at(statement.head()),
            );
        }
    }
    let controls = text("controls").unwrap_or_default();
    Some(PolicyInfo {
        id: id.to_owned(),
        owner: text("owner"),
        reason: text("reason"),
        controls: controls
            .split(',')
            .map(|control| control.trim().to_owned())
            .filter(|control| !control.is_empty())
            .collect(),
        forbids,
        escalates: policy.annotation("decision") == Some("escalate"),
        observes: policy.annotation("mode") == Some("observe"),
        scope: policy.annotation("scope").map(|scope| scope.split_whitespace().map(str::to_owned).collect()),
        max_ttl,
        at: statement.head(),
        text: statement.text.to_owned(),
    })
}

fn principal(constraint: &PrincipalConstraint) -> Principal {
    let (PrincipalConstraint::Eq(EntityOrSlot::Entity(uid))
    | PrincipalConstraint::In(EntityOrSlot::Entity(uid))
    | PrincipalConstraint::IsIn(_, EntityOrSlot::Entity(uid))) = constraint
    else {
        // `is` a type that is not an account's is a matter for the validator; evaluating it costs time, not truth.
        return Principal::Any;
    };
    match uid.ty.to_string().as_str() {
        "ServiceAccount" => Principal::Account(uid.eid.to_string()),
        "Team" => Principal::Team(uid.eid.to_string()),
        _ => Principal::Nobody,
    }
}

fn actions(constraint: &ActionConstraint) -> Actions {
    let named: Vec<&pst::EntityUID> = match constraint {
        ActionConstraint::Any => return Actions { connect: true, open_socket: true, others: true },
        ActionConstraint::Eq(uid) => vec![uid],
        ActionConstraint::In(uids) => uids.iter().collect(),
    };
    let is = |uid: &pst::EntityUID, name: &str| uid.ty.to_string() == "Action" && uid.eid == name;
    Actions {
        connect: named.iter().any(|uid| is(uid, "connect")),
        open_socket: named.iter().any(|uid| is(uid, "open-socket")),
        others: named.iter().any(|uid| !is(uid, "connect") && !is(uid, "open-socket")),
    }
}
