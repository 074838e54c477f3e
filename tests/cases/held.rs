//! Questions about an action of the operator's own that wait for a person: exactly what was asked is approved, and no more.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use writ_tests::{Config, Host, config, wait};

const ONE: &str = "/access/v1/evaluation";

/// Keys are issued once a person has agreed, and a user of the application's own deletes once one has.
fn escalating() -> Config {
    let schema = "entity Credential;\nentity user;\ntype Told = { pipeline?: String };\n\
                  action issue, destroy appliesTo { principal: [ServiceAccount, user], resource: [Credential], context: Told };\n";
    let policies = r#"
@id("keys") @owner("tests") @reason("it deploys")
permit (principal, action in [Action::"issue", Action::"destroy"], resource);

@id("a-person-first") @owner("tests") @reason("the key opens production") @decision("escalate")
forbid (principal, action, resource is Credential)
when { resource == Credential::"prod-key" };

@id("never-root") @owner("tests") @reason("nobody gets it")
forbid (principal, action == Action::"issue", resource == Credential::"root-key");
"#;
    Config::new().file("schema.d/keys.cedarschema", schema).file("policies.d/keys.cedar", policies)
}

fn question(kind: &str, id: &str, action: &str, key: &str) -> Value {
    json!({
        "subject": { "type": kind, "id": id },
        "action": { "name": action },
        "resource": { "type": "Credential", "id": key },
    })
}

fn issue(key: &str) -> Value {
    question("service_account", config::ACCOUNT, "issue", key)
}

#[track_caller]
fn ask(host: &Host, body: &Value) -> Value {
    let (status, answer) = host.api().post_json(ONE, body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[track_caller]
fn escalation(answer: &Value) -> String {
    assert_eq!((&answer["decision"], &answer["context"]["verdict"]), (&json!(false), &json!("escalate")), "{answer}");
    answer["context"]["escalation"]["id"].as_str().expect("the escalation is named").to_owned()
}

/// A question held by a `curl` of its own.
fn held(host: &Host, body: &Value, seconds: u32) -> Child {
    let mut command = Command::new("curl");
    command.args(["--silent", "--include", "--unix-socket"]).arg(host.socket());
    command.args(["--header", "Content-Type: application/json", "--header", &format!("Prefer: wait={seconds}")]);
    command.args(["--data", &body.to_string(), &format!("http://writ{ONE}")]);
    command.stdout(Stdio::piped()).spawn().expect("curl is installed")
}

fn escalated(host: &Host) -> usize {
    host.judgements().iter().filter(|record| record.text("/verdict") == "escalate").count()
}

#[test]
fn an_approved_question_is_permitted_and_only_that_one() {
    let host = Host::start(&escalating());
    let first = ask(&host, &issue("prod-key"));
    let id = escalation(&first);
    assert_eq!(first["context"]["policy"]["ids"], json!(["a-person-first"]));
    assert_eq!(first["context"]["escalation"]["status"], "pending");
    assert_eq!(escalation(&ask(&host, &issue("prod-key"))), id, "repeats are one escalation");
    let other = escalation(&ask(&host, &question("service_account", config::ACCOUNT, "destroy", "prod-key")));
    let user = escalation(&ask(&host, &question("user", "alice", "issue", "prod-key")));
    assert!(id != other && other != user);
    // A forbid that no person may lift is a denial, and nobody is asked.
    let root = ask(&host, &issue("root-key"));
    assert_eq!((&root["context"]["verdict"], &root["context"]["escalation"]), (&json!("deny"), &Value::Null));

    let listed = host.writ_json(&["escalation", "list", "--json"]);
    let listed = listed.as_array().expect("a list").iter().find(|one| one["id"] == json!(id)).expect("it is listed");
    assert_eq!(
        (&listed["account"], &listed["action"], &listed["resource"]),
        (&json!(config::ACCOUNT), &json!("Action::\"issue\""), &json!("Credential::\"prod-key\""))
    );
    assert!(host.writ_output(&["escalation", "approve", &user, "--ttl", "5m", "--reason", "seen"]).status.success());
    assert!(host.writ_output(&["escalation", "deny", &other, "--reason", "not today"]).status.success());
    // The last, because it ends first.
    let approved = host.writ_output(&["escalation", "approve", &id, "--ttl", "8s", "--reason", "release 7"]);
    assert!(approved.status.success(), "{approved:?}");

    let granted = ask(&host, &issue("prod-key"));
    assert_eq!(granted["decision"], true, "{granted}");
    assert_eq!(ask(&host, &question("user", "alice", "issue", "prod-key"))["decision"], true);
    escalation(&ask(&host, &question("user", "bob", "issue", "prod-key")));
    let refused = ask(&host, &question("service_account", config::ACCOUNT, "destroy", "prod-key"));
    assert_eq!((&refused["decision"], &refused["context"]["escalation"]["status"]), (&json!(false), &json!("denied")));

    // What permitted it is in the record by value, and the approval ends by itself.
    let permitted = host.judgements().into_iter().rfind(|record| record.text("/verdict") == "allow").expect("recorded");
    assert_eq!(permitted.text("/request/context/approvals/0"), "a-person-first");
    // The last was the user's.
    assert_eq!((permitted.text("/grant/id"), permitted.text("/grant/reason")), (user.as_str(), "seen"));
    wait::until("the approval is over", || (ask(&host, &issue("prod-key"))["decision"] == false).then_some(()));
    let states = || -> Vec<String> {
        let records = host.records_of("escalation");
        let own = records.iter().filter(|record| record.text("/escalation") == id);
        own.map(|record| record.text("/state").to_owned()).collect()
    };
    wait::until("its end is recorded", || (states() == ["opened", "approved", "expired"]).then_some(()));
    assert!(host.writ_output(&["verify"]).status.success());
}

#[test]
fn an_approval_is_for_the_policies_it_was_given_under() {
    let config = escalating();
    let host = Host::start(&config);
    let id = escalation(&ask(&host, &issue("prod-key")));
    assert!(host.writ_output(&["escalation", "approve", &id, "--ttl", "5m", "--reason", "ok"]).status.success());
    assert_eq!(ask(&host, &issue("prod-key"))["decision"], true);
    let more = "@id(\"more\") @owner(\"tests\") @reason(\"stricter\")\nforbid (principal, action == Action::\"issue\", \
                resource == Credential::\"another\");\n";
    host.configure(&config.file("policies.d/more.cedar", more));
    assert!(host.writ_output(&["reload"]).status.success());
    assert!(escalation(&ask(&host, &issue("prod-key"))) != id);
}

#[test]
fn a_held_question_ends_with_an_answer_with_patience_or_with_its_asker() {
    let host = Host::start(&escalating());
    let body = issue("prod-key");
    let id = escalation(&ask(&host, &body));
    // The account itself cannot lift it.
    let own = format!("http://writ/v1/escalations/{id}/approve");
    let by_itself = host
        .command("/usr/bin/curl")
        .args(["--silent", "--data", "{\"ttl\":\"5m\",\"reason\":\"x\"}", "--unix-socket"])
        .arg(host.socket())
        .arg(own)
        .output()
        .expect("curl is installed");
    assert!(String::from_utf8_lossy(&by_itself.stdout).contains("not-permitted"), "{by_itself:?}");

    let mut gone = held(&host, &body, 600);
    wait::until("it is held", || (escalated(&host) == 2).then_some(()));
    gone.kill().expect("curl can be killed");
    gone.wait().expect("curl has ended");
    let patient = held(&host, &body, 60);
    wait::until("it is held", || (escalated(&host) == 3).then_some(()));
    // Others are answered meanwhile.
    assert_eq!(ask(&host, &issue("test-key"))["decision"], true);
    assert!(host.writ_output(&["escalation", "approve", &id, "--ttl", "5m", "--reason", "ok"]).status.success());
    let output = patient.wait_with_output().expect("curl has ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("\"decision\":true") && text.contains("preference-applied: wait=60"), "{text}");
    // The one whose asker hung up was not asked again.
    assert_eq!(host.judgements().iter().filter(|record| record.text("/verdict") == "allow").count(), 2);

    let id = escalation(&ask(&host, &question("service_account", config::ACCOUNT, "destroy", "prod-key")));
    let refused = held(&host, &question("service_account", config::ACCOUNT, "destroy", "prod-key"), 60);
    wait::until("it is held", || (escalated(&host) == 5).then_some(()));
    assert!(host.writ_output(&["escalation", "deny", &id, "--reason", "no"]).status.success());
    let output = refused.wait_with_output().expect("curl has ended");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"status\":\"denied\""), "{output:?}");
}

#[test]
fn more_held_questions_than_are_kept_are_answered_at_once() {
    let host = Host::start(&escalating());
    let body = issue("prod-key");
    ask(&host, &body);
    let mut waiting: Vec<Child> = (0..64).map(|_| held(&host, &body, 600)).collect();
    wait::until("all are held", || (escalated(&host) == 65).then_some(()));
    let text = held(&host, &body, 600).wait_with_output().expect("curl has ended").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("\"decision\":false") && !text.contains("preference-applied"), "{text}");
    for child in &mut waiting {
        child.kill().expect("curl can be killed");
        child.wait().expect("curl has ended");
    }
    // Their places are free again.
    let patience =
        || String::from_utf8_lossy(&held(&host, &body, 1).wait_with_output().expect("ended").stdout).into_owned();
    wait::until("a place is free", || patience().contains("preference-applied: wait=1").then_some(()));
}
