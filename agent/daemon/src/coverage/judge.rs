//! The judgement of a technique: by what arrived, what the kernel answered, what was recorded, and what the same attempt did
//! without an account.

use serde::Serialize;
use writ_techniques::{Claim, Disturbance, Proof, Technique};

use super::stage::{Attempted, Refusal};

/// What became of a technique here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// Decided by its destination, and recorded.
    Covered,
    /// Refused as a whole: by writ when the socket was made, or by the kernel to everybody.
    Refused,
    /// Not stopped.
    Residual,
    /// Could not be tried, or proved nothing.
    Untested,
}

impl Outcome {
    /// As reports write it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::Refused => "refused",
            Self::Residual => "residual",
            Self::Untested => "untested",
        }
    }
}

/// One line of the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Row {
    /// The technique's id.
    pub technique: &'static str,
    /// What was tried.
    pub title: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, and by what evidence.
    pub detail: String,
    /// What an operator can add; empty where nothing needs to be.
    pub remedy: &'static str,
    /// The hook that refused it; `kernel` if that refuses it to everybody, `none` if nothing did.
    pub hook: String,
    /// The kernel's release.
    pub kernel: String,
    /// What the catalogue claims for this kernel.
    pub claimed: &'static str,
    /// Whether less was found than is claimed: what makes the command fail.
    pub weaker: bool,
}

/// Judges what was found against what is claimed.
pub(crate) fn judge(
    technique: &'static Technique,
    lsm: bool,
    kernel: &str,
    control: &Attempted,
    account: &Attempted,
) -> Row {
    let (outcome, hook, found) = if technique.is_tried() {
        weigh(technique, control, account)
    } else {
        (Outcome::Residual, "none".to_owned(), String::new())
    };
    let claim = technique.claimed(lsm);
    let (detail, remedy) = match outcome {
        Outcome::Residual => {
            let reason =
                if technique.reason.is_empty() { "NOT STOPPED, though it is claimed" } else { technique.reason };
            (joined(reason, &found), technique.remedy)
        }
        _ => (found, ""),
    };
    let weaker = match claim {
        // What the kernel offers to nobody cannot be covered, and need not be.
        Claim::Covered => !(outcome == Outcome::Covered || (outcome == Outcome::Refused && hook == "kernel")),
        Claim::Refused => !matches!(outcome, Outcome::Refused | Outcome::Covered),
        Claim::Residual => outcome == Outcome::Untested,
    };
    Row {
        technique: technique.id,
        title: technique.title,
        outcome,
        detail,
        remedy,
        hook,
        kernel: kernel.to_owned(),
        claimed: claim.name(),
        weaker,
    }
}

fn joined(reason: &str, found: &str) -> String {
    if found.is_empty() { reason.to_owned() } else { format!("{reason} ({found})") }
}

fn weigh(technique: &Technique, control: &Attempted, account: &Attempted) -> (Outcome, String, String) {
    let nobody = || "none".to_owned();
    let (theirs, ours) = (&control.answer, &account.answer);
    if account.arrived > 0 {
        return (Outcome::Residual, nobody(), format!("{} packets arrived", account.arrived));
    }
    if let Some(why) = ours.broken.as_ref().or(theirs.broken.as_ref()) {
        return (Outcome::Untested, nobody(), why.clone());
    }
    let got_out = match technique.proof {
        Proof::Packet => control.arrived > 0,
        Proof::Calls => theirs.went_through(),
    };
    if let Some(refusal) = account.refusals.first() {
        return by_writ(refusal, got_out, account);
    }
    if technique.disturbance == Disturbance::RingFull && account.lost > 0 && !ours.went_through() {
        let found =
            format!("{}, and {} records that found no room are counted as lost", stopped(account), account.lost);
        return (Outcome::Covered, technique.hook.to_owned(), found);
    }
    if got_out && technique.hook == "cgroup/egress" {
        // The decision allowed the address given; the packet that would have gone elsewhere was dropped and counted.
        return (Outcome::Refused, technique.hook.to_owned(), format!("{}; {}", stopped(account), technique.reason));
    }
    match (theirs.went_through(), ours.went_through()) {
        (true, true) if technique.proof == Proof::Calls => {
            (Outcome::Residual, nobody(), "every call succeeded".to_owned())
        }
        (_, true) if !got_out => {
            (Outcome::Untested, nobody(), "nothing arrived from a process of no account either".to_owned())
        }
        (_, true) => (Outcome::Untested, nobody(), "nothing arrived, and no refusal is recorded".to_owned()),
        (false, false) if !got_out => {
            let found = format!("the kernel refuses it to everybody: {}", stopped(control));
            (Outcome::Refused, "kernel".to_owned(), found)
        }
        (_, false) => (Outcome::Untested, nobody(), format!("{}, and no refusal is recorded", stopped(account))),
    }
}

/// What writ refused and recorded.
fn by_writ(refusal: &Refusal, got_out: bool, account: &Attempted) -> (Outcome, String, String) {
    let mut found = format!("{}, recorded", stopped(account));
    if !got_out {
        found.push_str("; without an account the kernel refuses it in another way");
    }
    let outcome = if refusal.action.contains("open-socket") { Outcome::Refused } else { Outcome::Covered };
    (outcome, refusal.hook.clone(), found)
}

fn stopped(attempted: &Attempted) -> String {
    match (&attempted.answer.call, &attempted.answer.errno) {
        (Some(call), Some(errno)) => format!("{call}: {errno}"),
        _ => "nothing got out".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use writ_techniques::{Answer, find};

    use super::*;

    fn through(arrived: u64) -> Attempted {
        Attempted { arrived, ..Attempted::default() }
    }

    fn refused(errno: &str, action: Option<&str>) -> Attempted {
        let answer = Answer { call: Some("connect".into()), errno: Some(errno.into()), ..Answer::default() };
        let refusal = |action: &str| Refusal { hook: "cgroup/connect4".into(), action: action.into() };
        Attempted { answer, refusals: action.map(refusal).into_iter().collect(), ..Attempted::default() }
    }

    fn row(id: &str, control: &Attempted, account: &Attempted) -> Row {
        judge(find(id).unwrap(), false, "6.1", control, account)
    }

    #[test]
    fn what_arrived_outweighs_every_record() {
        let account = Attempted { arrived: 1, ..refused("EACCES", Some("connect")) };
        let row = row("tcp-connect", &through(1), &account);
        assert_eq!((row.outcome, row.weaker), (Outcome::Residual, true), "{row:?}");
    }

    #[test]
    fn a_recorded_refusal_covers() {
        let row = row("tcp-connect", &through(1), &refused("EACCES", Some("connect")));
        assert_eq!((row.outcome, row.weaker, row.hook.as_str()), (Outcome::Covered, false, "cgroup/connect4"));
    }

    #[test]
    fn a_refusal_without_a_record_proves_nothing() {
        let row = row("tcp-connect", &through(1), &refused("EACCES", None));
        assert_eq!((row.outcome, row.weaker), (Outcome::Untested, true));
    }

    #[test]
    fn an_attempt_that_gets_nothing_out_without_an_account_proves_nothing() {
        let row = row("tcp-connect", &through(0), &through(0));
        assert_eq!((row.outcome, row.weaker), (Outcome::Untested, true));
    }

    #[test]
    fn what_the_kernel_offers_to_nobody_is_refused_by_it() {
        let nobody = refused("EPROTONOSUPPORT", None);
        for id in ["sctp", "smc", "vsock"] {
            let row = row(id, &nobody, &nobody);
            assert_eq!((row.outcome, row.weaker, row.hook.as_str()), (Outcome::Refused, false, "kernel"), "{id}");
        }
    }

    #[test]
    fn a_family_that_opens_is_a_residual_and_no_surprise() {
        let row = row("vsock", &through(0), &through(0));
        assert_eq!((row.outcome, row.weaker), (Outcome::Residual, false));
        assert!(!row.remedy.is_empty());
    }

    #[test]
    fn an_attempt_that_broke_is_untested() {
        let broken = Attempted {
            answer: Answer { broken: Some("no memory".into()), ..Answer::default() },
            ..Attempted::default()
        };
        assert_eq!(row("udp-sendto", &through(1), &broken).outcome, Outcome::Untested);
    }

    #[test]
    fn what_the_backstop_stops_is_refused_without_a_record() {
        let row = row("source-route-tcp", &through(1), &refused("EPERM", None));
        assert_eq!((row.outcome, row.weaker, row.hook.as_str()), (Outcome::Refused, false, "cgroup/egress"));
    }

    #[test]
    fn a_lost_record_must_be_counted() {
        let counted = Attempted { lost: 3, ..refused("EACCES", None) };
        assert_eq!(row("ring-full", &through(1), &counted).outcome, Outcome::Covered);
        assert_eq!(row("ring-full", &through(1), &refused("EACCES", None)).outcome, Outcome::Untested);
    }
}
