//! `GET /v1/metrics`: the status and the counts in Prometheus' text format, written by hand because it is four rules long.

use std::fmt::Write as _;

use writ_core::config::Mode;

use crate::engine::{Status, Tally};

/// What the answer says it is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text so far.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{separator}{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A metric with one sample and no labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    }
}

/// The whole page.
pub(super) fn render(status: &Status, tally: &Tally, refused_connections: u64) -> String {
    let mut page = Page::default();
    in_force(&mut page, status);
    attempts(&mut page, status, tally);
    accounts(&mut page, status, tally);
    evidence(&mut page, status, tally);
    let help = "Connections to the API refused because their user had as many open as it may.";
    page.single("writ_api_connections_refused_total", "counter", help, refused_connections);
    page.0
}

/// What holds, and whether it is what was asked for.
fn in_force(page: &mut Page, status: &Status) {
    page.metric("writ_build_info", "gauge", "The version of the daemon.");
    page.sample("writ_build_info", &[("version", &status.version)], 1);
    page.single("writ_start_time_seconds", "gauge", "When the daemon started.", status.started.as_second());
    page.metric("writ_policy_info", "gauge", "The digests of what is in force.");
    let labels = [("policy_digest", &*status.policy_digest), ("configuration_digest", &*status.configuration_digest)];
    page.sample("writ_policy_info", &labels, 1);
    page.single("writ_generation", "gauge", "The generation of kernel tables in force.", status.generation);
    page.metric("writ_mode_info", "gauge", "The mode the configuration asks for, and the one in force.");
    let labels = [("configured", mode(status.mode)), ("effective", mode(status.effective_mode))];
    page.sample("writ_mode_info", &labels, 1);
    let help = "Accounts that are configured to be enforced and are not.";
    page.single("writ_mode_mismatch", "gauge", help, status.not_enforced.len());
    page.single("writ_partial", "gauge", "1 if only part of the host is judged.", u8::from(status.partial));
    page.single("writ_degraded", "gauge", "In how many ways writ is less than configured.", status.degraded.len());
    page.metric("writ_degraded_info", "gauge", "Each way in which writ is less than configured.");
    for reason in &status.degraded {
        page.sample("writ_degraded_info", &[("reason", reason)], 1);
    }
    page.metric("writ_coverage_info", "gauge", "What is covered.");
    for covered in &status.coverage {
        page.sample("writ_coverage_info", &[("coverage", covered)], 1);
    }
    page.single("writ_configuration_warnings", "gauge", "Warnings of the configuration in force.", status.warnings);
    page.metric("writ_on_escalation_total", "counter", "Runs of `on-escalation` since the start, by result.");
    let hook = &status.on_escalation;
    for (result, count) in [("succeeded", hook.succeeded), ("failed", hook.failed), ("dropped", hook.dropped)] {
        page.sample("writ_on_escalation_total", &[("result", result)], count);
    }
    let times = status.detachment.as_ref().map_or(0, |detachment| detachment.times);
    page.single("writ_detachments_total", "counter", "How often programs were found detached, since the start.", times);
    if let Some(test) = &status.self_test {
        let help = "1 if the last self-test's forbidden connect was refused.";
        page.single("writ_self_test_passed", "gauge", help, u8::from(test.passed));
        page.single("writ_self_test_time_seconds", "gauge", "When it was made.", test.at.as_second());
    }
}

/// What the kernel saw and what became of it.
fn attempts(page: &mut Page, status: &Status, tally: &Tally) {
    let records = status.records;
    page.single("writ_attempts_seen_total", "counter", "Attempts of managed accounts that were judged.", records.seen);
    let help = "Attempts whose record is in the log.";
    page.single("writ_attempts_recorded_total", "counter", help, records.recorded);
    page.single("writ_attempts_lost_total", "counter", "Attempts without a record.", records.lost);
    page.metric("writ_kernel_events_total", "counter", "Every counter of the kernel side.");
    for (name, count) in &status.counters {
        page.sample("writ_kernel_events_total", &[("counter", name)], count);
    }
    page.metric("writ_losses_total", "counter", "Attempts without a record of their own, by reason, since the start.");
    for (reason, count) in &tally.losses {
        page.sample("writ_losses_total", &[("reason", reason)], count);
    }
    page.metric(
        "writ_decisions_total",
        "counter",
        "Attempts recorded since the start. In observe mode nothing is refused.",
    );
    let judged = tally.judged.iter().flat_map(|(account, counts)| counts.iter().map(move |count| (account, count)));
    for (account, ((verdict, mode), count)) in judged {
        page.sample("writ_decisions_total", &[("account", account), ("verdict", verdict), ("mode", mode)], count);
    }
}

/// What each account may do, and what changed.
fn accounts(page: &mut Page, status: &Status, tally: &Tally) {
    page.metric("writ_account_info", "gauge", "Each account with the mode in force for it.");
    for account in &status.accounts {
        page.sample("writ_account_info", &[("account", &account.name), ("mode", mode(account.mode))], 1);
    }
    page.metric("writ_account_risk", "gauge", "Risk now, 0 to 100.");
    for account in &status.accounts {
        page.sample("writ_account_risk", &[("account", &account.name)], account.risk);
    }
    page.metric("writ_account_grants", "gauge", "Live grants.");
    for account in &status.accounts {
        page.sample("writ_account_grants", &[("account", &account.name)], account.grants.len());
    }
    page.metric("writ_account_unmatched", "gauge", "Selectors that nothing on this host matches.");
    for account in &status.accounts {
        page.sample("writ_account_unmatched", &[("account", &account.name)], account.unmatched.len());
    }
    page.metric("writ_account_ring_share", "gauge", "Decisions that the account may always have in the ring.");
    for account in &status.accounts {
        page.sample("writ_account_ring_share", &[("account", &account.name)], account.ring_share);
    }
    page.metric("writ_account_lost_total", "counter", "Attempts without a record, by the kernel's count, by reason.");
    for account in &status.accounts {
        let of = |reason| [("account", account.name.as_str()), ("reason", reason)];
        page.sample("writ_account_lost_total", &of("ring-full"), account.lost.ring_full);
        page.sample("writ_account_lost_total", &of("budget"), account.lost.budget);
    }
    page.metric(
        "writ_escalations_unasked_total",
        "counter",
        "Denied attempts that nobody was asked about: the account had as many requests open as are kept.",
    );
    for (account, count) in &tally.unasked {
        page.sample("writ_escalations_unasked_total", &[("account", account)], count);
    }
    let help = "Accounts that a reload took out of the configuration, and that are still not declared.";
    page.single("writ_accounts_undeclared", "gauge", help, status.undeclared.len());
    page.metric("writ_stance_changes_total", "counter", "Changes of what an account may do, since the start.");
    for ((account, cause), count) in &tally.changes {
        page.sample("writ_stance_changes_total", &[("account", account), ("cause", cause)], count);
    }
    page.metric("writ_sessions_cut_total", "counter", "Live sessions that were ended, since the start.");
    for (account, count) in &tally.cuts {
        page.sample("writ_sessions_cut_total", &[("account", account)], count);
    }
    page.single("writ_sessions", "gauge", "Live sessions that are tracked.", status.sessions);
}

/// How the proof fares.
fn evidence(page: &mut Page, status: &Status, tally: &Tally) {
    page.metric("writ_records_total", "counter", "Records made since the start, by type.");
    for (kind, count) in &tally.records {
        page.sample("writ_records_total", &[("type", kind)], count);
    }
    page.single("writ_log_records", "gauge", "Lines in the log.", status.checkpoint.size);
    let signed = status.checkpoint.signed.unwrap_or(0);
    page.single("writ_log_signed_records", "gauge", "Lines that the last checkpoint signs.", signed);
    page.metric("writ_sink_up", "gauge", "1 if records reach this sink.");
    for sink in &status.sinks {
        page.sample("writ_sink_up", &[("sink", &sink.name)], u8::from(sink.ok));
    }
    page.metric("writ_sink_waiting_records", "gauge", "Records that wait for this sink.");
    for sink in &status.sinks {
        page.sample("writ_sink_waiting_records", &[("sink", &sink.name)], sink.waiting);
    }
    page.metric("writ_sink_delivered_total", "counter", "Events that this sink was sent since the start.");
    for sink in status.sinks.iter().filter(|sink| sink.kind != "log") {
        page.sample("writ_sink_delivered_total", &[("sink", &sink.name)], sink.delivered);
    }
    let help = "Records that retention removed before this sink took them, since the start.";
    page.metric("writ_sink_lost_total", "counter", help);
    for sink in status.sinks.iter().filter(|sink| sink.kind != "log") {
        page.sample("writ_sink_lost_total", &[("sink", &sink.name)], sink.lost);
    }
    page.metric("writ_reloads_total", "counter", "Reloads since the start, by result.");
    let [applied, refused] = tally.reloads;
    page.sample("writ_reloads_total", &[("result", "applied")], applied);
    page.sample("writ_reloads_total", &[("result", "refused")], refused);
    if let Some(reload) = &status.last_reload {
        let help = "1 if the last reload was applied.";
        page.single("writ_last_reload_ok", "gauge", help, u8::from(reload.ok));
        page.single("writ_last_reload_time_seconds", "gauge", "When it was.", reload.at.as_second());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Page::default();
        page.sample("writ_x", &[("a", "b\"c\\d\ne"), ("f", "g")], 7);
        assert_eq!(page.0, "writ_x{a=\"b\\\"c\\\\d\\ne\",f=\"g\"} 7\n");
    }

    #[test]
    fn a_metric_without_labels_has_no_braces() {
        let mut page = Page::default();
        page.single("writ_y", "gauge", "Why.", 1);
        assert_eq!(page.0, "# HELP writ_y Why.\n# TYPE writ_y gauge\nwrit_y 1\n");
    }
}
