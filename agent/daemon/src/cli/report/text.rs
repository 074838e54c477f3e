//! The report for a terminal.

use std::fmt::Write as _;

use super::Report;
use super::account::Account;

/// The whole report.
pub(super) fn page(report: &Report) -> String {
    let shown = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
    let mut text = format!(
        "{} records from {} to {}\n{} attempts lost in {} gaps\n",
        report.records,
        shown(&report.from),
        shown(&report.to),
        report.lost_attempts,
        report.losses
    );
    if let Some(problem) = &report.permitted_unknown {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "what is permitted cannot be told: {problem}");
    }
    if report.refused_requests > 0 {
        let _ = writeln!(text, "{} requests refused, or not to be judged", report.refused_requests);
    }
    for (name, account) in report.accounts.iter().chain(&report.subjects) {
        one(&mut text, name, account);
    }
    text.push_str("\ncontrols this log is evidence for\n");
    for control in &report.controls {
        let title = control.title.as_deref().unwrap_or("");
        let policies = if control.policies.is_empty() {
            String::new()
        } else {
            format!(" by policies {}", control.policies.join(", "))
        };
        let _ = writeln!(
            text,
            "  {:<19} {:<9} {} records{policies}  {title}",
            control.framework, control.id, control.records
        );
    }
    text
}

fn one(text: &mut String, name: &str, account: &Account) {
    let owner = account.owner.as_ref().map(|owner| format!(" (owner {owner})")).unwrap_or_default();
    let _ = writeln!(
        text,
        "\n{name}{owner}\n  {} allowed, {} denied, {} escalated, {} observed; highest risk {}\n  {} changes, {} signals, \
         {} cuts, {} escalations ({} approved, {} denied), {} grants ({} revoked, {} expired)",
        account.allowed,
        account.denied,
        account.escalated,
        account.observed,
        account.highest_risk,
        account.changes,
        account.signals,
        account.cuts,
        account.escalations,
        account.escalations_approved,
        account.escalations_denied,
        account.grants_created,
        account.grants_revoked,
        account.grants_expired
    );
    if let Some(share) = account.over_privilege {
        let _ = writeln!(
            text,
            "  over-privilege {:.0} %: {} of {} permitted destinations never used",
            share * 100.0,
            account.never_used.len(),
            account.permitted.len()
        );
    }
    for (destination, policies) in &account.permitted {
        let never = if account.never_used.contains(destination) { "  NEVER USED" } else { "" };
        let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
        let _ = writeln!(text, "  permitted {destination} by {}{never}", policies.join(", "));
    }
    for (destination, count) in &account.used {
        let _ = writeln!(text, "  used      {destination} ×{count}");
    }
    for (destination, count) in &account.refused {
        let _ = writeln!(text, "  refused   {destination} ×{count}");
    }
    for (grant, what) in &account.granted {
        let _ = writeln!(text, "  granted   {grant} {what}");
    }
    for point in account.risk_history.iter().skip(account.risk_history.len().saturating_sub(10)) {
        let _ = writeln!(text, "  risk      {} {} ({})", point.time, point.risk, point.cause);
    }
}
