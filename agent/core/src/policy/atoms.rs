//! A policy's syntax tree walked for what it asks; whatever cannot be classed is refused.
//!
//! Soundness: every use of a kernel input lies inside a recognised atom. An atom has one value on a whole class of connects,
//! so the policy has one value on it too, its error status included. Everything else is the account's state, which is fixed
//! while a row is current, and may be any Cedar. Syntax this file does not know is refused, never skipped.

use std::collections::BTreeMap;

use cedar_policy::pst::{self, BinaryOp, Clause, EntityOrSlot, Expr, Literal, ResourceConstraint, UnaryOp, Var};
use ipnet::IpNet;
use writ_abi::Family;

use super::inputs::{AddressSet, Inputs, PortSet};
use super::literal::{atomic, compares, entity, flipped, form, is_resource, is_risk, long, ports, prefix, text};
use super::moment;

/// Why a policy cannot be classed, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) help: String,
    pub(crate) culprit: Culprit,
}

/// The part of the policy that is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Culprit {
    /// The nth use of an input in the conditions.
    Input(String, usize),
    /// The first literal with this value.
    Literal(String),
    /// The policy.
    Policy,
}

/// What a policy asks, or every reason why it cannot be classed.
pub(crate) fn inputs(policy: &pst::Template, destinations: &dyn Fn(&str) -> bool) -> Result<Inputs, Vec<Refusal>> {
    let mut walk = Walk { destinations, inputs: Inputs::default(), uses: BTreeMap::new(), refusals: Vec::new() };
    match &policy.resource {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => {}
        ResourceConstraint::Eq(EntityOrSlot::Entity(uid)) => walk.equals_destination(uid),
        ResourceConstraint::In(EntityOrSlot::Entity(uid)) | ResourceConstraint::IsIn(_, EntityOrSlot::Entity(uid)) => {
            walk.in_destination(uid);
        }
        ResourceConstraint::Eq(EntityOrSlot::Slot(_))
        | ResourceConstraint::In(EntityOrSlot::Slot(_))
        | ResourceConstraint::IsIn(_, EntityOrSlot::Slot(_)) => {
            walk.refuse("a template's slot has no value", "write a policy without `?resource`", Culprit::Policy);
        }
    }
    for clause in policy.clauses() {
        let (Clause::When(condition) | Clause::Unless(condition)) = clause;
        walk.expression(condition);
    }
    if walk.refusals.is_empty() { Ok(walk.inputs) } else { Err(walk.refusals) }
}

struct Walk<'a> {
    destinations: &'a dyn Fn(&str) -> bool,
    inputs: Inputs,
    /// How often each input was met, so that a refusal can name the use it means.
    uses: BTreeMap<String, usize>,
    refusals: Vec<Refusal>,
}

impl Walk<'_> {
    fn refuse(&mut self, message: impl Into<String>, help: impl Into<String>, culprit: Culprit) {
        self.refusals.push(Refusal { message: message.into(), help: help.into(), culprit });
    }

    /// Counts a use of an input and says which one it is.
    fn used(&mut self, input: &str) -> Culprit {
        let uses = self.uses.entry(input.to_owned()).or_default();
        *uses += 1;
        Culprit::Input(input.to_owned(), *uses - 1)
    }

    fn refuse_form(&mut self, input: &str, culprit: Culprit) {
        let help = form(input).unwrap_or("remove it");
        self.refuse(format!("`context.{input}` is used in a form that cannot be compiled"), help, culprit);
    }

    fn expression(&mut self, expression: &Expr) {
        match expression {
            Expr::Literal(_) | Expr::Var(Var::Principal | Var::Action) => {}
            Expr::Var(Var::Resource) => {
                let culprit = self.used("resource");
                self.refuse(
                    "`resource` is used in a form that cannot be compiled",
                    "write `resource in Destination::\"name\"`",
                    culprit,
                );
            }
            Expr::Var(Var::Context) => self.refuse(
                "`context` is used as a whole, which cannot be compiled",
                "name the attribute: `context.port`, `context.risk`, …",
                Culprit::Policy,
            ),
            Expr::BinaryOp { op, left, right } => self.binary(*op, left, right),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            Expr::GetAttr { expr, attr } => self.attribute(expr, attr),
            Expr::HasAttr { expr, .. } => {
                if **expr != Expr::Var(Var::Context) {
                    self.expression(expr);
                }
            }
            Expr::Is { expr, in_expr, .. } => match (is_resource(expr), in_expr) {
                (true, Some(parents)) => {
                    let culprit = self.used("resource");
                    self.membership(parents, culprit);
                }
                (true, None) => {
                    self.used("resource");
                }
                (false, parents) => {
                    self.expression(expr);
                    if let Some(parents) = parents {
                        self.expression(parents);
                    }
                }
            },
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                self.expression(cond);
                self.expression(then_expr);
                self.expression(else_expr);
            }
            Expr::Like { expr, .. } => self.expression(expr),
            Expr::Set(elements) => elements.iter().for_each(|element| self.expression(element)),
            Expr::Record(members) => members.values().for_each(|member| self.expression(member)),
            _ => self.refuse(
                "an expression is of a kind that writ does not know",
                "use Cedar's operators as docs/policy.md lists them",
                Culprit::Policy,
            ),
        }
    }

    fn attribute(&mut self, of: &Expr, attribute: &str) {
        if *of != Expr::Var(Var::Context) {
            // Anything but the principal may be an entity that is not there.
            self.inputs.fallible |= *of != Expr::Var(Var::Principal);
            return self.expression(of);
        }
        let culprit = self.used(attribute);
        match attribute {
            "new_destination" => self.inputs.new_destination = true,
            "risk" => self.inputs.risk = true,
            "signals" => self.inputs.signals = true,
            "fresh" => self.inputs.fresh = true,
            "approvals" => self.inputs.approvals = true,
            _ if form(attribute).is_some() => self.refuse_form(attribute, culprit),
            // Another action's attribute behind `context has`; anything else the validator refuses.
            _ => {}
        }
    }

    fn unary(&mut self, op: UnaryOp, operand: &Expr) {
        if atomic(operand) == Some("ip") {
            let culprit = self.used("ip");
            let prefixes: &[&str] = match op {
                UnaryOp::IsIPv4 => &["0.0.0.0/0"],
                UnaryOp::IsIPV6 => &["::/0"],
                UnaryOp::IsLoopback => &["127.0.0.0/8", "::1/128"],
                UnaryOp::IsMulticast => &["224.0.0.0/4", "ff00::/8"],
                _ => return self.refuse_form("ip", culprit),
            };
            self.inputs.addresses.insert(prefixes.iter().filter_map(|prefix| prefix.parse().ok()).collect());
            return;
        }
        // Constructors of literals were evaluated by the validator; a difference or a sum can still overflow.
        let constructs = matches!(op, UnaryOp::Datetime | UnaryOp::Decimal | UnaryOp::Duration | UnaryOp::Ip);
        let is_literal = matches!(operand, Expr::Literal(_));
        self.inputs.fallible |=
            !matches!(op, UnaryOp::Not | UnaryOp::IsEmpty) && !(is_literal && (constructs || op == UnaryOp::Neg));
        self.expression(operand);
    }

    fn binary(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match op {
            BinaryOp::Eq
            | BinaryOp::NotEq
            | BinaryOp::Less
            | BinaryOp::LessEq
            | BinaryOp::Greater
            | BinaryOp::GreaterEq => {
                if let Some(input) = atomic(left) {
                    return self.comparison(input, op, right);
                }
                if let Some(input) = atomic(right) {
                    return self.comparison(input, flipped(op), left);
                }
                if is_risk(left) || is_risk(right) {
                    let (op, other) = if is_risk(left) { (op, right) } else { (flipped(op), left) };
                    if let Some(literal) = long(other) {
                        self.used("risk");
                        return self.risk(op, literal);
                    }
                }
                if is_resource(left) || is_resource(right) {
                    let culprit = self.used("resource");
                    return match entity(if is_resource(left) { right } else { left }) {
                        Some(uid) => self.equals_destination(uid),
                        None => self.refuse(
                            "`resource` is compared with something that is not a destination",
                            "write `resource in Destination::\"name\"`",
                            culprit,
                        ),
                    };
                }
            }
            BinaryOp::Contains => {
                if let Some(input) = atomic(right) {
                    return self.listed(input, left);
                }
            }
            BinaryOp::IsInRange if atomic(left) == Some("ip") => {
                let culprit = self.used("ip");
                return match prefix(right) {
                    Some((net, written)) => {
                        if let Some(net) = self.judged(net, written) {
                            self.inputs.addresses.insert(vec![net]);
                        }
                    }
                    None => self.refuse_form("ip", culprit),
                };
            }
            BinaryOp::In if is_resource(left) => {
                let culprit = self.used("resource");
                return self.membership(right, culprit);
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::In | BinaryOp::ContainsAll | BinaryOp::ContainsAny => {}
            // Arithmetic overflows; a tag or an offset may not be there. What is new to Cedar counts as fallible too.
            _ => self.inputs.fallible = true,
        }
        self.expression(left);
        self.expression(right);
    }

    /// `context.input op other`
    fn comparison(&mut self, input: &'static str, op: BinaryOp, other: &Expr) {
        let culprit = self.used(input);
        let equality = matches!(op, BinaryOp::Eq | BinaryOp::NotEq);
        let known = match input {
            "ip" if equality => self.addresses_equal(other, &culprit),
            "port" => long(other).and_then(|literal| ports(op, literal)).map(|ports| self.ports(ports)),
            "protocol" if equality => text(other).map(|name| self.protocol(name)),
            "executable" if equality => text(other).map(|path| self.executable(path)),
            "family" if equality => text(other).map(|name| self.family(name)),
            "now" => moment::literal(other).map(|literal| {
                let times = &mut self.inputs.times.now;
                if !matches!(op, BinaryOp::LessEq | BinaryOp::Greater) {
                    times.insert(literal);
                }
                if !matches!(op, BinaryOp::Less | BinaryOp::GreaterEq) {
                    times.insert(literal.saturating_add(1));
                }
            }),
            "hour" | "minute" | "weekday" => {
                long(other).and_then(|literal| self.clock(input, |value| compares(op, value, literal)))
            }
            _ => None,
        };
        if known.is_none() {
            self.refuse_form(input, culprit);
        }
    }

    /// `context.risk op literal`: risk is state, and rows need to be made only once for all risks that compare alike.
    fn risk(&mut self, op: BinaryOp, literal: i64) {
        let differs = |risk: &u8| {
            let (this, before) = (i64::from(*risk), i64::from(*risk) - 1);
            compares(op, this, literal) != compares(op, before, literal)
        };
        self.inputs.risks.extend((1..=u8::MAX).filter(differs));
    }

    /// `list.contains(context.input)`
    fn listed(&mut self, input: &'static str, list: &Expr) {
        let culprit = self.used(input);
        if let (Expr::GetAttr { expr, attr }, "executable") = (list, input)
            && **expr == Expr::Var(Var::Principal)
            && attr == "executables"
        {
            self.inputs.own_executables = true;
            return;
        }
        let Expr::Set(elements) = list else { return self.refuse_form(input, culprit) };
        let known = match input {
            "ip" => elements.iter().map(|element| self.addresses_equal(element, &culprit)).collect::<Option<()>>(),
            "port" => elements
                .iter()
                .map(|element| ports(BinaryOp::Eq, long(element)?))
                .collect::<Option<Vec<PortSet>>>()
                .map(|sets| self.ports(sets.concat())),
            "protocol" => elements.iter().map(|element| text(element).map(|name| self.protocol(name))).collect(),
            "executable" => elements.iter().map(|element| text(element).map(|path| self.executable(path))).collect(),
            "family" => elements.iter().map(|element| text(element).map(|name| self.family(name))).collect(),
            "hour" | "minute" | "weekday" => elements
                .iter()
                .map(|element| long(element))
                .collect::<Option<Vec<i64>>>()
                .and_then(|literals| self.clock(input, |value| Some(literals.contains(&value)))),
            "now" => elements
                .iter()
                .map(|element| {
                    let literal = moment::literal(element)?;
                    self.inputs.times.now.extend([literal, literal.saturating_add(1)]);
                    Some(())
                })
                .collect(),
            _ => None,
        };
        if known.is_none() {
            self.refuse_form(input, culprit);
        }
    }

    fn ports(&mut self, mut ports: PortSet) {
        ports.sort_unstable();
        ports.dedup();
        self.inputs.ports.insert(ports);
    }

    fn addresses_equal(&mut self, other: &Expr, culprit: &Culprit) -> Option<()> {
        let (net, written) = prefix(other)?;
        if net.prefix_len() != net.max_prefix_len() {
            self.refuse(
                format!("`context.ip == ip(\"{written}\")` is never true: a connect goes to one address"),
                format!("write `context.ip.isInRange(ip(\"{written}\"))`"),
                culprit.clone(),
            );
        } else if let Some(net) = self.judged(net, written) {
            self.inputs.addresses.insert(AddressSet::from([net]));
        }
        Some(())
    }

    /// The prefix, if addresses in it can be what a connect is judged by.
    fn judged(&mut self, net: IpNet, written: &str) -> Option<IpNet> {
        let unspecified = net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len();
        let mapped = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped().map(|v4| (v4, v6.prefix_len() - 96)),
            _ => None,
        };
        if let Some((v4, length)) = mapped {
            self.refuse(
                format!("`ip(\"{written}\")` is never matched: IPv4-mapped addresses are judged as IPv4"),
                format!("write `ip(\"{v4}/{length}\")`"),
                Culprit::Literal(written.to_owned()),
            );
            return None;
        }
        if unspecified {
            let loopback = if net.addr().is_ipv4() { "127.0.0.1" } else { "::1" };
            self.refuse(
                format!(
                    "`ip(\"{written}\")` is never matched: the kernel connects to loopback there and writ judges that"
                ),
                format!("write `ip(\"{loopback}\")`"),
                Culprit::Literal(written.to_owned()),
            );
            return None;
        }
        Some(net)
    }

    fn protocol(&mut self, name: &str) {
        self.inputs.protocol = true;
        if !matches!(name, "tcp" | "udp") {
            self.refuse(
                format!("`context.protocol` is never `{name}`"),
                "write \"tcp\" or \"udp\"; other protocols are decided by `Action::\"open-socket\"` and `context.family`",
                Culprit::Literal(name.to_owned()),
            );
        }
    }

    fn executable(&mut self, path: &str) {
        self.inputs.executables.insert(path.to_owned());
        if path != super::UNLISTED && !path.starts_with('/') {
            self.refuse(
                format!("`context.executable` is never `{path}`: it is an absolute path, or \"unlisted\""),
                "write the executable's absolute path, symbolic links resolved",
                Culprit::Literal(path.to_owned()),
            );
        }
    }

    fn family(&mut self, name: &str) {
        match Family::ALL.into_iter().find(|family| family.name() == name) {
            Some(family) => {
                self.inputs.families.insert(family);
            }
            None => self.refuse(
                format!("`context.family` is never `{name}`"),
                format!("it is one of {}", Family::ALL.map(Family::name).join(", ")),
                Culprit::Literal(name.to_owned()),
            ),
        }
    }

    fn clock(&mut self, input: &str, holds: impl Fn(i64) -> Option<bool>) -> Option<()> {
        let mut mask = 0u64;
        for value in 0..60 {
            mask |= u64::from(holds(value)?) << value;
        }
        let times = &mut self.inputs.times;
        match input {
            "hour" => times.hours.insert((mask & 0xff_ffff) as u32),
            "minute" => times.minutes.insert(mask),
            _ => times.weekdays.insert((mask & 0xfe) as u8),
        };
        Some(())
    }

    fn membership(&mut self, parents: &Expr, culprit: Culprit) {
        match parents {
            Expr::Literal(Literal::EntityUID(uid)) => self.in_destination(uid),
            Expr::Set(elements) if elements.iter().all(|element| entity(element).is_some()) => {
                elements.iter().filter_map(|element| entity(element)).for_each(|uid| self.in_destination(uid));
            }
            _ => self.refuse(
                "`resource in` is followed by something that is not a literal destination",
                "write `resource in Destination::\"name\"` or `resource in [Destination::\"a\", Destination::\"b\"]`",
                culprit,
            ),
        }
    }

    fn in_destination(&mut self, uid: &pst::EntityUID) {
        let name = uid.eid.as_str();
        if uid.ty.to_string() != "Destination" {
            self.refuse(
                format!("`resource in {uid}` is never true: only destinations have endpoints in them"),
                "write `resource in Destination::\"name\"`",
                Culprit::Literal(name.to_owned()),
            );
        } else if !(self.destinations)(name) {
            self.refuse(
                format!("destination `{name}` is not declared"),
                format!("declare `[destination.{name}]` in destinations.d"),
                Culprit::Literal(name.to_owned()),
            );
        } else {
            self.inputs.destinations.insert(name.to_owned());
        }
    }

    fn equals_destination(&mut self, uid: &pst::EntityUID) {
        let name = uid.eid.as_str();
        if uid.ty.to_string() == "Destination" {
            self.refuse(
                format!("`resource == {uid}` is never true: a connect goes to an endpoint in the destination"),
                format!("write `resource in {uid}`"),
                Culprit::Literal(name.to_owned()),
            );
        } else {
            self.refuse(
                format!("`resource == {uid}`: single endpoints are not classed"),
                "declare a destination for it, or write `context.ip == ip(\"…\") && context.port == …`",
                Culprit::Literal(name.to_owned()),
            );
        }
    }
}
