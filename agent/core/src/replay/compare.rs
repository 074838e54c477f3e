//! A record beside what Cedar says now: the same, not the same, or not a matter of policy.

use serde::Serialize;

use super::attempt::{Attempt, Named, NotReplayable};
use crate::policy::Evaluation;
use crate::record::{REASON_CODES, Verdict};

/// One member that is not what deciding again gives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Difference {
    /// Which member.
    pub member: &'static str,
    /// What the record says.
    pub recorded: String,
    /// What it is when decided again.
    pub replayed: String,
}

impl Difference {
    pub(super) fn new(member: &'static str, recorded: &str, replayed: &str) -> Self {
        Self { member, recorded: recorded.to_owned(), replayed: replayed.to_owned() }
    }
}

/// What deciding again gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The same verdict, would-be verdict and policies.
    Reproduced,
    /// Something else.
    Differing(Vec<Difference>),
    /// Policy did not decide it, or its inputs are not there.
    NotReplayable(NotReplayable),
}

/// The reason codes under which Cedar decided.
const BY_POLICY: [&str; 3] = ["policy", "policy-error", ALREADY_OPEN];
/// Cedar decided about a connection that was open before.
const ALREADY_OPEN: &str = "already-open";
/// The fallback decided: it may refuse what Cedar would allow, never the reverse.
const BY_FALLBACK: &str = "stance-expired";

/// A record that is not decided again. What policy did not decide is refused, always.
pub(super) fn unasked(attempt: &Attempt<'_>, why: NotReplayable) -> Outcome {
    let code = attempt.reason_code.as_ref();
    let lax = attempt.verdict == Verdict::Allow && !BY_POLICY.contains(&code) && code != BY_FALLBACK;
    if lax { Outcome::Differing(vec![lax_verdict(attempt)]) } else { Outcome::NotReplayable(why) }
}

/// A reason code's own name.
fn known(code: &str) -> &'static str {
    REASON_CODES.iter().find(|(known, _)| *known == code).map_or("unknown", |(known, _)| *known)
}

/// The reason, if policy did not decide.
pub(super) fn not_by_policy(attempt: &Attempt<'_>) -> Option<&'static str> {
    let code = attempt.reason_code.as_ref();
    (!BY_POLICY.contains(&code)).then(|| known(code))
}

fn lax_verdict(attempt: &Attempt<'_>) -> Difference {
    Difference::new("verdict", attempt.verdict.name(), &format!("deny: `{}` never allows", attempt.reason_code))
}

pub(super) fn compare(attempt: &Attempt<'_>, found: &Evaluation, mut differences: Vec<Difference>) -> Outcome {
    let code = attempt.reason_code.as_ref();
    let (verdict, would): (Verdict, Verdict) = (found.verdict.into(), found.would.into());
    if !BY_POLICY.contains(&code) {
        if code == BY_FALLBACK {
            // `Verdict` is ordered by strictness.
            if attempt.verdict < verdict {
                differences.push(Difference::new("verdict", attempt.verdict.name(), verdict.name()));
            }
        } else if attempt.verdict == Verdict::Allow {
            differences.push(lax_verdict(attempt));
        }
        return if differences.is_empty() {
            Outcome::NotReplayable(NotReplayable::Reason(known(code)))
        } else {
            Outcome::Differing(differences)
        };
    }
    let mut expect = |member: &'static str, recorded: &str, replayed: &str| {
        if recorded != replayed {
            differences.push(Difference::new(member, recorded, replayed));
        }
    };
    expect("verdict", attempt.verdict.name(), verdict.name());
    if code != ALREADY_OPEN {
        expect("reason_code", code, found.reason.code());
    }
    let determining = if found.errors.is_empty() { &found.policies } else { &found.errors };
    expect("policies", &names(&attempt.policies), &join(determining));
    let recorded = attempt.would.as_ref().map_or("none", |would| would.verdict.name());
    expect("would.verdict", recorded, if would == verdict { "none" } else { would.name() });
    if let Some(instead) = attempt.would.as_ref().filter(|_| would != verdict) {
        expect("would.policies", &names(&instead.policies), &join(&found.would_policies));
    }
    if differences.is_empty() { Outcome::Reproduced } else { Outcome::Differing(differences) }
}

fn names(policies: &[Named<'_>]) -> String {
    let mut ids: Vec<&str> = policies.iter().map(|policy| policy.id.as_ref()).collect();
    ids.sort_unstable();
    ids.join(", ")
}

fn join(ids: &[String]) -> String {
    let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ids.sort_unstable();
    ids.join(", ")
}

/// A record that names no policy set.
pub fn without_set(attempt: &Attempt<'_>) -> Outcome {
    unasked(attempt, NotReplayable::NoInputs)
}
