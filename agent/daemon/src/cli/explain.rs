//! `writ explain ID`: one record's story, for a person to read aloud.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use writ_core::printable::{printable, printable_lines};
use writ_core::record::{Body, Decision, PolicyRef, REASON_CODES, Record};
use writ_core::replay::{Archived, Attempt};

use super::find::by_id;
use super::judgements::Archive;
use super::lookup::Lookup;
use super::output;
use super::show::{program, summary, target};

/// Options of `explain`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ExplainArgs {
    /// The record's id
    pub id: String,
    /// The log directory, such as a copy; without it, the configured one
    #[arg(long, value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
}

/// Tells the story of a record.
pub(crate) fn explain(args: &ExplainArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let log = args.log.as_deref().unwrap_or(log);
    std::io::stdout().lock().write_all(page(&args.id, log)?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn page(id: &str, log: &Path) -> anyhow::Result<String> {
    let Some(found) = by_id(log, id)? else { return Err(output::not_found(format!("no record has the id `{id}`"))) };
    let record = Record::from_line(&output::shown_line(&found.line)).context("the record cannot be read")?;
    let page = match &record.body {
        Body::Decision(judged) | Body::Observation(judged) => {
            let before = earlier(log, found.index, judged)?;
            let set = Archive::of(log).get(&judged.policy_digest);
            let (set, attempt) = (set.as_ref().as_ref().ok(), Attempt::of(&found.line).ok());
            let mut page = tell(&record, judged, attempt.as_ref(), &before, set);
            if let (Some(set), Some(attempt)) = (set, &attempt) {
                for remedy in set.remedies(attempt) {
                    writeln!(page, "  or with {}, all else as it was", printable(&remedy.to_string()))?;
                }
            }
            page
        }
        _ => tell_other(&record)?,
    };
    // What did not come by the record, such as the text of policies, has lines of its own.
    Ok(printable_lines(&page).into_owned())
}

/// What is known from before: the previous attempt of the account to the same place, and the changes since.
#[derive(Default)]
struct Earlier {
    attempt: Option<Record>,
    changes: Vec<Record>,
}

/// How many records are looked back through.
const LOOK_BACK: u64 = 32_768;

/// Looks back from the record to the last attempt of the account at the same place, and takes what changed since.
fn earlier(log: &Path, index: u64, judged: &Decision) -> anyhow::Result<Earlier> {
    let mut lookup = Lookup::open(log)?;
    let mut earlier = Earlier::default();
    // Most lines are of other accounts, or of other places: they are told by their bytes.
    let named = format!("\"account\":{}", serde_json::to_string(&judged.account)?);
    let address = judged.destination.as_ref().map(|to| format!("\"address\":\"{}\"", to.address));
    let contains = |line: &[u8], text: &str| memchr::memmem::find(line, text.as_bytes()).is_some();
    for at in (index.saturating_sub(LOOK_BACK)..index).rev() {
        let Some(line) = lookup.line(at) else { break };
        let start = line.get(..96).unwrap_or(line);
        let attempt = contains(start, "\"type\":\"decision\"") || contains(start, "\"type\":\"observation\"");
        if attempt && address.as_ref().is_some_and(|address| !contains(line, address)) || !contains(line, &named) {
            continue;
        }
        let Ok(record) = Record::from_line(&output::shown_line(line)) else { continue };
        if record.body.account() != Some(judged.account.as_str()) {
            continue;
        }
        match &record.body {
            Body::Decision(other) | Body::Observation(other) => {
                if other.destination == judged.destination && other.action == judged.action {
                    earlier.attempt = Some(record);
                    break;
                }
            }
            Body::Change(_) | Body::Grant(_) | Body::Escalation(_) | Body::Lifecycle(_) => earlier.changes.push(record),
            Body::Cut(_) | Body::Loss(_) => {}
        }
    }
    earlier.changes.reverse();
    Ok(earlier)
}

fn tell(
    record: &Record,
    judged: &Decision,
    attempt: Option<&Attempt<'_>>,
    before: &Earlier,
    set: Option<&Archived>,
) -> String {
    let mut page = String::new();
    let mut say = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    let observed = matches!(record.body, Body::Observation(_));
    let outcome = match (observed, judged.errno.as_deref()) {
        (true, _) => "It was observed, not enforced: the call went on.".to_owned(),
        (false, Some(errno)) => format!("The call was refused with {errno}."),
        (false, None) => "The call went on.".to_owned(),
    };
    let verb = if observed { "would have been judged" } else { "was judged" };
    say(format!("{} {}", record.body.kind().to_uppercase(), record.id));
    say(format!("{}, host {}", record.time, record.host.id));
    say(String::new());
    let owner = judged.owner.as_ref().map(|owner| format!(" (owner {owner})")).unwrap_or_default();
    say(format!("Service account {}{owner} tried to {} {}.", judged.account, judged.action, target(judged)));
    say(format!("It {verb}: {}. {outcome}", judged.verdict.name().to_uppercase()));
    say(String::new());

    say("Who".to_owned());
    say(format!("  program     {}", program(judged)));
    if let Some(process) = &judged.process {
        let parents: Vec<String> = process
            .parents
            .iter()
            .map(|parent| format!("{}[{}]", parent.executable.as_deref().unwrap_or("?"), parent.pid))
            .collect();
        if !parents.is_empty() {
            say(format!("  started by  {}", parents.join(" ← ")));
        }
        let login = process.loginuid.map_or("nobody logged in".to_owned(), |uid| format!("login uid {uid}"));
        say(format!("  as          uid {}, euid {}, {login}", process.uid, process.euid));
        if let Some(unit) = process.unit.as_ref().or(process.cgroup.path.as_ref()) {
            say(format!("  in          {unit}"));
        }
    }
    say(format!("  known by    {}", judged.identified_by.join(", ")));
    if !judged.also_matched.is_empty() {
        say(format!("  also        {} (no stricter)", judged.also_matched.join(", ")));
    }
    say(String::new());

    say("Why".to_owned());
    let meaning = REASON_CODES.iter().find(|(code, _)| *code == judged.reason_code).map_or("", |(_, meaning)| meaning);
    say(format!("  {}: {meaning}", judged.reason_code));
    policies(&judged.policies, set, &mut say);
    if let Some(would) = &judged.would {
        say(format!("  with observe-mode policies enforced it would be: {}", would.verdict.name()));
        policies(&would.policies, set, &mut say);
    }
    say(String::new());

    say("At that moment".to_owned());
    say(format!("  risk        {}", judged.risk));
    for signal in &judged.signals {
        let (kind, source) = (&signal.kind, &signal.source);
        say(format!(
            "  signal      {kind} +{} from {source}, {} s old, until {}",
            signal.risk, signal.age_seconds, signal.expires
        ));
    }
    match &judged.grant {
        Some(grant) => say(format!("  grant       {} until {}: {}", grant.id, grant.expires, grant.reason)),
        None => say("  grant       none".to_owned()),
    }
    if let Some(time) = attempt.and_then(Attempt::time_in_words) {
        say(format!("  time        {time}"));
    }
    windows(set, attempt, &mut say);
    // The time is told above.
    let others = judged.request.context.iter().filter(|(name, _)| !TIME.contains(&name.as_str()) || attempt.is_none());
    for (name, value) in others {
        let shown = value.pointer("/__extn/arg").unwrap_or(value);
        say(format!("  {name:<11} {}", shown.as_str().map_or_else(|| shown.to_string(), str::to_owned)));
    }
    say(String::new());

    say("Before".to_owned());
    match &before.attempt {
        Some(last) => say(format!("  last time   {} {}", last.time, summary(last))),
        None => say("  last time   none found near this record".to_owned()),
    }
    for change in &before.changes {
        say(format!("  since       {} {}", change.time, summary(change)));
    }
    say(String::new());
    say(what_next(judged));
    page
}

/// The members of the context that say what time it is.
const TIME: [&str; 4] = ["now", "hour", "minute", "weekday"];

/// What the policies that looked at the time tell apart, and where in it the moment was.
fn windows(set: Option<&Archived>, attempt: Option<&Attempt<'_>>, say: &mut impl FnMut(String)) {
    let (Some(set), Some(attempt)) = (set, attempt) else {
        return say("  window      not known: the policies of that moment cannot be read".to_owned());
    };
    if attempt.time_in_words().is_none() {
        return say("  window      none: the request says no time".to_owned());
    }
    let windows = set.windows(attempt);
    if windows.is_empty() {
        return say("  window      none: no policy that can match looks at the time".to_owned());
    }
    for window in windows {
        say(format!("  window      {}, of {} (policy {})", window.within, window.of.join(" | "), window.policy));
    }
}

fn policies(policies: &[PolicyRef], set: Option<&Archived>, say: &mut impl FnMut(String)) {
    for policy in policies {
        let owner = policy.owner.as_ref().map(|owner| format!(" (owner {owner})")).unwrap_or_default();
        say(format!("  policy {}{owner}: {}", policy.id, policy.reason.as_deref().unwrap_or("no reason given")));
        // The text that decided, not what may be in a configuration file by now.
        if let Some(info) = set.and_then(|set| set.policy_infos().get(&policy.id)) {
            say(format!("    {}:{}", info.at.file, info.at.line));
            info.text.lines().for_each(|line| say(format!("    | {line}")));
        }
    }
}

/// What would have made it allowed, as far as the record itself tells.
fn what_next(judged: &Decision) -> String {
    use writ_core::record::Verdict;
    match (judged.verdict, judged.policies.is_empty(), judged.reason_code.as_str()) {
        (Verdict::Allow, _, _) => "Nothing to do: it was allowed.".to_owned(),
        (Verdict::Escalate, _, _) => {
            "To allow it: an approver answers the escalation (`writ escalation list`, `writ escalation approve ID`)."
                .to_owned()
        }
        (Verdict::Deny, true, "policy") => {
            "To allow it: no policy permits it; a `permit` would have to, or a grant (`writ grant create`).".to_owned()
        }
        (Verdict::Deny, false, _) => {
            let ids: Vec<&str> = judged.policies.iter().map(|policy| policy.id.as_str()).collect();
            format!("To allow it: the conditions of {} must no longer hold; ask their owner.", ids.join(", "))
        }
        (Verdict::Deny, true, code) => {
            format!("To allow it: `{code}` is a fault of the host or of writ; see `writ doctor`.")
        }
    }
}

fn tell_other(record: &Record) -> anyhow::Result<String> {
    let mut page =
        format!("{} {}\n{}, host {}\n\n", record.body.kind().to_uppercase(), record.id, record.time, record.host.id);
    writeln!(page, "{}\n", summary(record))?;
    let value: serde_json::Value = serde_json::from_slice(&record.to_line())?;
    writeln!(page, "{}", serde_json::to_string_pretty(&value)?)?;
    Ok(page)
}
