//! The shapes an atom is recognised by: the inputs, the literals they are compared with, and what a comparison says.

use std::net::IpAddr;
use std::str::FromStr;

use cedar_policy::pst::{self, BinaryOp, Expr, Literal, UnaryOp, Var};
use ipnet::IpNet;

use super::inputs::PortSet;

/// The inputs that may be used only inside atoms, and the form each takes.
const FORMS: [(&str, &str); 9] = [
    ("ip", "compare it with a literal: `context.ip.isInRange(ip(\"10.0.0.0/8\"))` or `context.ip == ip(\"10.0.0.1\")`"),
    (
        "port",
        "compare it with a literal number: `context.port == 443`, `context.port < 1024` or `[443, 8443].contains(context.port)`",
    ),
    ("protocol", "write `context.protocol == \"tcp\"` or `context.protocol == \"udp\"`"),
    (
        "executable",
        "compare it with a literal path (`==`, `!=`, `[..].contains(context.executable)`) or write `principal.executables.contains(context.executable)`",
    ),
    ("now", "compare it with a literal: `context.now < datetime(\"2026-12-31T18:00:00Z\")`"),
    ("hour", "compare it with a literal number: `context.hour >= 7 && context.hour < 19`"),
    ("minute", "compare it with a literal number: `context.minute < 30`"),
    ("weekday", "compare it with a literal number (1 is Monday, 7 Sunday): `context.weekday <= 5`"),
    (
        "family",
        "compare it with a literal: `context.family == \"icmp\"` or `[\"raw\", \"icmp\"].contains(context.family)`",
    ),
];

pub(super) fn form(input: &str) -> Option<&'static str> {
    FORMS.iter().find(|(name, _)| *name == input).map(|(_, form)| *form)
}

/// The attribute, if the expression is `context.attribute` and the attribute may be used only inside atoms.
pub(super) fn atomic(expression: &Expr) -> Option<&'static str> {
    match expression {
        Expr::GetAttr { expr, attr } if **expr == Expr::Var(Var::Context) => {
            FORMS.iter().find(|(name, _)| attr == name).map(|(name, _)| *name)
        }
        _ => None,
    }
}

pub(super) fn is_resource(expression: &Expr) -> bool {
    *expression == Expr::Var(Var::Resource)
}

pub(super) fn is_risk(expression: &Expr) -> bool {
    matches!(expression, Expr::GetAttr { expr, attr } if **expr == Expr::Var(Var::Context) && attr == "risk")
}

pub(super) fn long(expression: &Expr) -> Option<i64> {
    match expression {
        Expr::Literal(Literal::Long(number)) => Some(*number),
        Expr::UnaryOp { op: UnaryOp::Neg, expr } => long(expr)?.checked_neg(),
        _ => None,
    }
}

pub(super) fn text(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(Literal::String(text)) => Some(text),
        _ => None,
    }
}

pub(super) fn entity(expression: &Expr) -> Option<&pst::EntityUID> {
    match expression {
        Expr::Literal(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    }
}

pub(super) fn prefix(expression: &Expr) -> Option<(IpNet, &str)> {
    let Expr::UnaryOp { op: UnaryOp::Ip, expr } = expression else { return None };
    let written = text(expr)?;
    let net = IpNet::from_str(written).ok().or_else(|| IpAddr::from_str(written).ok().map(IpNet::from))?;
    Some((net.trunc(), written))
}

/// The operator with its sides exchanged.
pub(super) fn flipped(op: BinaryOp) -> BinaryOp {
    match op {
        BinaryOp::Less => BinaryOp::Greater,
        BinaryOp::LessEq => BinaryOp::GreaterEq,
        BinaryOp::Greater => BinaryOp::Less,
        BinaryOp::GreaterEq => BinaryOp::LessEq,
        other => other,
    }
}

/// Whether `value op literal`, for the operators that compare.
pub(super) fn compares(op: BinaryOp, value: i64, literal: i64) -> Option<bool> {
    Some(match op {
        BinaryOp::Eq | BinaryOp::NotEq => value == literal,
        BinaryOp::Less | BinaryOp::GreaterEq => value < literal,
        BinaryOp::LessEq | BinaryOp::Greater => value <= literal,
        _ => return None,
    })
}

/// The ports below 65,536 for which a comparison (or its negation: the atom is the same) holds.
pub(super) fn ports(op: BinaryOp, literal: i64) -> Option<PortSet> {
    const LAST: i64 = u16::MAX as i64;
    #[cfg(test)]
    if super::mutation::current() == super::mutation::Mutation::PortCut && matches!(op, BinaryOp::Eq | BinaryOp::NotEq)
    {
        return Some(vec![(u16::try_from(literal).ok()?, u16::MAX)]);
    }
    let (first, last) = match op {
        BinaryOp::Eq | BinaryOp::NotEq => (literal, literal),
        BinaryOp::Less | BinaryOp::GreaterEq => (0, literal.saturating_sub(1)),
        BinaryOp::LessEq | BinaryOp::Greater => (0, literal),
        _ => return None,
    };
    if last < 0 || first > LAST {
        return Some(Vec::new());
    }
    Some(vec![(u16::try_from(first.max(0)).ok()?, u16::try_from(last.min(LAST)).ok()?)])
}
