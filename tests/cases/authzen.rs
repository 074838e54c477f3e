//! The decision point as brokers and gateways meet it: OpenID AuthZEN 1.0 over the socket, with `curl`.

use std::process::Command;

use serde_json::{Value, json};
use writ_tests::{Config, Host, TcpPeer, cedar, config};

/// What an HTTP exchange gave.
struct Answer {
    status: u16,
    head: String,
    text: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_str(&self.text).expect("the answer is JSON")
    }

    #[track_caller]
    fn decision(&self) -> bool {
        self.json()["decision"].as_bool().expect("`decision` is a boolean")
    }
}

/// `curl`'s answer, by any user.
#[track_caller]
fn curl(mut command: Command, host: &Host, path: &str, arguments: &[&str]) -> Answer {
    command.args(["--silent", "--show-error", "--include", "--max-time", "40", "--unix-socket"]).arg(host.socket());
    let output = command.args(arguments).arg(format!("http://writ{path}")).output().expect("curl is installed");
    assert!(output.status.success(), "{output:?}");
    let whole = String::from_utf8(output.stdout).expect("the answer is text");
    let (head, text) = whole.split_once("\r\n\r\n").expect("the answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("the answer has a status");
    Answer { status, head: head.to_lowercase(), text: text.to_owned() }
}

const JSON: &str = "Content-Type: application/json";

#[track_caller]
fn post(host: &Host, path: &str, body: &Value) -> Answer {
    curl(Command::new("curl"), host, path, &["--header", JSON, "--data", &body.to_string()])
}

#[track_caller]
fn post_as_account(host: &Host, path: &str, body: &Value) -> Answer {
    curl(host.command("/usr/bin/curl"), host, path, &["--header", JSON, "--data", &body.to_string()])
}

const ONE: &str = "/access/v1/evaluation";
const MANY: &str = "/access/v1/evaluations";

/// The users, records and actions of the certification scenario, and the policies that its decisions follow from.
fn certification() -> Config {
    let schema = "entity user = { role?: String };\nentity record = { status?: String };\n\
                  action read, write, delete appliesTo { principal: [user], resource: [record], context: { soft?: Bool } };\n";
    let policies = r#"
@id("everyone-reads") @owner("tests") @reason("records are public")
permit (principal is user, action == Action::"read", resource is record);

@id("alice-writes") @owner("tests") @reason("alice keeps the records")
permit (principal == user::"alice", action == Action::"write", resource is record)
unless { resource has status && resource.status == "archived" };

@id("admins-write") @owner("tests") @reason("administrators may correct anything")
permit (principal is user, action == Action::"write", resource is record)
when { principal has role && principal.role == "admin" };

@id("alice-deletes-softly") @owner("tests") @reason("what is deleted softly can be restored")
permit (principal == user::"alice", action == Action::"delete", resource is record)
when { context has soft && context.soft };
"#;
    Config::new().file("schema.d/records.cedarschema", schema).file("policies.d/records.cedar", policies)
}

fn question(user: &str, action: &str, record: &str) -> Value {
    json!({
        "subject": { "type": "user", "id": user },
        "action": { "name": action },
        "resource": { "type": "record", "id": record },
    })
}

/// The question with one more member, or another value of one.
fn with(mut question: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
    question.pointer_mut(parent).expect("the parent is there")[name] = value;
    question
}

#[test]
fn certification_scenario_decides_as_mandated() {
    let host = Host::start(&certification());
    let archived = |question| with(question, "/resource/properties", json!({ "status": "archived" }));
    let active = |question| with(question, "/resource/properties", json!({ "status": "active" }));
    let admin = |question| with(question, "/subject/properties", json!({ "role": "admin" }));
    let soft =
        |soft: bool| with(question("alice", "delete", "record-1"), "/action/properties", json!({ "soft": soft }));
    let mandated = [
        (active(question("alice", "read", "record-1")), true),
        (active(question("alice", "write", "record-1")), true),
        (question("bob", "read", "record-1"), true),
        (question("bob", "write", "record-1"), false),
        (archived(question("alice", "write", "record-2")), false),
        (admin(archived(question("bob", "write", "record-2"))), true),
        (soft(true), true),
        (soft(false), false),
    ];
    for (question, decision) in &mandated {
        assert_eq!(post(&host, ONE, question).decision(), *decision, "{question}");
        // Asked again, it is answered alike.
        assert_eq!(post(&host, ONE, question).decision(), *decision, "{question}");
    }
    let batch = json!({ "evaluations": mandated.iter().map(|(question, _)| question).collect::<Vec<_>>() });
    let answers = post(&host, MANY, &batch).json();
    let decisions: Vec<_> = mandated.iter().map(|(_, decision)| json!(decision)).collect();
    let answered = answers["evaluations"].as_array().expect("there are answers");
    assert_eq!(answered.iter().map(|answer| answer["decision"].clone()).collect::<Vec<_>>(), decisions);
    assert!(answers.get("decision").is_none());

    // Every question is a decision in the log, with what it was about by value.
    let records = host.judgements();
    assert_eq!(records.len(), 24);
    let admin = records.iter().rfind(|record| record.policies() == ["admins-write"]).expect("it is recorded");
    assert_eq!(admin.text("/account"), "user::\"bob\"");
    assert_eq!(admin.text("/request/action"), "Action::\"write\"");
    assert_eq!(admin.text("/request/entities/1/attrs/status"), "archived");
    assert_eq!(admin.number("/process/uid"), Some(0));
    let verified = host.writ_output(&["verify"]);
    assert!(verified.status.success(), "{verified:?}");
    decides_again(&host, 24);
}

/// Each question is decided again from its record alone, by us and by the stock command.
fn decides_again(host: &Host, questions: u64) {
    let output = host.writ_output(&["replay", "--json", "--with-cedar-cli", "--cedar", &cedar::program()]);
    let replayed: Value = serde_json::from_slice(&output.stdout).expect("replay answers in JSON");
    assert!(output.status.success(), "{replayed:#}");
    assert_eq!((&replayed["reproduced"], &replayed["not_replayable"]), (&json!(questions), &json!({})), "{replayed:#}");
}

#[test]
fn negative_cases_are_400_and_the_request_id_comes_back() {
    let host = Host::start(&certification());
    let good = question("alice", "read", "record-1");
    let refused = |body: &Value| {
        let answer = post(&host, ONE, body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        assert!(!answer.text.is_empty());
    };
    for pointer in [
        "/subject",
        "/subject/type",
        "/subject/id",
        "/action",
        "/action/name",
        "/resource",
        "/resource/type",
        "/resource/id",
    ] {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let mut without = good.clone();
        without.pointer_mut(parent).and_then(Value::as_object_mut).expect("it is an object").remove(name);
        refused(&without);
        refused(&with(good.clone(), pointer, json!(123)));
    }
    refused(&with(good.clone(), "/subject", json!("alice")));
    refused(&with(good.clone(), "/context", json!("x")));
    for (kind, body) in [
        ("Content-Type: text/plain", good.to_string().as_str()),
        ("Content-Type:", good.to_string().as_str()),
        (JSON, "{\"subject\":"),
        (JSON, "[]"),
        (JSON, ""),
    ] {
        let answer = curl(
            Command::new("curl"),
            &host,
            ONE,
            &["--header", kind, "--header", "X-Request-ID: r-1", "--data", body],
        );
        assert_eq!(answer.status, 400, "{kind} {body}: {}", answer.text);
        assert!(answer.head.contains("x-request-id: r-1"), "{}", answer.head);
    }
    let chatty = with(with(good.clone(), "/unknown", json!({ "a": 1 })), "/subject/properties", json!({ "dept": "x" }));
    let id = ["--header", JSON, "--header", "X-Request-ID: Mixed-Case 7", "--data", &chatty.to_string()];
    let answer = curl(Command::new("curl"), &host, ONE, &id);
    assert!(answer.decision());
    assert!(answer.head.contains("x-request-id: mixed-case 7"), "{}", answer.head);
    // A question that no schema knows is answered, and not permitted.
    assert!(!post(&host, ONE, &question("alice", "fly", "record-1")).decision());
    assert!(!post(&host, ONE, &with(good, "/subject/type", json!("no such type"))).decision());
    let metadata = curl(Command::new("curl"), &host, "/.well-known/authzen-configuration", &[]).json();
    assert_eq!(metadata["access_evaluation_endpoint"], "https://localhost/access/v1/evaluation");
}

#[test]
fn batches_end_where_their_semantic_says() {
    let host = Host::start(&certification());
    let asked = |semantic: &str| {
        let mut batch = question("alice", "read", "record-1");
        batch["evaluations"] = json!([
            {}, { "action": { "name": "write" }, "subject": { "type": "user", "id": "bob" } }, { "action": 3 }, {}
        ]);
        batch["options"] = json!({ "evaluations_semantic": semantic });
        let answers = post(&host, MANY, &batch).json();
        let answers = answers["evaluations"].as_array().expect("there are answers").clone();
        answers.iter().map(|answer| answer["decision"].as_bool().expect("a boolean")).collect::<Vec<_>>()
    };
    assert_eq!(asked("execute_all"), [true, false, false, true]);
    assert_eq!(asked("deny_on_first_deny"), [true, false]);
    assert_eq!(asked("permit_on_first_permit"), [true]);
    // Without evaluations it is a single question.
    assert!(post(&host, MANY, &question("alice", "read", "record-1")).decision());
    let wrong = with(question("alice", "read", "record-1"), "/evaluations", json!({}));
    assert_eq!(post(&host, MANY, &wrong).status, 400);
}

fn connect(account: &str, to: &TcpPeer) -> Value {
    json!({
        "subject": { "type": "service_account", "id": account },
        "action": { "name": "connect" },
        "resource": { "type": "Endpoint", "id": format!("{}/tcp", to.address) },
    })
}

#[test]
fn an_account_asks_about_itself_and_about_nobody_else() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let config = Config::new().destination("open", open.address).destination("closed", closed.address);
    let other = "[service-account.other]\nowner = \"tests\"\nmatch = { user = \"nobody\" }\n";
    let host = Host::start(&config.permit("to-open", "open").file("service-accounts.d/other.toml", other));

    let answer = post_as_account(&host, ONE, &connect(config::ACCOUNT, &open)).json();
    assert_eq!(answer["decision"], true);
    assert_eq!(answer["context"]["policy"]["ids"], json!(["to-open"]));
    assert!(answer["context"]["valid_until"].is_string());
    assert!(!post_as_account(&host, ONE, &connect(config::ACCOUNT, &closed)).decision());
    assert_eq!(post_as_account(&host, ONE, &connect("other", &open)).status, 403);
    assert!(!post(&host, ONE, &connect("other", &open)).decision());

    let gone = curl(
        Command::new("curl"),
        &host,
        &format!("/v1/accounts/{}/offboard", config::ACCOUNT),
        &["--header", JSON, "--data", "{\"reason\":\"left\"}"],
    );
    assert_eq!(gone.status, 200, "{}", gone.text);
    let answer = post_as_account(&host, ONE, &connect(config::ACCOUNT, &open)).json();
    assert_eq!(answer["decision"], false);
    assert_eq!(answer["context"]["reason_codes"], json!(["offboarded"]));

    let records = host.judgements();
    assert_eq!(records[0].text("/identified_by/0"), "caller");
    assert_eq!(records[0].text("/process/executable"), "/usr/bin/curl");
    let refused = host.records().into_iter().filter(|record| record.text("/event") == "refused").count();
    assert_eq!(refused, 1);
}

#[test]
fn in_observe_mode_the_answer_is_yes_and_says_what_it_would_have_been() {
    let peer = TcpPeer::new();
    let mut config = Config::new();
    config.account = "mode = \"observe\"".to_owned();
    let host = Host::start(&config.destination("web", peer.address));

    let answer = post(&host, ONE, &connect(config::ACCOUNT, &peer)).json();
    assert_eq!(answer["decision"], true);
    assert_eq!(
        (&answer["context"]["verdict"], &answer["context"]["effective_mode"]),
        (&json!("deny"), &json!("observe"))
    );
    // What cannot be judged is never observed away.
    let nowhere = with(connect(config::ACCOUNT, &peer), "/resource/id", json!("somewhere"));
    assert!(!post(&host, ONE, &nowhere).decision());

    let records = host.judgements();
    assert_eq!((records[0].text("/type"), records[0].text("/verdict")), ("observation", "deny"));
    assert_eq!((records[1].text("/type"), records[1].text("/reason_code")), ("decision", "invalid-request"));
    assert_eq!(records[0].text("/identified_by/0"), "subject");
}

#[test]
fn an_escalated_question_waits_for_a_person() {
    let peer = TcpPeer::new();
    let escalating = format!(
        "@id(\"ask-first\")\n@owner(\"tests\")\n@reason(\"a person decides\")\n@decision(\"escalate\")\nforbid (\n  principal == \
         ServiceAccount::\"{}\",\n  action == Action::\"connect\",\n  resource in Destination::\"web\"\n);\n",
        config::ACCOUNT
    );
    let config = Config::new().destination("web", peer.address).permit("to-web", "web");
    let host = Host::start(&config.file("policies.d/ask-first.cedar", &escalating));
    let body = connect(config::ACCOUNT, &peer).to_string();

    let impatient = curl(
        host.command("/usr/bin/curl"),
        &host,
        ONE,
        &["--header", JSON, "--header", "Prefer: wait=1", "--data", &body],
    );
    let answer = impatient.json();
    assert_eq!((&answer["decision"], &answer["context"]["verdict"]), (&json!(false), &json!("escalate")));
    assert!(impatient.head.contains("preference-applied: wait=1"));
    let id = answer["context"]["escalation"]["id"].as_str().expect("the escalation is named").to_owned();

    std::thread::scope(|scope| {
        let patient = scope.spawn(|| {
            let arguments = ["--header", JSON, "--header", "Prefer: wait=30", "--data", &body];
            curl(host.command("/usr/bin/curl"), &host, ONE, &arguments).decision()
        });
        writ_tests::wait::until("the question is asked again", || {
            (host.judgements().iter().filter(|record| record.text("/verdict") == "escalate").count() > 1).then_some(())
        });
        assert!(!patient.is_finished());
        let path = format!("/v1/escalations/{id}/approve");
        let approval = json!({ "ttl": "5m", "reason": "seen" });
        assert_eq!(post(&host, &path, &approval).status, 200);
        assert!(patient.join().expect("the asker got an answer"));
    });
    // The approval is for curl, by whom the question was asked.
    host.attempt("tcp", &[peer.address]).assert_failed("EACCES");
}

#[test]
fn a_question_that_names_no_endpoint_does_not_spoil_the_replay() {
    let host = Host::start(&Config::new());
    for resource in ["foo", "127.0.0.1:99999/tcp", ""] {
        for action in ["connect", "open-socket"] {
            let body = json!({
                "subject": { "type": "service_account", "id": config::ACCOUNT },
                "action": { "name": action },
                "resource": { "type": "Endpoint", "id": resource },
            });
            let answer = host.request("POST", ONE, body);
            assert_eq!(answer.body["decision"], json!(false), "{action} {resource}");
        }
    }
    let replay = host.writ_output(&["replay", "--json"]);
    assert!(replay.status.success(), "{replay:?}");
}
