//! The secrets broker of docs/examples: a key only on a permit, and no longer than what permitted it holds.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use writ_tests::{Config, Host, config, user, wait};

const BROKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/broker.py");

/// The broker, running as an account of its own.
struct Broker {
    directory: TempDir,
    child: Child,
}

impl Broker {
    #[track_caller]
    fn start(host: &Host) -> Self {
        Self::start_with(host, None)
    }

    #[track_caller]
    fn start_with(host: &Host, posture: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().expect("cannot make a directory");
        // The broker makes its socket here, and the account connects to it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("cannot open the directory");
        let program = directory.path().join("broker.py");
        fs::copy(BROKER, &program).expect("cannot copy the broker");
        let output = File::create(directory.path().join("output")).expect("cannot make the output file");
        let mut command = host.command_as(&user::ensure(user::STRANGER), "/usr/bin/python3");
        command.arg(program).arg("--writ").arg(host.socket()).arg("--listen").arg(directory.path().join("broker.sock"));
        command.arg("--account").arg(format!("{}={}", user::SERVICE, config::ACCOUNT));
        if let Some(posture) = posture {
            command.arg("--posture").arg(posture);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("cannot share the file")).stderr(output);
        let broker = Self { child: command.spawn().expect("cannot run the broker"), directory };
        broker.wait_for("watching");
        broker
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("broker.sock")
    }

    #[track_caller]
    fn wait_for(&self, line: &str) {
        self.wait_for_times(line, 1);
    }

    #[track_caller]
    fn wait_for_times(&self, line: &str, times: usize) {
        let output = || fs::read_to_string(self.directory.path().join("output")).unwrap_or_default();
        let found = wait::within(wait::PATIENCE, || (output().matches(line).count() >= times).then_some(()));
        assert!(found.is_some(), "the broker did not say `{line}` {times} times: {}", output());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request by the account under test; status and body.
#[track_caller]
fn ask(mut command: Command, socket: &Path, arguments: &[&str]) -> (u16, Value) {
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}", "--unix-socket"]).arg(socket);
    let output = command.args(arguments).output().expect("curl is installed");
    assert!(output.status.success(), "{output:?}");
    let whole = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, status) = whole.rsplit_once('\n').expect("there is a status");
    (status.parse().expect("the status is a number"), serde_json::from_str(text).unwrap_or_default())
}

fn credentials() -> Config {
    let schema = "entity Credential;\naction issue appliesTo { principal: [ServiceAccount], resource: [Credential], \
                  context: { risk: Long, signals: Set<String> } };\n";
    let policies = format!(
        r#"
@id("ci-gets-deploy-key") @owner("tests") @reason("releases are deployed by it") @scope("deploy read") @max_ttl("10m")
permit (principal == ServiceAccount::"{0}", action == Action::"issue", resource == Credential::"deploy-key");

@id("not-what-was-reviewed") @owner("tests") @reason("the repository is not the reviewed one")
forbid (principal, action == Action::"issue", resource)
when {{ context.signals.contains("ci.repository-changed") || context.risk >= 70 }};

@id("broker-asks") @owner("tests") @reason("it issues keys to it")
permit (principal == ServiceAccount::"broker", action == Action::"evaluate", resource == ServiceAccount::"{0}");
"#,
        config::ACCOUNT
    );
    let broker = format!("[service-account.broker]\nowner = \"tests\"\nmatch = {{ user = \"{}\" }}\n", user::STRANGER);
    user::ensure(user::STRANGER);
    Config::new()
        .file("schema.d/credentials.cedarschema", schema)
        .file("policies.d/credentials.cedar", &policies)
        .file("service-accounts.d/broker.toml", &broker)
        .file(
            "signals.d/ci.toml",
            "[signal.\"ci.repository-changed\"]\nrisk = 40\nttl = \"1h\"\nflag = true\nfrom = [\"root\"]\n",
        )
}

#[test]
fn a_key_lives_while_its_reasons_do() {
    let host = Host::start(&credentials());
    let broker = Broker::start(&host);
    let as_account = |arguments: &[&str]| ask(host.command("/usr/bin/curl"), &broker.socket(), arguments);
    let key = "http://broker/keys/deploy-key";

    let (status, first) = as_account(&["--request", "POST", key]);
    assert_eq!((status, &first["scope"]), (200, &json!("deploy read")), "{first}");
    assert_eq!(as_account(&["--request", "POST", "http://broker/keys/root-key"]).0, 403);
    let (status, renewed) = as_account(&["--request", "POST", key]);
    assert_eq!((status, &renewed["key"]), (200, &first["key"]));
    assert_eq!(as_account(&[key]).0, 200);

    let signal = json!({ "account": config::ACCOUNT, "kind": "ci.repository-changed", "evidence": "fork" }).to_string();
    let (status, said) = ask(
        Command::new("curl"),
        &host.socket(),
        &["--header", "Content-Type: application/json", "--data", &signal, "http://writ/v1/signals"],
    );
    assert_eq!(status, 200, "{said}");
    broker.wait_for(&format!("revoked deploy-key of {}", config::ACCOUNT));
    assert_eq!(as_account(&[key]).0, 404);
    let (status, refused) = as_account(&["--request", "POST", key]);
    assert_eq!((status, &refused["reason"]), (403, &json!("the repository is not the reviewed one")));

    // Each answer the broker acted on is in the log, with who asked.
    let records = host.judgements();
    let verdicts: Vec<_> = records.iter().map(|record| record.text("/verdict").to_owned()).collect();
    assert_eq!(verdicts, ["allow", "deny", "allow", "deny", "deny"]);
    let stranger = user::ensure(user::STRANGER).uid.as_raw();
    for record in &records {
        assert_eq!((record.text("/account"), record.text("/action")), (config::ACCOUNT, "issue"));
        assert_eq!(record.number("/process/uid"), Some(stranger.into()));
    }
    assert_eq!(records[4].text("/signals/0/kind"), "ci.repository-changed");
    assert_eq!(records[4].policies(), ["not-what-was-reviewed"]);
    assert_eq!(records[4].text("/reason_code"), "policy");
}

/// The shipped example, for the account under test; what is attested holds for so long.
fn example(attested: &str) -> Config {
    let policies = include_str!("../../docs/examples/credentials/policies.d/credentials.cedar");
    let signals = include_str!("../../docs/examples/credentials/signals.d/posture.toml");
    let asks = format!(
        "@id(\"broker-asks\") @owner(\"tests\") @reason(\"it issues keys to it\")\npermit (principal == \
         ServiceAccount::\"broker\", action == Action::\"evaluate\", resource == ServiceAccount::\"{}\");\n",
        config::ACCOUNT
    );
    let named = policies.replace("ServiceAccount::\"ci\"", &format!("ServiceAccount::\"{}\"", config::ACCOUNT));
    assert_ne!(named, policies, "the example names its account");
    let brief = signals.replace("\"10m\"", &format!("\"{attested}\""));
    assert_ne!(brief, signals, "the example's heartbeat has that time to live");
    credentials()
        .file(
            "schema.d/credentials.cedarschema",
            include_str!("../../docs/examples/credentials/schema.d/credentials.cedarschema"),
        )
        .file("policies.d/credentials.cedar", &named)
        .file("policies.d/asks.cedar", &asks)
        .file("signals.d/posture.toml", &brief)
}

#[test]
fn the_examples_issue_by_posture_and_only_while_the_host_is_attested() {
    let host = Host::start(&example("20s"));
    let directory = tempfile::tempdir().expect("cannot make a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("cannot open the directory");
    let posture = directory.path().join("posture.json");
    let known = |repository: &str| {
        let properties = json!({
            "repository": repository, "ref": "refs/heads/main", "job": "release",
            "image": "registry.example/ci@sha256:0f3a", "host": "builder-7",
        });
        let all = json!({ config::ACCOUNT: { "id": "run/4711", "properties": properties } });
        fs::write(&posture, all.to_string()).expect("cannot write the posture");
    };
    known("example/payments");
    let broker = Broker::start_with(&host, Some(&posture));
    let issue = || {
        let arguments = ["--request", "POST", "http://broker/keys/deploy-key"];
        let (status, said) = ask(host.command("/usr/bin/curl"), &broker.socket(), &arguments);
        (status, said["reason"].as_str().unwrap_or_default().to_owned())
    };
    let tell = |kind: &str| drop(host.writ_json(&["signal", "send", "--account", config::ACCOUNT, "--kind", kind]));
    let revoked = format!("revoked deploy-key of {}", config::ACCOUNT);

    assert_eq!(issue(), (403, "the host has not been attested lately".to_owned()));
    tell("posture.host-attested");
    assert_eq!(issue(), (200, String::new()));
    // Another repository than the one whose job was promised the key.
    known("example/fork");
    assert_eq!(issue().0, 403);
    known("example/payments");
    tell("posture.host-attested");
    assert_eq!(issue(), (200, String::new()));
    // Nobody attests it again: the key goes by itself.
    broker.wait_for(&revoked);
    assert_eq!(issue(), (403, "the host has not been attested lately".to_owned()));
    tell("posture.host-attested");
    assert_eq!(issue(), (200, String::new()));
    tell("posture.image-changed");
    broker.wait_for_times(&revoked, 2);
    tell("posture.host-attested");
    assert_eq!(issue(), (403, "repository, job, image or host are not what was reviewed".to_owned()));

    let judgements = host.judgements();
    let allowed = judgements.iter().find(|record| record.text("/verdict") == "allow").expect("a key was issued");
    assert_eq!(allowed.text("/request/context/posture/__entity/id"), "run/4711");
    let entities = allowed.0["request"]["entities"].as_array().expect("what the broker said is on record");
    let described = entities.iter().find(|entity| entity["uid"]["type"] == "Posture").expect("the posture is");
    assert_eq!(described["attrs"]["repository"], "example/payments");
    // The account sees why, in its own words.
    let why = host.writ_as(host.service_user(), &["why", "--json"]);
    let why: Value = serde_json::from_slice(&why.stdout).expect("it is JSON");
    let denials = why["accounts"][0]["denials"].as_array().expect("there are denials");
    let latest = &denials[0];
    assert_eq!(latest["to"], "issue Credential::\"deploy-key\"", "{why}");
    assert_eq!(latest["policies"][0]["id"], "not-what-was-reviewed", "{why}");
    assert!(latest["next"].as_str().expect("what to do is said").contains("ask platform"), "{why}");

    // Posture and all: what was decided follows from the records.
    let output = host.writ_output(&["replay", "--json"]);
    let replayed: Value = serde_json::from_slice(&output.stdout).expect("replay answers in JSON");
    assert!(output.status.success(), "{replayed:#}");
    assert_eq!(replayed["not_replayable"], json!({}), "{replayed:#}");
}

#[test]
fn changes_are_followed_from_where_one_was() {
    let reset = |host: &Host, since: u64| {
        let url = format!("http://writ/v1/changes?since={since}&wait=0");
        ask(Command::new("curl"), &host.socket(), &[&url]).1["reset"].clone()
    };
    let mut host = Host::start(&credentials());
    let page = |query: &str| {
        let (status, page) = ask(Command::new("curl"), &host.socket(), &[&format!("http://writ/v1/changes?{query}")]);
        assert_eq!(status, 200, "{page}");
        page
    };
    let next = page("")["next"].as_u64().expect("there is a place to begin");
    assert_eq!(page(&format!("since={next}&wait=0"))["changes"], json!([]));
    let signal = json!({ "account": config::ACCOUNT, "kind": "ci.repository-changed" }).to_string();
    let arguments = ["--header", "Content-Type: application/json", "--data", &signal, "http://writ/v1/signals"];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| page(&format!("since={next}&wait=30")));
        assert_eq!(ask(Command::new("curl"), &host.socket(), &arguments).0, 200);
        let answered = waiting.join().expect("the asker got an answer");
        assert_eq!(answered["changes"][0]["account"], config::ACCOUNT);
        assert_eq!(answered["changes"][0]["record"]["cause"], "signal");
        let sequence = answered["changes"][0]["sequence"].as_u64().expect("a change has its index");
        assert!(sequence >= next);
        let later = answered["next"].as_u64().expect("there is a place to go on");
        assert_eq!(page(&format!("since={later}&wait=0"))["changes"], json!([]));
    });
    assert_eq!(reset(&host, next), false);
    // Others see their own only.
    let (_, others) = ask(
        host.command("/usr/bin/curl"),
        &host.socket(),
        &[&format!("http://writ/v1/changes?since={next}&wait=0&account=broker")],
    );
    assert_eq!(others["changes"], json!([]));
    // A daemon that starts does not know what was answered before: whoever comes back is told to ask again.
    host.kill_daemon();
    host.run_daemon();
    assert_eq!(reset(&host, next), true);
}
