//! How deep and how long policy text may be: Cedar reads, checks and evaluates it by recursion, and a stack that overflows
//! ends the process.

use super::parse::Form;
use super::source::{Kind, Statement, Token, tokens};
use crate::diagnostic::{Diagnostic, Location};

/// The stack that a thread needs which reads, compiles or evaluates policies, in bytes: what is accepted here fits several
/// times over.
pub const STACK: usize = 64 << 20;

/// Brackets and `if`s within each other, those of a clause included.
const MOST_LEVELS: usize = 100;

/// Operators, clauses and steps into members in one policy: a chain of them is as deep as it is long.
const MOST_OPERATORS: usize = 4_000;

/// What writ itself adds to a policy that escalates, so that the text as evaluated can be read again.
const ADDED: usize = 8;

/// Types within each other in a schema.
const MOST_SCHEMA_LEVELS: usize = 64;

/// Operators of two characters; each is two tokens.
const PAIRS: [&str; 6] = ["&&", "||", "==", "!=", "<=", ">="];

/// Why Cedar is not to be given a statement.
pub(super) fn beyond(statement: &Statement<'_>, form: Form) -> Option<Diagnostic> {
    let most = match form {
        Form::Written => MOST_OPERATORS,
        Form::Evaluated => MOST_OPERATORS + ADDED,
    };
    let (levels, operators) = (levels(statement), operators(statement).nth(most));
    let (token, message) = match (levels, operators) {
        (Some(token), _) => (token, format!("brackets and `if`s are within each other more than {MOST_LEVELS} deep")),
        (None, Some(token)) => (token, format!("the policy has more than {MOST_OPERATORS} operators and clauses")),
        (None, None) => return None,
    };
    Some(
        Diagnostic::error("policy-too-deep", message)
            .help("put addresses and ports into a destination or a list, or split the policy")
            .at(statement.location(token.at.clone())),
    )
}

/// Why Cedar is not to be given a schema.
pub(crate) fn schema_beyond(name: &str, text: &str) -> Option<Diagnostic> {
    let mut level = 0usize;
    for token in tokens(text) {
        match text.get(token.at.clone()).unwrap_or("") {
            "(" | "[" | "{" | "<" => level += 1,
            ")" | "]" | "}" | ">" => level = level.saturating_sub(1),
            _ => {}
        }
        if level > MOST_SCHEMA_LEVELS {
            let message = format!("types are within each other more than {MOST_SCHEMA_LEVELS} deep");
            let at = Location::of(name, text, token.at.start, token.at.len());
            return Some(Diagnostic::error("schema", message).help("give the inner types names of their own").at(at));
        }
    }
    None
}

/// The first token that lies too deep. An `if` has everything behind it within it, up to a comma or the end of its bracket.
fn levels<'a>(statement: &'a Statement<'_>) -> Option<&'a Token> {
    let mut level = 0usize;
    // Levels of `if` in each bracket that is open.
    let mut ifs = vec![0usize];
    statement.tokens.iter().find(|token| {
        let text = statement.text.get(token.at.clone()).unwrap_or("");
        match (token.kind, text) {
            (Kind::Mark, "(" | "[" | "{") => {
                ifs.push(0);
                level += 1;
            }
            (Kind::Mark, ")" | "]" | "}") => level = level.saturating_sub(1 + ifs.pop().unwrap_or(0)),
            (Kind::Mark, ",") => level = level.saturating_sub(ifs.last_mut().map(std::mem::take).unwrap_or(0)),
            (Kind::Word, "if") => {
                level += 1;
                match ifs.last_mut() {
                    Some(open) => *open += 1,
                    None => ifs.push(1),
                }
            }
            _ => {}
        }
        level > MOST_LEVELS
    })
}

/// Everything that makes an expression longer.
fn operators<'a>(statement: &'a Statement<'_>) -> impl Iterator<Item = &'a Token> {
    // The end of an operator of two characters counts with its beginning.
    let mut taken = 0;
    statement.tokens.iter().filter(move |token| {
        let start = token.at.start;
        if start < taken {
            return false;
        }
        let text = statement.text.get(token.at.clone()).unwrap_or("");
        match token.kind {
            Kind::Text => false,
            Kind::Word => matches!(text, "has" | "like" | "in" | "is" | "when" | "unless"),
            Kind::Mark => {
                if statement.text.get(start..start + 2).is_some_and(|pair| PAIRS.contains(&pair)) {
                    taken = start + 2;
                    return true;
                }
                // A bracket may be a step into a member, and a list is not counted by its elements.
                matches!(text, "!" | "<" | ">" | "+" | "-" | "*" | "/" | "%" | "." | "[")
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{account, bundle, config, errors};
    use super::super::{AccountState, Rebuilt, Text};
    use super::*;
    use crate::config::SourceFile;

    fn when(condition: &str) -> String {
        format!(
            "@id(\"p\") @owner(\"o\") @reason(\"r\") @decision(\"escalate\")\n\
             forbid (principal, action == Action::\"connect\", resource) when {{ {condition} }};"
        )
    }

    /// Conditions as large as they may be, or a little larger.
    fn conditions(levels: usize, operators: usize) -> Vec<(&'static str, String)> {
        // A clause's brace is a level, and two operators stand around each condition.
        let (within, steps) = (levels - 1, operators - 3);
        let ports = |terms: usize, with: &str| {
            (0..terms).map(|port| format!("context.port == {port}")).collect::<Vec<_>>().join(with)
        };
        vec![
            ("or", ports(steps / 3 + 1, " || ")),
            ("and", ports(steps / 3 + 1, " && ")),
            ("clauses", ports(steps / 3 + 1, " } unless { ")),
            ("parentheses", format!("{}context.port == 1{}", "(".repeat(within), ")".repeat(within))),
            ("if", format!("{}true", "if context.port == 1 then false else ".repeat(within))),
            ("if within if", format!("{}true{}", "if ".repeat(within), " then true else false".repeat(within))),
            ("sums", format!("context.risk{} > 3", " + 1".repeat(steps - 1))),
            (
                "members",
                format!(
                    "{}1{}{} == 1",
                    "{\"a\": ".repeat(within),
                    "}".repeat(within),
                    "[\"a\"]".repeat(within.min(steps))
                ),
            ),
        ]
    }

    /// Does it on a stack of the size that every thread has which touches policies, and no rayon thread's.
    fn on_a_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).stack_size(bytes).build().unwrap();
        pool.install(work)
    }

    #[test]
    fn the_largest_policy_compiles_and_decides_on_a_part_of_the_stack_there_is() {
        for (name, condition) in conditions(MOST_LEVELS, MOST_OPERATORS) {
            on_a_stack(STACK / 2, || {
                let bundle = bundle(&config(vec![account("report", &[])], &when(&condition)));
                let state = AccountState::quiet(jiff::Timestamp::UNIX_EPOCH);
                assert!(bundle.row("report", &state).explanations.iter().all(|cell| cell.errors.is_empty()), "{name}");
                let archived = [SourceFile { name: "a".into(), text: bundle.archived_policies() }];
                let accounts = [("report", &[][..])];
                let rebuilt = Rebuilt::new(&[Text::evaluated(&archived)], None, &|_| true, accounts.into_iter());
                assert!(rebuilt.is_ok(), "{name}: {:?}", rebuilt.err());
            });
        }
    }

    #[test]
    fn a_larger_policy_is_refused_by_name_before_cedar_reads_it() {
        let mut larger = conditions(MOST_LEVELS + 1, MOST_OPERATORS);
        larger.retain(|(name, _)| matches!(*name, "parentheses" | "if" | "if within if" | "members"));
        let longer = conditions(MOST_LEVELS, MOST_OPERATORS + 3);
        larger.extend(longer.into_iter().filter(|(name, _)| matches!(*name, "or" | "and" | "clauses" | "sums")));
        larger.push(("far deeper", "(".repeat(20_000)));
        larger.push(("far longer", "!".repeat(200_000)));
        assert_eq!(larger.len(), 10);
        for (name, condition) in larger {
            let found = errors(&when(&condition));
            let codes: Vec<&str> = found.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, ["policy-too-deep"], "{name}");
            assert_eq!(found[0].at.as_ref().unwrap().line, 2, "{name}");
            assert!(found[0].help.is_some());
            let archived = [SourceFile { name: "a".into(), text: when(&condition) }];
            let accounts = [("report", &[][..])];
            let rebuilt = on_a_stack(STACK, || {
                Rebuilt::new(&[Text::evaluated(&archived)], None, &|_| true, accounts.into_iter())
            });
            // What writ adds to an escalating policy may stand beyond the limit for people.
            assert_eq!(rebuilt.is_err(), !matches!(name, "or" | "and" | "clauses" | "sums"), "{name}");
        }
    }

    #[test]
    fn a_list_is_as_long_as_it_likes() {
        let ports: Vec<String> = (0..20_000).map(|port| port.to_string()).collect();
        assert_eq!(errors(&when(&format!("[{}].contains(context.port)", ports.join(", ")))), []);
    }

    #[test]
    fn a_schema_that_is_too_deep_is_refused_at_its_place() {
        let schema = |levels: usize| {
            let kind = format!("{}String{}", "Set<".repeat(levels - 1), ">".repeat(levels - 1));
            SourceFile { name: "schema.d/deep.cedarschema".into(), text: format!("\nentity Deep {{ deep: {kind} }};") }
        };
        let mut config = config(vec![account("report", &[])], "");
        config.schemas = vec![schema(MOST_SCHEMA_LEVELS)];
        on_a_stack(STACK / 2, || bundle(&config));
        for levels in [MOST_SCHEMA_LEVELS + 1, 100_000] {
            config.schemas = vec![schema(levels)];
            let findings = super::super::Bundle::compile(&config).1;
            let place = findings[0].at.as_ref().map(|at| (at.file.as_str(), at.line));
            assert_eq!((findings[0].code, place), ("schema", Some(("schema.d/deep.cedarschema", 2))), "{findings:?}");
        }
    }
}
