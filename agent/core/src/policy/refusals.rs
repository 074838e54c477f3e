//! Policies that are refused: by which finding, and at which place.

use super::fixture::{account, config, errors};
use super::{Bundle, Grant, GrantTarget};
use crate::diagnostic::Severity;

/// A condition on a connect, the text that must be pointed at, and a part of the message.
const UNCLASSED: &[(&str, &str, &str)] = &[
    ("context.port == context.risk", "context.port", "cannot be compiled"),
    ("context.risk > 1 && context[\"port\"] + 1 > 2", "context[\"port\"]", "cannot be compiled"),
    ("context.port == 1 || context.port * 2 == 3", "context.port * 2", "cannot be compiled"),
    ("context.ip == ip(\"10.0.0.0/8\")", "context.ip", "never true"),
    ("context.ip.isInRange(ip(\"::ffff:a00:0/104\"))", "\"::ffff:a00:0/104\"", "judged as IPv4"),
    ("context.ip == ip(\"0.0.0.0\")", "\"0.0.0.0\"", "loopback"),
    ("context.ip == ip(\"::\")", "\"::\"", "loopback"),
    ("context.protocol == \"sctp\"", "\"sctp\"", "never `sctp`"),
    ("context.protocol like \"t*\"", "context.protocol", "cannot be compiled"),
    ("context.executable like \"/usr/bin/*\"", "context.executable", "cannot be compiled"),
    ("context.executable == principal.name", "context.executable", "cannot be compiled"),
    ("context.executable == \"python3\"", "\"python3\"", "absolute path"),
    ("context.hour * 60 + context.minute > 450", "context.hour", "cannot be compiled"),
    ("context.now.toTime() > duration(\"7h\")", "context.now", "cannot be compiled"),
    ("context.weekday < context.hour", "context.weekday", "cannot be compiled"),
    ("resource == Destination::\"prod-db\"", "Destination::\"prod-db\"", "never true"),
    ("resource == Endpoint::\"10.0.0.1:1/tcp\"", "Endpoint::\"10.0.0.1:1/tcp\"", "not classed"),
    ("resource in Destination::\"nowhere\"", "Destination::\"nowhere\"", "not declared"),
    (
        "(if context.risk > 3 then resource else resource) in Destination::\"prod\"",
        "resource else",
        "cannot be compiled",
    ),
    (
        "resource in (if context.risk > 3 then Destination::\"prod\" else Destination::\"prod-db\")",
        "resource in (",
        "not a literal",
    ),
    ("{\"a\": context.port}.a == 3", "context.port", "cannot be compiled"),
];

#[test]
fn what_cannot_be_classed_is_refused_at_its_place() {
    for (condition, culprit, message) in UNCLASSED {
        let text = format!(
            "// a comment; with a semicolon\n@id(\"p\") @owner(\"o\") @reason(\"r\")\npermit (principal, action == Action::\"connect\", resource)\n  when {{ {condition} }};"
        );
        let found = errors(&text);
        let at = text.find(condition).unwrap() + condition.find(culprit).unwrap();
        let expected = (4, at - text.rfind('\n').unwrap());
        let refused = found.iter().find(|finding| finding.message.contains(message));
        let refused = refused.unwrap_or_else(|| panic!("{condition}: {found:#?}"));
        let place = refused.at.as_ref().unwrap();
        assert_eq!((place.line, place.column), expected, "{condition}: {refused:#?}");
        let pointed = text.get(place.offset..place.offset + place.length).unwrap();
        assert!(culprit.starts_with(pointed), "{condition}: {refused:#?}");
        assert_eq!(refused.policy.as_deref(), Some("p"));
        assert!(refused.help.is_some(), "{condition}");
        assert_eq!(refused.code, "policy-unclassed");
        let again = found.iter().find(|finding| finding.code != "policy-unclassed");
        assert_eq!(again, None, "{condition}: the same mistake in other words");
    }
}

#[test]
fn all_that_is_wrong_with_one_policy_is_said_at_once() {
    let text = "@id(\"p\") @owner(\"o\") @reason(\"r\") @mode(\"enforce\")\npermit (principal, action == \
                Action::\"connect\", resource)\nwhen { resource in Destination::\"nowhere\" }\nwhen { context.prot == 3 \
                }\nunless { context.signals.contains(\"workload.shel\") };\n\n@id(\"p\") permit (principal, action, resource);\n@id(\"q\") \
                @mode(\"enforce\")\npermit (principal, action == Action::\"conect\", resource);";
    let (bundle, findings) = Bundle::compile(&config(vec![account("report", &[])], text));
    assert!(bundle.is_none());
    let mut found: Vec<(usize, &str)> =
        findings.iter().map(|finding| (finding.at.as_ref().map_or(0, |at| at.line), finding.code)).collect();
    found.sort_unstable();
    let expected = [
        (1, "policy-annotation"),
        (3, "policy-unclassed"),
        (4, "policy-invalid"),
        (5, "unknown-signal"),
        (7, "policy-annotation"),
        (7, "policy-annotation"),
        (7, "policy-id"),
        (8, "policy-annotation"),
        // The validator's own words for what follows from the action.
        (8, "policy-invalid"),
        (8, "policy-invalid"),
        (9, "policy-annotation"),
        (9, "policy-annotation"),
        (9, "policy-invalid"),
    ];
    assert_eq!(found, expected, "{findings:#?}");
}

/// A whole policy, and the code, line, column and a part of the message of its first error.
const REFUSED: &[(&str, &str, usize, usize, &str)] = &[
    ("permit (principal, action, resource);", "policy-id", 1, 1, "no `@id`"),
    ("@id(\"p\")\npermit (principal == ?principal, action, resource);", "policy-template", 2, 1, "template"),
    (
        "@id(\"p\") @decision(\"escalate\")\npermit (principal, action, resource);",
        "policy-annotation",
        1,
        10,
        "on a permit",
    ),
    ("@id(\"p\") @decision(\"ask\")\nforbid (principal, action, resource);", "policy-annotation", 1, 10, "not known"),
    ("@id(\"p\") @mode(\"enforce\")\nforbid (principal, action, resource);", "policy-annotation", 1, 10, "not known"),
    ("@id(\"p\")\npermit (principal, action, resource) when { context.port = 3 };", "policy-syntax", 2, 45, "="),
    ("@id(\"p\")\npermit (principal, action, resource)", "policy-syntax", 2, 37, "end of input"),
    (
        "@id(\"p\")\npermit (principal, action == Action::\"connect\", resource) when { context.prot == 3 };",
        "policy-invalid",
        2,
        66,
        "prot",
    ),
    (
        "@id(\"p\")\npermit (principal, action == Action::\"connect\", resource) when { principal.shoe == 3 };",
        "policy-invalid",
        2,
        66,
        "shoe",
    ),
    ("@id(\"p\")\npermit (principal, action == Action::\"conect\", resource);", "policy-invalid", 2, 30, "conect"),
    (
        "@id(\"p\")\npermit (principal, action, resource in Destination::\"prdo\");",
        "policy-unclassed",
        2,
        40,
        "not declared",
    ),
    (
        "@id(\"p\") permit (principal, action, resource);\n@id(\"p\") forbid (principal, action, resource);",
        "policy-id",
        2,
        1,
        "used twice",
    ),
    (
        "@id(\"p\")\nforbid (principal, action == Action::\"open-socket\", resource) when { context.family == \"ipx\" };",
        "policy-unclassed",
        2,
        88,
        "never `ipx`",
    ),
];

#[test]
fn every_other_error_names_its_place_too() {
    for (text, code, line, column, message) in REFUSED {
        let found = errors(text);
        let refused = found.first().unwrap_or_else(|| panic!("accepted: {text}"));
        let place = refused.at.as_ref().unwrap_or_else(|| panic!("{text}: {refused:#?}"));
        assert_eq!((refused.code, place.line, place.column), (*code, *line, *column), "{text}: {refused:#?}");
        assert!(refused.message.contains(message), "{text}: {refused:#?}");
        assert_eq!(place.file, "policies.d/test.cedar");
    }
}

#[test]
fn all_findings_come_at_once() {
    let text = "@id(\"a\") permit (principal, action, resource) when { 1 + };\npermit (principal, action, resource);\n@id(\"c\") permit (principal, action == Action::\"connect\", resource) when { context.port == context.risk || context.ip == context.risk };";
    let codes: Vec<&str> = errors(text).into_iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["policy-syntax", "policy-id", "policy-unclassed", "policy-unclassed"]);
}

#[test]
fn a_missing_owner_and_an_unknown_principal_are_warnings() {
    let text =
        "@id(\"a\") @reason(\"r\") permit (principal in Team::\"plaform\", action == Action::\"connect\", resource);";
    let (bundle, findings) = Bundle::compile(&config(vec![account("report", &["platform"])], text));
    assert!(bundle.is_some());
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning));
    let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages, ["policy `a` has no `@owner`", "team `plaform` is not declared: the policy matches nobody"]);
}

#[test]
fn a_forbid_on_a_destination_without_addresses_is_warned_of() {
    let policy = |name: &str| {
        format!(
            "@id(\"a\") @owner(\"o\") @reason(\"r\") forbid (principal, action == Action::\"connect\", resource in Destination::\"{name}\");"
        )
    };
    let codes = |name: &str| -> Vec<&str> {
        let (_, findings) = Bundle::compile(&config(vec![account("report", &[])], &policy(name)));
        findings.iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes("host-resolvers"), ["destination-empty"]);
    assert!(codes("prod").is_empty(), "prod has its members' addresses");
}

#[test]
fn own_schemas_are_merged_and_their_errors_named() {
    let mut config = config(
        vec![account("broker", &[])],
        "@id(\"issue\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"issue\", resource) when { context.pipeline == \"release\" };",
    );
    config.schemas = vec![crate::config::SourceFile {
        name: "schema.d/broker.cedarschema".into(),
        text: "entity Secret;\naction issue appliesTo { principal: [ServiceAccount], resource: [Secret], context: { pipeline: String } };".into(),
    }];
    assert!(Bundle::compile(&config).0.is_some());
    config.schemas[0].text = config.schemas[0].text.replace("[Secret]", "[Secrte]");
    let (bundle, findings) = Bundle::compile(&config);
    assert!(bundle.is_none());
    assert_eq!(findings[0].code, "schema");
    let broken = "entity Secret;\nentity Secret {;";
    config.schemas[0].text = broken.into();
    let (_, findings) = Bundle::compile(&config);
    let at = findings[0].at.as_ref().unwrap();
    assert_eq!((at.file.as_str(), at.line), ("schema.d/broker.cedarschema", 2));
}

#[test]
fn a_grant_is_a_policy_that_ends() {
    let grant = Grant {
        id: "G-7".into(),
        account: "report".into(),
        target: GrantTarget::Endpoint {
            addresses: "10.1.0.0/16".parse().unwrap(),
            port: 22,
            protocol: Some(writ_abi::Protocol::Tcp),
        },
        executable: None,
        expires: "2026-11-23T13:00:00Z".parse().unwrap(),
        approver: "alice \"a\"".into(),
        reason: "ticket 7; it's \\ urgent".into(),
    };
    let config = config(vec![account("report", &[]), account("payments", &[])], "");
    let base = super::fixture::bundle(&config);
    let bundle = base.granting("report", &[grant.source()]).unwrap();
    let info = bundle.policy("grant:G-7").unwrap();
    assert_eq!(
        (info.owner.as_deref(), info.reason.as_deref()),
        (Some("alice \"a\""), Some("ticket 7; it's \\ urgent"))
    );
    let ask = |account: &str, now: &str| {
        let to = super::Attempt::Connect {
            ip: "10.1.2.3".parse().unwrap(),
            port: 22,
            protocol: writ_abi::Protocol::Tcp,
            new_destination: true,
            executable: None,
        };
        bundle.evaluate(account, &super::fixture::state(0, now), &to).verdict
    };
    assert_eq!(ask("report", "2026-11-23T12:59:59.999Z"), writ_abi::Verdict::Allow);
    assert_eq!(ask("report", "2026-11-23T13:00:00Z"), writ_abi::Verdict::Deny);
    assert_eq!(ask("payments", "2026-11-23T12:00:00Z"), writ_abi::Verdict::Deny);
    let boundary = bundle.next_boundary("report", "2026-11-23T12:00:00Z".parse().unwrap());
    assert_eq!(boundary, Some(grant.expires));
    let without = bundle.granting("report", &[]).unwrap();
    assert!(without.policy("grant:G-7").is_none());
    assert_eq!(without.archived_grants("report"), "");
    assert_eq!(without.digest(), base.digest());
}

#[test]
fn every_action_can_be_escalated_and_its_approvals_are_writs_own() {
    let text = "@id(\"ask\") @owner(\"o\") @reason(\"r\") @decision(\"escalate\")\nforbid (principal, action, resource is Secret);";
    let mut config = config(vec![account("broker", &[])], text);
    let schema = |context: &str| crate::config::SourceFile {
        name: "schema.d/broker.cedarschema".into(),
        text: format!(
            "namespace Acme {{ type Told = {{ pipeline: String }}; }}\nentity Secret;\naction issue, revoke appliesTo \
             {{ principal: [ServiceAccount], resource: [Secret], context: {context} }};"
        ),
    };
    for context in ["Acme::Told", "{ pipeline: String }", "{}", "{ approvals: Set<String> }"] {
        config.schemas = vec![schema(context)];
        let (bundle, findings) = Bundle::compile(&config);
        let bundle = bundle.unwrap_or_else(|| panic!("{context}: {findings:#?}"));
        assert!(cedar_policy::Schema::from_cedarschema_str(bundle.archived_schema()).is_ok());
    }
    config.schemas = vec![schema("{ approvals: Long }")];
    let (_, findings) = Bundle::compile(&config);
    assert!(findings.iter().any(|finding| finding.message.contains("writ's own")), "{findings:#?}");
}

#[test]
fn an_account_that_cannot_ask_a_resolver_is_warned_of_with_or_without_policies() {
    let found = |accounts: Vec<crate::config::Account>, policies: &str| -> Vec<&'static str> {
        let mut config = config(accounts, policies);
        let resolvers = config.destinations.get_mut("host-resolvers").unwrap();
        resolvers.addresses = vec!["127.0.0.53/32".parse().unwrap()];
        let (bundle, findings) = Bundle::compile(&config);
        assert!(bundle.is_some());
        findings.iter().map(|finding| finding.code).collect()
    };
    let names = "@id(\"dns\") @owner(\"o\") @reason(\"r\") permit (principal == ServiceAccount::\"report\", action == Action::\"connect\", resource in Destination::\"host-resolvers\");";
    assert_eq!(found(vec![account("report", &[])], ""), ["resolvers-unreachable"]);
    assert_eq!(found(vec![account("report", &[])], names), [""; 0]);
    assert_eq!(found(vec![account("report", &[]), account("idle", &[])], names), ["resolvers-unreachable"]);
    // Without a match it has no process that could ask.
    let asker = crate::config::Account { matches: Vec::new(), ..account("asker", &[]) };
    assert_eq!(found(vec![asker], ""), [""; 0]);
}
