//! What an account was refused lately, for the account itself: it learns why and what to do, and nothing of others.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use jiff::Timestamp;
use writ_core::record::{Body, Decision, Record, Verdict};
use writ_core::stance::{EscalationStatus, Target};

use super::{Actor, Engine, Refusal};
use crate::api::{Denial, OpenEscalation, WhyAccount, WhyAnswer};
use crate::log::Follow;

/// How many different refusals are kept for one account.
const KEPT: usize = 16;
/// How many lines of the log are looked through at a start.
const RECALLED: u64 = 2_000;

/// One refusal, and whose it was.
#[derive(Clone, Debug)]
struct Kept {
    /// Of the process that tried; `None`: somebody else asked about the account, and it is told whatever its uid.
    uid: Option<u32>,
    denial: Denial,
    target: Option<Target>,
}

/// The latest refusals of every account, newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Denials {
    accounts: HashMap<String, VecDeque<Kept>>,
}

impl Denials {
    /// Keeps a record if it is a refusal that took place.
    pub(super) fn keep(&mut self, record: &Record) {
        let Body::Decision(judged) = &record.body else { return };
        if judged.verdict == Verdict::Allow {
            return;
        }
        let Some(process) = &judged.process else { return };
        self.keep_judged((&record.id, record.time.0), judged, Some(process.uid), process.executable.clone());
    }

    /// Takes up what the end of a log says was refused, at a start: who was refused is told why, whoever told the kernel so.
    /// What it says was let through in this boot is returned: socket, when, and the record's id.
    pub(super) fn recall(&mut self, log: &Path, size: u64, boot: &str) -> Vec<(u64, u64, String)> {
        let mut opened = Vec::new();
        let mut follow = Follow::from_index(log, size.saturating_sub(RECALLED));
        // What cannot be read is missing in the answers, and nowhere else.
        while let Ok(Some((_, line))) = follow.next_line() {
            let Ok(record) = Record::from_line(&line) else { continue };
            if let Some(judged) = record.body.judged().filter(|_| record.host.boot_id == boot)
                && let Some(cookie) = socket_of(judged)
            {
                opened.push((cookie, judged.boot_time_ns, record.id.clone()));
            }
            let Body::Decision(judged) = &record.body else { continue };
            let path = judged.process.as_ref().and_then(|process| process.executable.clone());
            match judged.identified_by.as_slice() {
                [by] if by == "caller" || by == "subject" => {
                    self.keep_answer(&record.id, record.time.0, judged, by == "caller", path);
                }
                _ => self.keep(&record),
            }
        }
        opened
    }

    /// Keeps a refused question of the decision point. `itself`: the account asked, and not somebody about it.
    pub(super) fn keep_answer(
        &mut self,
        id: &str,
        at: Timestamp,
        judged: &Decision,
        itself: bool,
        path: Option<String>,
    ) {
        if judged.verdict != Verdict::Allow {
            let uid = judged.process.as_ref().map(|process| process.uid).filter(|_| itself);
            self.keep_judged((id, at), judged, uid, path);
        }
    }

    fn keep_judged(
        &mut self,
        (id, time): (&str, Timestamp),
        judged: &Decision,
        uid: Option<u32>,
        executable: Option<String>,
    ) {
        let kept = self.accounts.entry(judged.account.clone()).or_default();
        let to = target(judged);
        let same = |held: &Kept| {
            held.uid == uid
                && held.denial.to == to
                && held.denial.executable == executable
                && held.denial.verdict == judged.verdict.name()
                && held.denial.policies == judged.policies
        };
        let before = kept.iter().position(same).and_then(|place| kept.remove(place));
        kept.truncate(KEPT - 1);
        kept.push_front(Kept {
            uid,
            denial: Denial {
                record: id.to_owned(),
                time,
                count: before.map_or(0, |held| held.denial.count) + u64::from(judged.count),
                verdict: judged.verdict.name().to_owned(),
                to,
                executable: executable.clone(),
                reason_code: judged.reason_code.clone(),
                errno: judged.errno.clone(),
                policies: judged.policies.clone(),
                escalation: None,
                next: String::new(),
            },
            target: escalated(judged, executable.as_deref()),
        });
    }
}

/// The socket of a connect that went on, and of a connection that was found.
fn socket_of(judged: &Decision) -> Option<u64> {
    let kernel =
        judged.kernel.as_ref().filter(|kernel| judged.errno.is_none() && kernel.hook.starts_with("cgroup/connect"));
    kernel.map(|kernel| kernel.socket_cookie).or_else(|| judged.already_open.as_ref().map(|open| open.socket_cookie))
}

fn target(judged: &Decision) -> String {
    match &judged.destination {
        None if judged.request.resource.is_empty() => judged.action.clone(),
        None => format!("{} {}", judged.action, judged.request.resource),
        Some(to) if to.address.contains(':') => format!("[{}]:{}/{}", to.address, to.port, to.protocol),
        Some(to) => format!("{}:{}/{}", to.address, to.port, to.protocol),
    }
}

/// What a person would be asked about it.
fn escalated(judged: &Decision, executable: Option<&str>) -> Option<Target> {
    match &judged.destination {
        Some(to) => Some(Target::Connect {
            executable: executable?.to_owned(),
            address: to.address.parse().ok()?,
            port: to.port,
            protocol: to.protocol.clone(),
        }),
        None => Some(Target::Action {
            principal: judged.request.principal.clone(),
            action: judged.request.action.clone(),
            resource: judged.request.resource.clone(),
        }),
    }
}

impl Engine {
    /// What the caller was refused: its connects, its questions, and what others asked about it. Whom it is, its credentials
    /// say; of what it tried itself, only what processes of its own uid tried is told, since an account can have several users.
    /// Uid 0 reads the log anyway.
    ///
    /// # Errors
    /// Nothing is in force.
    pub(crate) fn why(&self, actor: &Actor) -> Result<WhyAnswer, Refusal> {
        let current = self.current().ok_or(Refusal::NotReady)?;
        let now = Timestamp::now();
        let all = actor.caller.uid == 0 || actor.caller.is_operator(&current.config.agent.operators);
        let accounts = actor.caller.accounts.iter().filter_map(|name| {
            let account = current.config.accounts.get(name)?;
            let offboarded = self.live.offboardings().get(name).is_some();
            let kept = self.denials.accounts.get(name).into_iter().flatten();
            let denials = kept
                .filter(|kept| all || kept.uid.is_none_or(|uid| uid == actor.caller.uid))
                .map(|kept| {
                    let mut denial = kept.denial.clone();
                    denial.escalation = self.escalation_of(name, kept, now);
                    let action = kept.target.as_ref().is_some_and(Target::is_action);
                    denial.next = next(name, account.owner.as_deref(), offboarded, action, &denial);
                    denial
                })
                .collect();
            Some(WhyAccount { account: name.clone(), owner: account.owner.clone(), offboarded, denials })
        });
        Ok(WhyAnswer { accounts: accounts.collect() })
    }

    fn escalation_of(&self, account: &str, kept: &Kept, now: Timestamp) -> Option<OpenEscalation> {
        let target = kept.target.as_ref()?;
        self.live.escalations().open(account, now).find(|known| known.target == *target).map(|known| OpenEscalation {
            id: known.id.clone(),
            status: known.status,
            expires: known.expires,
        })
    }
}

/// What the account, or who reads along, can do about a refusal.
fn next(account: &str, owner: Option<&str>, offboarded: bool, action: bool, denial: &Denial) -> String {
    let whom = owner.unwrap_or("the account's owner");
    if offboarded || denial.reason_code == writ_abi::Reason::Offboarded.code() {
        let tense = if offboarded { "is" } else { "was" };
        return format!("stop: the account {tense} offboarded; {whom} knows why");
    }
    match &denial.escalation {
        Some(open) if open.status == EscalationStatus::Pending => {
            return format!(
                "wait, then try again: escalation {} waits for an approver until {} (`writ escalation approve {} --ttl 15m \
                 --reason …`)",
                open.id, open.expires, open.id
            );
        }
        Some(open) if open.status == EscalationStatus::Approved => {
            return format!("try again: escalation {} is approved until {}", open.id, open.expires);
        }
        Some(open) if open.status == EscalationStatus::Denied => {
            return format!("do not retry: escalation {} was denied; nobody is asked before {}", open.id, open.expires);
        }
        _ => {}
    }
    let owners: Vec<&str> = denial.policies.iter().filter_map(|policy| policy.owner.as_deref()).collect();
    if !owners.is_empty() {
        return format!("ask {} about the policy named above; a grant does not outweigh it", owners.join(", "));
    }
    if denial.reason_code == "policy" && action {
        return format!("nothing permits it: ask {whom} for a policy; grants are for destinations");
    }
    if denial.reason_code == "policy" && !denial.to.is_empty() {
        return format!(
            "nothing permits it: ask {whom} for a policy, or an approver for a grant (`writ grant create --account \
             {account} --to {} --ttl 15m --reason …`)",
            denial.to
        );
    }
    format!("ask {whom}; docs/records.md says what `{}` means", denial.reason_code)
}
