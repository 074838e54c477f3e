//! The report as one page of HTML that asks nothing of anybody: no script, no font, no picture from elsewhere.

use std::fmt::Write as _;

use super::Report;
use super::account::Account;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #d0d7de}\
table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{text-align:left;padding:.2rem .6rem;border-bottom:1px solid #eaeef2}\
td.n{text-align:right;font-variant-numeric:tabular-nums}.never{color:#9a3412}code{font-size:.9em}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}td,th{border-color:#21262d}.never{color:#fdba74}}";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let shown = |time: &Option<String>| escape(time.as_deref().unwrap_or("-"));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>writ report</title><style>{STYLE}</style></head>\n\
         <body><h1>writ report</h1>\n<p>{} records from {} to {}; {} attempts lost in {} gaps; {} requests refused, or not \
         to be judged.</p>\n",
        report.records,
        shown(&report.from),
        shown(&report.to),
        report.lost_attempts,
        report.losses,
        report.refused_requests
    );
    if let Some(problem) = &report.permitted_unknown {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<p class=\"never\">What is permitted cannot be told: {}</p>", escape(problem));
    }
    for (name, account) in report.accounts.iter().chain(&report.subjects) {
        one(&mut page, name, account);
    }
    page.push_str("<h2>Controls this log is evidence for</h2>\n");
    let rows = report.controls.iter().map(|control| {
        vec![
            escape(&control.framework),
            escape(&control.id),
            escape(control.title.as_deref().unwrap_or("")),
            escape(&control.policies.join(", ")),
            control.records.to_string(),
        ]
    });
    table(&mut page, &["Framework", "Control", "Title", "Policies", "Records"], rows);
    page.push_str("</body></html>\n");
    page
}

fn one(page: &mut String, name: &str, account: &Account) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(name));
    let owner = account.owner.as_deref().unwrap_or("nobody");
    let _ = writeln!(
        page,
        "<p>Owner {}. {} allowed, {} denied, {} escalated, {} observed, {} cuts; highest risk {}; last used {}.</p>",
        escape(owner),
        account.allowed,
        account.denied,
        account.escalated,
        account.observed,
        account.cuts,
        account.highest_risk,
        escape(account.last_used.as_deref().unwrap_or("never"))
    );
    if let Some(share) = account.over_privilege {
        let _ = writeln!(
            page,
            "<p>Over-privilege {:.0} %: {} of {} permitted destinations never used.</p>",
            share * 100.0,
            account.never_used.len(),
            account.permitted.len()
        );
    }
    let permitted = account.permitted.iter().map(|(place, policies)| {
        let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
        let used = if account.never_used.contains(place) { "<span class=\"never\">never</span>" } else { "yes" };
        vec![escape(place), escape(&policies.join(", ")), used.to_owned()]
    });
    table(page, &["Permitted", "By", "Used"], permitted);
    for (title, places) in [("Used", &account.used), ("Refused", &account.refused)] {
        let rows = places.iter().map(|(place, count)| vec![escape(place), count.to_string()]);
        table(page, &[title, "Attempts"], rows);
    }
    let granted = account.granted.iter().map(|(id, what)| vec![escape(id), escape(what)]);
    table(page, &["Granted", "What for"], granted);
    let risk = account
        .risk_history
        .iter()
        .map(|point| vec![escape(&point.time), point.risk.to_string(), escape(&point.cause)]);
    table(page, &["Risk since", "Risk", "Cause"], risk);
}

/// A table of cells that are HTML already; nothing if it has no rows.
fn table(page: &mut String, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    page.push_str("<table><tr>");
    for column in columns {
        let _ = write!(page, "<th>{column}</th>");
    }
    page.push_str("</tr>\n");
    for row in rows {
        let cells: String = row
            .iter()
            .map(|cell| {
                let number = !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
                format!("<td{}>{cell}</td>", if number { " class=\"n\"" } else { "" })
            })
            .collect();
        let _ = writeln!(page, "<tr>{cells}</tr>");
    }
    page.push_str("</table>\n");
}

/// Text as HTML: what a process or a person chose to call itself must stay text.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            char if char.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            char => safe.push(char),
        }
    }
    safe
}
