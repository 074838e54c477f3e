//! The kinds of signals that a policy names in literals: one that can never be there makes a condition that never holds.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::pst::{self, Clause, Expr, Var};

use super::GENERATED;
use super::literal::text;
use super::parse::Parsed;
use crate::config::{Config, SignalKind, nearest};
use crate::diagnostic::Diagnostic;

/// The literals that a policy looks for in each of the two sets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kinds {
    signals: BTreeSet<String>,
    fresh: BTreeSet<String>,
}

impl Kinds {
    /// Reads them off a policy's syntax tree.
    pub(super) fn of(policy: &pst::Template) -> Self {
        let mut kinds = Self::default();
        for clause in policy.clauses() {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            kinds.expression(condition);
        }
        kinds
    }

    fn expression(&mut self, expression: &Expr) {
        match expression {
            Expr::BinaryOp { left, right, .. } => {
                self.sides(left, right);
                self.sides(right, left);
                self.expression(left);
                self.expression(right);
            }
            Expr::UnaryOp { expr, .. } | Expr::GetAttr { expr, .. } | Expr::Like { expr, .. } => self.expression(expr),
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                [cond, then_expr, else_expr].into_iter().for_each(|part| self.expression(part));
            }
            Expr::Set(elements) => elements.iter().for_each(|element| self.expression(element)),
            Expr::Record(members) => members.values().for_each(|member| self.expression(member)),
            // Nothing else that compiles holds an expression with sets in it.
            _ => {}
        }
    }

    /// `context.signals` on one side of an operator, and what it is asked for on the other.
    fn sides(&mut self, set: &Expr, asked: &Expr) {
        let Expr::GetAttr { expr, attr } = set else { return };
        let found = match attr.as_str() {
            "signals" if **expr == Expr::Var(Var::Context) => &mut self.signals,
            "fresh" if **expr == Expr::Var(Var::Context) => &mut self.fresh,
            _ => return,
        };
        match asked {
            Expr::Set(elements) => found.extend(elements.iter().filter_map(|element| text(element)).map(str::to_owned)),
            one => found.extend(text(one).map(str::to_owned)),
        }
    }
}

fn is_flag(kind: &SignalKind) -> bool {
    kind.flag
}

fn is_freshness(kind: &SignalKind) -> bool {
    kind.freshness
}

/// Literals that are in neither set, whatever happens: a forbid that waits for one forbids nothing.
pub(super) fn unknown(config: &Config, policies: &[Parsed<'_>], findings: &mut Vec<Diagnostic>) {
    // What writ makes of `requires-fresh` was judged as that.
    let written = |parsed: &&Parsed<'_>| !GENERATED.iter().any(|prefix| parsed.info.id.starts_with(prefix));
    for parsed in policies.iter().filter(written) {
        let sets = [
            ("signals", "flag", &parsed.kinds.signals, is_flag as fn(&SignalKind) -> bool),
            ("fresh", "freshness", &parsed.kinds.fresh, is_freshness),
        ];
        for (set, key, names, is_in) in sets {
            for name in names.iter().filter(|name| !config.signals.get(*name).is_some_and(is_in)) {
                let message =
                    format!("`{name}` is never in `context.{set}`: no signal of that kind has `{key} = true`");
                findings.push(
                    Diagnostic::warning("unknown-signal", message)
                        .help(what_to_do(&config.signals, name, key, is_in))
                        .policy(&parsed.info.id)
                        .at(parsed.statement.compared(name).unwrap_or_else(|| parsed.statement.head())),
                );
            }
        }
    }
}

fn what_to_do(signals: &BTreeMap<String, SignalKind>, name: &str, key: &str, is_in: fn(&SignalKind) -> bool) -> String {
    let fitting = signals.values().filter(|kind| is_in(kind)).map(|kind| kind.kind.as_str());
    match (signals.contains_key(name), nearest(name, fitting)) {
        (true, _) => format!("set `{key} = true` in `[signal.\"{name}\"]`"),
        (false, Some(near)) => format!("did you mean `{near}`?"),
        (false, None) => format!("declare `[signal.\"{name}\"]` with `{key} = true` in `signals.d/`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bundle;
    use super::super::fixture::{account, config};
    use super::*;
    use crate::config::SourceFile;

    fn kind(name: &str, flag: bool, freshness: bool) -> (String, SignalKind) {
        let kind = SignalKind {
            kind: name.into(),
            risk: 0,
            ttl: std::time::Duration::from_secs(60),
            flag,
            from: Vec::new(),
            freshness,
            ends_sessions: false,
            at: None,
        };
        (name.to_owned(), kind)
    }

    /// The findings of a policy with this condition: what is pointed at, and the help.
    fn found(action: &str, condition: &str) -> Vec<(String, String)> {
        let text = format!(
            "@id(\"p\") @owner(\"edr.malwar\") @reason(\"r\")\nforbid (principal, action == Action::\"{action}\", resource)\nwhen {{ {condition} }};"
        );
        let mut config = config(vec![account("report", &[])], &text);
        config.schemas = vec![SourceFile {
            name: "schema.d/own.cedarschema".into(),
            text: "entity Secret;\naction issue appliesTo { principal: [ServiceAccount], resource: [Secret], context: { signals: Set<String> } };".into(),
        }];
        config.signals = [
            kind("edr.malware", true, false),
            kind("edr.heartbeat", false, true),
            kind("workload.shell", false, false),
        ]
        .into();
        let (bundle, findings) = Bundle::compile(&config);
        assert!(bundle.is_some(), "{findings:#?}");
        let shown = |finding: &Diagnostic| {
            assert_eq!(finding.code, "unknown-signal");
            let at = finding.at.as_ref().unwrap();
            assert_eq!(at.line, 3, "{finding:?}");
            (text.get(at.offset..at.offset + at.length).unwrap().to_owned(), finding.help.clone().unwrap())
        };
        findings.iter().map(shown).collect()
    }

    #[test]
    fn a_signal_that_is_never_there_is_warned_of_where_it_is_named() {
        for condition in [
            "context.signals.contains(\"edr.malware\") && context.fresh.contains(\"edr.heartbeat\")",
            "context.signals.containsAny([\"edr.malware\"]) || principal.name == \"edr.malwar\"",
        ] {
            assert_eq!(found("connect", condition), [], "{condition}");
        }
        let slip = ("\"edr.malwar\"".to_owned(), "did you mean `edr.malware`?".to_owned());
        for condition in [
            "context.signals.contains(\"edr.malwar\")",
            "context.risk > 3 && !context.signals.containsAll([\"edr.malware\", \"edr.malwar\"])",
            "[\"edr.malwar\"].containsAny(context.signals)",
            "if context.signals.contains(\"edr.malwar\") then true else false",
        ] {
            assert_eq!(found("connect", condition), std::slice::from_ref(&slip), "{condition}");
        }
        assert_eq!(found("issue", "context.signals.contains(\"edr.malwar\")"), [slip]);
        let unset = |key: &str, kind: &str| format!("set `{key} = true` in `[signal.\"{kind}\"]`");
        for (condition, named, help) in [
            ("context.signals.contains(\"workload.shell\")", "\"workload.shell\"", unset("flag", "workload.shell")),
            ("context.fresh.contains(\"edr.malware\")", "\"edr.malware\"", unset("freshness", "edr.malware")),
        ] {
            assert_eq!(found("connect", condition), [(named.to_owned(), help)]);
        }
        let help = &found("connect", "context.signals.contains(\"siem.alert\")")[0].1;
        assert_eq!(help, "declare `[signal.\"siem.alert\"]` with `flag = true` in `signals.d/`");
    }
}
