//! The decision point over HTTPS, with certificates by the stock `openssl` and questions by `curl`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use writ_tests::{Config, Host, TcpPeer, config, wait};

const ONE: &str = "/access/v1/evaluation";

#[track_caller]
fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().expect("openssl");
    assert!(output.status.success(), "{arguments}: {output:?}");
}

/// An authority, a server's certificate, and a client's that it signed; and a client's that another one signed.
pub(crate) fn certificates() -> TempDir {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let path = directory.path();
    for (authority, client) in [("ca", "broker"), ("other", "stranger")] {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(
            path,
            &format!("req -x509 {key} -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"),
        );
        for (name, host) in [(client, format!("DNS:{client}.example")), ("server", "IP:127.0.0.1".to_owned())] {
            let usage = if name == "server" { "serverAuth" } else { "clientAuth" };
            if name == "server" && authority == "other" {
                continue;
            }
            fs::write(path.join("ext"), format!("subjectAltName={host}\nextendedKeyUsage={usage}\n")).expect("written");
            openssl(path, &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
            openssl(
                path,
                &format!(
                    "x509 -req -days 1 -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile \
                     ext -out {name}.pem"
                ),
            );
        }
    }
    directory
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port is free")
}

fn sha256(text: &str) -> String {
    let output =
        Command::new("sh").args(["-c", &format!("printf %s '{text}' | sha256sum")]).output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a digest").to_owned()
}

fn policies() -> String {
    format!(
        r#"
@id("keys") @owner("tests") @reason("it deploys")
permit (principal == ServiceAccount::"{0}", action == Action::"issue", resource == Credential::"key");

@id("broker-asks") @owner("tests") @reason("it issues keys to it")
permit (principal == ServiceAccount::"broker", action == Action::"evaluate", resource == ServiceAccount::"{0}");
"#,
        config::ACCOUNT
    )
}

fn configured(directory: &Path, listen: SocketAddr, mutual: bool) -> Config {
    let at = directory.display();
    let mut config = Config::new();
    config.agent = format!(
        "[https]\nlisten = \"{listen}\"\ncertificate = \"{at}/server.pem\"\nkey = \"{at}/server.key\"\n\
         client-ca = \"{at}/ca.pem\"\n{}\
         [https.callers.vault]\naccount = \"broker\"\ncertificate = \"broker.example\"\n\
         [https.callers.idle]\naccount = \"idle\"\n",
        if mutual { String::new() } else { format!("tokens = \"{at}/tokens\"\n") }
    );
    fs::write(directory.join("tokens"), format!("vault sha256-{}\nidle sha256-{}\n", sha256("s3cret"), sha256("idle")))
        .expect("written");
    let account = |name: &str| format!("[service-account.{name}]\nowner = \"tests\"\n");
    config
        .file("schema.d/keys.cedarschema", "entity Credential;\naction issue appliesTo { principal: [ServiceAccount], resource: [Credential], context: {} };\n")
        .file("policies.d/keys.cedar", &policies())
        .file("service-accounts.d/broker.toml", &account("broker"))
        .file("service-accounts.d/idle.toml", &account("idle"))
}

/// `curl`'s status, head and body; status 0 where there was no answer.
fn curl(directory: &Path, listen: SocketAddr, path: &str, arguments: &[&str]) -> (u16, String, String) {
    let mut command = Command::new("curl");
    command.current_dir(directory).args(["--silent", "--include", "--max-time", "20", "--cacert", "ca.pem"]);
    let output = command.args(arguments).arg(format!("https://{listen}{path}")).output().expect("curl is installed");
    let whole = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((head, body)) = whole.split_once("\r\n\r\n") else { return (0, whole, String::new()) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

fn question() -> String {
    json!({
        "subject": { "type": "service_account", "id": config::ACCOUNT },
        "action": { "name": "issue" },
        "resource": { "type": "Credential", "id": "key" },
    })
    .to_string()
}

const JSON: &str = "Content-Type: application/json";

#[test]
fn declared_callers_ask_by_certificate_or_token_and_nobody_else_does() {
    let directory = certificates();
    let (at, listen) = (directory.path(), free_port());
    let host = Host::start(&configured(at, listen, false));
    let ask = |more: &[&str]| {
        let body = question();
        let mut arguments = vec!["--header", JSON, "--header", "X-Request-ID: r-9", "--data", &body];
        arguments.extend(more);
        curl(at, listen, ONE, &arguments)
    };
    for who in [&["--header", "Authorization: Bearer s3cret"][..], &["--cert", "broker.pem", "--key", "broker.key"]] {
        let (status, head, body) = ask(who);
        assert_eq!(status, 200, "{who:?} {head} {body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer["decision"], true, "{answer}");
        assert!(head.contains("x-request-id: r-9"), "{head}");
    }
    // Known, and not permitted to ask about this account.
    assert_eq!(ask(&["--header", "Authorization: Bearer idle"]).0, 403);
    for who in [&[][..], &["--header", "Authorization: Bearer S3cret"], &["--header", "Authorization: Basic czNjcmV0"]]
    {
        let (status, head, _) = ask(who);
        assert_eq!(status, 401, "{who:?}");
        assert!(head.contains("www-authenticate: bearer"), "{head}");
    }
    // A certificate of another authority does not get as far as a request, nor does plain HTTP or an old protocol.
    assert_eq!(ask(&["--cert", "stranger.pem", "--key", "stranger.key"]).0, 0);
    assert_eq!(ask(&["--tls-max", "1.1"]).0, 0);
    // Only the decision point is here.
    for path in ["/v1/status", "/v1/escalations", "/v1/signals", "/v1/why", "/v1/uninstall"] {
        assert_eq!(curl(at, listen, path, &["--header", "Authorization: Bearer s3cret"]).0, 404, "{path}");
    }
    let (_, _, metadata) = curl(at, listen, "/.well-known/authzen-configuration", &[]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    assert_eq!(metadata["policy_decision_point"], json!(format!("https://{listen}")));
    assert_eq!(metadata["access_evaluation_endpoint"], json!(format!("https://{listen}{ONE}")));

    // A token that was taken out opens nothing any more, and an offboarded caller is nobody's broker.
    fs::write(at.join("tokens"), format!("idle sha256-{}\n", sha256("idle"))).expect("written");
    assert_eq!(ask(&["--header", "Authorization: Bearer s3cret"]).0, 401);
    assert!(host.writ_output(&["account", "offboard", "broker", "--reason", "left"]).status.success());
    assert_eq!(ask(&["--cert", "broker.pem", "--key", "broker.key"]).0, 403);

    let records = host.judgements();
    assert_eq!(records.len(), 2);
    let asked = |record: &writ_tests::Record| {
        (
            record.text("/asked_by/caller").to_owned(),
            record.text("/asked_by/account").to_owned(),
            record.text("/asked_by/by").to_owned(),
        )
    };
    let by = |by: &str| ("vault".to_owned(), "broker".to_owned(), by.to_owned());
    assert_eq!((asked(&records[0]), asked(&records[1])), (by("token"), by("certificate")));
    let refused = host.records().into_iter().filter(|record| record.text("/operation") == "authenticate").count();
    assert!(refused >= 1);
}

#[test]
fn without_tokens_a_certificate_is_demanded_and_new_ones_are_taken_up() {
    let directory = certificates();
    let (at, listen) = (directory.path(), free_port());
    let _host = Host::start(&configured(at, listen, true));
    let ask = |more: &[&str]| {
        let body = question();
        let mut arguments = vec!["--header", JSON, "--data", &body];
        arguments.extend(more);
        curl(at, listen, ONE, &arguments).0
    };
    assert_eq!(ask(&["--header", "Authorization: Bearer s3cret"]), 0);
    let with = ["--cert", "broker.pem", "--key", "broker.key"];
    assert_eq!(ask(&with), 200);
    // The server's certificate is renewed in place; half a renewal leaves the one before in force.
    let renewed = certificates();
    fs::write(at.join("server.pem"), "no certificate").expect("written");
    assert_eq!(ask(&with), 200);
    for file in ["ca.pem", "server.key", "server.pem", "broker.pem", "broker.key"] {
        fs::copy(renewed.path().join(file), at.join(file)).expect("copied");
    }
    wait::until("the new certificates are used", || (ask(&with) == 200).then_some(()));
}

#[test]
fn half_open_handshakes_cost_their_own_address_and_end_by_themselves() {
    let directory = certificates();
    let (at, listen) = (directory.path(), free_port());
    let peer = TcpPeer::new();
    let host = Host::start(&configured(at, listen, false).destination("web", peer.address).permit("to-web", "web"));
    let metadata = |from: &str| curl(at, listen, "/.well-known/authzen-configuration", &["--interface", from]).0;
    assert_eq!(metadata("127.0.0.1"), 200);

    // Connected, and never a word of TLS; every other one begins a handshake and does not go on.
    let mut open = Vec::new();
    for number in 0..400 {
        let Ok(mut stream) = TcpStream::connect(listen) else { continue };
        if number % 2 == 1 {
            // A record's head, and less than it promises. Where the server has hung up already, so much the better.
            let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]);
        }
        open.push(stream);
    }
    // Somebody else's address has its own room, the account's connects are judged, and what is asked locally is answered.
    assert_eq!(metadata("127.0.0.2"), 200);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    assert_eq!(host.status()["mode"], "enforce");
    host.expect_judgements(&[format!("allow tcp {} by to-web", peer.address)]);

    // A handshake has its time; then every one of them is closed, and the address is served again.
    for mut stream in open {
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout can be set");
        let mut rest = Vec::new();
        let ended = match stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(ended, "the server still holds a handshake that nobody goes on with");
    }
    wait::until("the address is served again", || (metadata("127.0.0.1") == 200).then_some(()));
}
