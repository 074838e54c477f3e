//! What a bundle answers, refuses and archives.

use std::collections::BTreeSet;

use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request, Schema};
use writ_abi::{Family, Protocol, Reason, Verdict};

use super::fixture::{EGRESS, account, bundle, config, errors, state};
use super::{Approval, Attempt, Bundle};

const MONDAY_NOON: &str = "2026-11-23T12:00:00Z";

fn tcp(to: &str) -> Attempt {
    let address: std::net::SocketAddr = to.parse().unwrap();
    Attempt::Connect {
        ip: address.ip(),
        port: address.port(),
        protocol: Protocol::Tcp,
        new_destination: false,
        executable: None,
    }
}

fn to_new(attempt: Attempt) -> Attempt {
    match attempt {
        Attempt::Connect { ip, port, protocol, executable, .. } => {
            Attempt::Connect { ip, port, protocol, new_destination: true, executable }
        }
        other => other,
    }
}

fn egress() -> Bundle {
    bundle(&config(vec![account("payments", &[]), account("report", &["platform"]), account("idle", &[])], EGRESS))
}

#[test]
fn the_examples_of_the_design_are_decided_as_it_says() {
    let bundle = egress();
    let ask = |account: &str, risk, now: &str, attempt: Attempt| {
        let evaluation = bundle.evaluate(account, &state(risk, now), &attempt);
        (evaluation.verdict, evaluation.would, evaluation.policies.join(" "))
    };
    let (allow, deny, escalate) = (Verdict::Allow, Verdict::Deny, Verdict::Escalate);
    let db = || tcp("10.20.3.7:5432");
    assert_eq!(ask("payments", 10, MONDAY_NOON, db()), (allow, allow, "payments-to-prod-db".into()));
    assert_eq!(ask("payments", 80, MONDAY_NOON, db()), (deny, deny, "high-risk-block-prod".into()));
    assert_eq!(
        ask("payments", 60, MONDAY_NOON, to_new(db())),
        (escalate, escalate, "medium-risk-new-destination".into())
    );
    assert_eq!(ask("payments", 10, MONDAY_NOON, tcp("10.20.3.7:5433")), (deny, deny, String::new()));
    assert_eq!(
        ask("payments", 10, MONDAY_NOON, tcp("[fd00:20::1]:5432")),
        (allow, allow, "payments-to-prod-db".into())
    );
    assert_eq!(ask("report", 10, MONDAY_NOON, tcp("10.9.9.9:8443")), (allow, deny, "platform-internal-tls".into()));
    assert_eq!(ask("report", 10, MONDAY_NOON, tcp("10.30.0.1:5005")), (allow, allow, "report-business-hours".into()));
    assert_eq!(ask("report", 10, "2026-11-28T12:00:00Z", tcp("10.30.0.1:5005")).0, deny, "a Saturday");
    assert_eq!(ask("idle", 0, MONDAY_NOON, db()), (deny, deny, String::new()), "no policy matches");
    assert_eq!(ask("nobody", 0, MONDAY_NOON, db()), (deny, deny, String::new()), "no such account");
}

#[test]
fn an_escalation_that_a_hard_forbid_joins_is_a_denial() {
    let bundle = egress();
    let evaluation = bundle.evaluate("payments", &state(90, MONDAY_NOON), &to_new(tcp("10.20.3.7:5432")));
    assert_eq!(evaluation.verdict, Verdict::Deny);
    assert_eq!(evaluation.policies, ["high-risk-block-prod", "medium-risk-new-destination"]);
}

#[test]
fn an_approval_opens_its_endpoint_and_no_other() {
    let bundle = egress();
    let mut state = state(60, MONDAY_NOON);
    state.approvals.push(Approval {
        policies: BTreeSet::from(["medium-risk-new-destination".into()]),
        executable: None,
        address: "10.20.3.7".parse().unwrap(),
        port: 5432,
        protocol: "tcp".into(),
    });
    let verdict = |to: &str| bundle.evaluate("payments", &state, &to_new(tcp(to))).verdict;
    assert_eq!(verdict("10.20.3.7:5432"), Verdict::Allow);
    assert_eq!(verdict("[::ffff:10.20.3.7]:5432"), Verdict::Allow, "the mapped form is the same address");
    assert_eq!(verdict("10.20.3.8:5432"), Verdict::Escalate);
}

#[test]
fn unspecified_addresses_are_judged_as_loopback() {
    let policies = r#"@id("l") @owner("o") @reason("r")
permit (principal, action == Action::"connect", resource in Destination::"loopback");"#;
    let bundle = bundle(&config(vec![account("report", &[])], policies));
    for to in ["0.0.0.0:80", "[::]:80", "127.0.0.1:80", "[::1]:80", "[::ffff:127.9.9.9]:80", "[::ffff:0.0.0.0]:80"] {
        assert_eq!(bundle.evaluate("report", &state(0, MONDAY_NOON), &tcp(to)).verdict, Verdict::Allow, "{to}");
    }
}

#[test]
fn unix_sockets_are_judged_only_where_a_policy_names_them() {
    let policies = r#"@id("icmp") @owner("o") @reason("r")
permit (principal == ServiceAccount::"report", action == Action::"open-socket", resource) when { context.family == "icmp" };
@id("no-unix") @owner("o") @reason("r")
forbid (principal == ServiceAccount::"payments", action == Action::"open-socket", resource) when { context.family == "unix" };"#;
    let bundle = bundle(&config(vec![account("payments", &[]), account("report", &[])], policies));
    let ask =
        |account, family| bundle.evaluate(account, &state(0, MONDAY_NOON), &Attempt::OpenSocket { family }).verdict;
    assert_eq!(ask("report", Family::Icmp), Verdict::Allow);
    assert_eq!(ask("report", Family::Raw), Verdict::Deny);
    assert_eq!(ask("report", Family::Unix), Verdict::Allow);
    assert_eq!(ask("payments", Family::Unix), Verdict::Deny);
    assert_eq!(ask("payments", Family::Netlink), Verdict::Allow);
}

#[test]
fn a_failing_policy_denies_and_says_so() {
    let policies = r#"@id("open") @owner("o") @reason("r")
permit (principal, action == Action::"connect", resource);
@id("overflows") @owner("o") @reason("r")
forbid (principal, action == Action::"connect", resource) when { context.risk == 37 && 9223372036854775807 + context.risk > 0 };"#;
    let bundle = bundle(&config(vec![account("report", &[])], policies));
    let failed = bundle.evaluate("report", &state(37, MONDAY_NOON), &tcp("1.1.1.1:1"));
    assert_eq!(
        (failed.verdict, failed.reason, failed.errors),
        (Verdict::Deny, Reason::PolicyError, vec!["overflows".into()])
    );
    assert_eq!(bundle.evaluate("report", &state(36, MONDAY_NOON), &tcp("1.1.1.1:1")).verdict, Verdict::Allow);
}

#[test]
fn a_policy_that_fails_in_a_base_state_is_refused() {
    let found = errors(
        r#"@id("overflows") @owner("o") @reason("r")
forbid (principal, action == Action::"connect", resource) when { 9223372036854775807 + context.risk > 0 };"#,
    );
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].code, found[0].policy.as_deref()), ("policy-fails", Some("overflows")));
}

#[test]
fn the_archive_decides_the_same_as_the_bundle() {
    let bundle = egress();
    let schema = Schema::from_cedarschema_str(bundle.archived_schema()).unwrap().0;
    let full: PolicySet = bundle.archived_policies().parse().unwrap();
    let enforced: PolicySet = bundle.archived_enforced_policies().parse().unwrap();
    assert_eq!((full.num_of_policies(), enforced.num_of_policies()), (6, 5));
    let authorizer = Authorizer::new();
    let mut allowed = 0;
    for account in ["payments", "report", "idle"] {
        for risk in [0, 60, 90] {
            for to in
                ["10.20.3.7:5432", "10.9.9.9:8443", "10.30.0.1:5005", "[fd00:20::1]:5432", "[::ffff:10.0.0.1]:443"]
            {
                for attempt in [tcp(to), to_new(tcp(to)), Attempt::OpenSocket { family: Family::Raw }] {
                    let state = state(risk, MONDAY_NOON);
                    let (evaluation, request) = bundle.evaluate_written(account, &state, &attempt).unwrap();
                    let json = serde_json::to_value(request).unwrap();
                    let entities = bundle.cedar_entities(account, &attempt).unwrap();
                    // As the stock CLI does it: everything checked against the schema.
                    let uid = |name: &str| json[name].as_str().unwrap().parse::<EntityUid>().unwrap();
                    let context =
                        Context::from_json_value(json["context"].clone(), Some((&schema, &uid("action")))).unwrap();
                    let request =
                        Request::new(uid("principal"), uid("action"), uid("resource"), context, Some(&schema)).unwrap();
                    let entities = Entities::from_json_value(entities, Some(&schema)).unwrap();
                    let decide = |set| authorizer.is_authorized(&request, set, &entities).decision() == Decision::Allow;
                    assert_eq!(bundle.evaluate(account, &state, &attempt), evaluation);
                    assert_eq!(decide(&enforced), evaluation.verdict == Verdict::Allow, "{account} {attempt:?}");
                    assert_eq!(decide(&full), evaluation.would == Verdict::Allow, "{account} {attempt:?}");
                    allowed += usize::from(decide(&enforced));
                }
            }
        }
    }
    assert!(allowed > 5);
}

#[test]
fn the_digest_changes_with_whatever_changes_decisions_and_with_nothing_else() {
    let base = config(vec![account("report", &["platform"])], EGRESS);
    let digest = |config: &crate::config::Config| bundle(config).digest().to_owned();
    let before = digest(&base);
    assert!(before.starts_with("sha256-") && before.len() == 71);
    let mut changed = base.clone();
    changed.destinations.get_mut("prod-db").unwrap().ports.push((5433, 5433));
    assert_ne!(digest(&changed), before);
    let mut changed = base.clone();
    changed.policies[0].text = changed.policies[0].text.replace("80", "81");
    assert_ne!(digest(&changed), before);
    let mut same = base.clone();
    same.policies[0].text.push_str("// a comment after the last policy\n");
    same.agent.paths.log = "/elsewhere".into();
    assert_eq!(digest(&same), before);
}

#[test]
fn an_account_that_cannot_resolve_names_is_warned_of() {
    let mut config = config(vec![account("payments", &[])], EGRESS);
    config.destinations.get_mut("host-resolvers").unwrap().addresses = vec!["127.0.0.53/32".parse().unwrap()];
    let (bundle, findings) = Bundle::compile(&config);
    assert!(bundle.is_some());
    let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
    assert!(codes.contains(&"resolvers-unreachable"), "{codes:?}");
    config.policies[0].text.push_str(
        "@id(\"dns\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource in Destination::\"host-resolvers\");",
    );
    let (_, findings) = Bundle::compile(&config);
    assert!(findings.iter().all(|finding| finding.code != "resolvers-unreachable"));
}

#[test]
fn a_stale_signal_that_an_account_requires_refuses_whatever_is_permitted() {
    let all = "@id(\"all\") @owner(\"o\") @reason(\"r\") permit (principal, action, resource);";
    let mut needy = account("needy", &[]);
    needy.requires_fresh = vec!["edr.heartbeat".to_owned()];
    let bundle = bundle(&config(vec![needy], all));
    let mut state = state(0, MONDAY_NOON);
    let stale = bundle.evaluate("needy", &state, &tcp("10.0.0.1:1"));
    assert_eq!((stale.verdict, stale.policies), (Verdict::Deny, vec!["requires-fresh:needy".to_owned()]));
    state.fresh.insert("edr.heartbeat".to_owned());
    assert_eq!(bundle.evaluate("needy", &state, &tcp("10.0.0.1:1")).verdict, Verdict::Allow);
}
