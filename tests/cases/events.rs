//! Every event type of CAEP and RISC, signed by an independent library (PyJWT), is the signal it should be; keys rotate; a
//! silent transmitter is stale.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;
use writ_tests::{Config, Host, config, wait};

const SIGNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/sets.py");
const KINDS: &str = include_str!("../../docs/examples/signals.d/shared-signals.toml");
const ISSUER: &str = "https://idp.example";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs()
}

/// Signs them all at once.
#[track_caller]
fn sign(directory: &Path, wanted: &[Value]) -> Vec<String> {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(SIGNER).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3 is installed");
    child.stdin.take().expect("its input").write_all(json!(wanted).to_string().as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "python3-jwt is installed: {output:?}");
    serde_json::from_slice(&output.stdout).expect("tokens")
}

fn claims(jti: &str, subject: Value, event: &str, body: Value) -> Value {
    json!({ "iss": ISSUER, "aud": "https://host.example", "iat": now(), "jti": jti, "sub_id": subject, "events": { event: body } })
}

#[track_caller]
fn deliver(host: &Host, token: &str) -> (u16, Value) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--write-out", "\n%{http_code}", "--header", "Content-Type: application/secevent+jwt"]);
    command.args(["--data", token, "--unix-socket"]).arg(host.socket()).arg("http://writ/v1/ssf/events");
    let output = command.output().expect("curl is installed");
    let whole = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, status) = whole.rsplit_once('\n').expect("there is a status");
    (status.parse().expect("the status is a number"), serde_json::from_str(text).unwrap_or_default())
}

fn configured(jwks: &str, more: &str) -> Config {
    let mut config = Config::new();
    config.agent = format!(
        "[ssf.\"{ISSUER}\"]\njwks = \"{jwks}\"\naudience = \"https://host.example\"\ncritical = [\"device\"]\n{more}\n\
         [ssf.\"{ISSUER}\".subjects]\n\"spiffe://example/ci\" = \"{0}\"\n\"{ISSUER} system:serviceaccount:ci:bot\" = \
         \"{0}\"\n\"ci@example.com\" = \"{0}\"\n\"7\" = \"{0}\"\n",
        config::ACCOUNT
    );
    config.file("signals.d/shared-signals.toml", KINDS)
}

fn workload() -> Value {
    json!({ "format": "uri", "uri": "spiffe://example/ci" })
}

/// The event types with the members of the specifications' examples, and the kind each becomes.
fn examples() -> Vec<(String, Value, &'static str)> {
    let caep = |name: &str, body: Value, kind| {
        let mut body = body;
        body["event_timestamp"] = json!(now());
        body["initiating_entity"] = json!("policy");
        body["reason_admin"] = json!({ "en": "Landspeed policy violation: C076E82F" });
        (format!("{CAEP}{name}"), body, kind)
    };
    let risc = |name: &str, kind| (format!("{RISC}{name}"), json!({ "reason": "hijacking" }), kind);
    vec![
        caep("session-revoked", json!({}), "caep.session-revoked"),
        caep("token-claims-change", json!({ "claims": { "role": "ro-admin" } }), "caep.token-claims-change"),
        caep(
            "credential-change",
            json!({ "credential_type": "fido2-roaming", "change_type": "create", "fido2_aaguid": "accced6a-63f5-490a-9eea-e59bc1896cfc" }),
            "caep.credential-change",
        ),
        caep(
            "assurance-level-change",
            json!({ "namespace": "NIST-AAL", "current_level": "nist-aal2", "previous_level": "nist-aal1", "change_direction": "increase" }),
            "caep.assurance-level-increase",
        ),
        caep(
            "assurance-level-change",
            json!({ "namespace": "NIST-AAL", "current_level": "nist-aal1", "change_direction": "decrease" }),
            "caep.assurance-level-decrease",
        ),
        caep(
            "assurance-level-change",
            json!({ "namespace": "custom", "current_level": "7" }),
            "caep.assurance-level-change",
        ),
        caep(
            "device-compliance-change",
            json!({ "previous_status": "compliant", "current_status": "not-compliant" }),
            "caep.device-not-compliant",
        ),
        caep(
            "session-established",
            json!({ "acr": "AAL2", "amr": ["otp"], "ext_id": "12345" }),
            "caep.session-established",
        ),
        caep(
            "session-presented",
            json!({ "fp_ua": "abb0b6e7da81a42233f8f2b1a8ddb1b9a4c81611" }),
            "caep.session-presented",
        ),
        caep(
            "risk-level-change",
            json!({ "principal": "USER", "current_level": "HIGH", "previous_level": "LOW", "risk_reason": "PASSWORD_FOUND_IN_DATA_BREACH" }),
            "caep.risk-high",
        ),
        risc("account-credential-change-required", "risc.account-credential-change-required"),
        risc("account-purged", "risc.account-purged"),
        risc("account-disabled", "risc.account-disabled"),
        risc("identifier-changed", "risc.identifier-changed"),
        risc("identifier-recycled", "risc.identifier-recycled"),
        risc("credential-compromise", "risc.credential-compromise"),
        risc("opt-in", "risc.opt-in"),
        risc("opt-out-initiated", "risc.opt-out-initiated"),
        risc("opt-out-cancelled", "risc.opt-out-cancelled"),
        risc("opt-out-effective", "risc.opt-out-effective"),
        risc("recovery-activated", "risc.recovery-activated"),
        risc("recovery-information-changed", "risc.recovery-information-changed"),
        risc("sessions-revoked", "risc.sessions-revoked"),
        risc("account-enabled", "risc.account-enabled"),
        (
            format!("{SSF}stream-updated"),
            json!({ "status": "paused", "reason": "License is not valid" }),
            "ssf.stream-updated",
        ),
    ]
}

fn signals(host: &Host) -> Vec<(String, String)> {
    let records = host.records_of("lifecycle");
    let signals = records.iter().filter(|record| record.text("/event") == "signal");
    signals.map(|record| (record.text("/kind").to_owned(), record.text("/state").to_owned())).collect()
}

#[test]
fn every_event_of_the_specifications_is_its_signal() {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let subjects = [
        workload(),
        json!({ "format": "iss_sub", "iss": ISSUER, "sub": "system:serviceaccount:ci:bot" }),
        json!({ "format": "opaque", "id": "7" }),
        json!({ "format": "email", "email": "ci@example.com" }),
        json!({ "format": "complex", "application": workload(), "tenant": { "format": "opaque", "id": "t" } }),
        json!({ "format": "aliases", "identifiers": [{ "format": "opaque", "id": "x" }, workload()] }),
    ];
    let examples = examples();
    let algorithms = ["RS256", "ES256", "EdDSA"];
    let wanted: Vec<Value> = examples
        .iter()
        .enumerate()
        .map(|(index, (event, body, _))| {
            let subject = subjects[index % subjects.len()].clone();
            json!({ "alg": algorithms[index % 3], "claims": claims(&format!("jti-{index}"), subject, event, body.clone()) })
        })
        .collect();
    let tokens = sign(directory.path(), &wanted);
    let host = Host::start(&configured(&format!("{}/keys.jwks", directory.path().display()), ""));
    for (token, (event, ..)) in tokens.iter().zip(&examples) {
        assert_eq!(deliver(&host, token), (202, Value::Null), "{event}");
    }
    let received: Vec<String> =
        signals(&host).into_iter().filter(|(_, state)| state == "received").map(|(kind, _)| kind).collect();
    assert_eq!(received, examples.iter().map(|(_, _, kind)| (*kind).to_owned()).collect::<Vec<_>>());
    // What was replaced has ended: the account was enabled again, and the assurance fell after it rose.
    for gone in ["risc.account-disabled", "caep.assurance-level-increase"] {
        assert!(signals(&host).contains(&(gone.to_owned(), "cleared".to_owned())), "{gone}");
    }
    // The subject inside the event, as older transmitters send it, and a level that is lower again.
    let mut legacy = claims(
        "legacy",
        Value::Null,
        &format!("{CAEP}risk-level-change"),
        json!({ "current_level": "LOW", "subject": workload() }),
    );
    legacy.as_object_mut().expect("claims").remove("sub_id");
    // A critical member that means nothing here drops the event.
    let device =
        json!({ "format": "complex", "application": workload(), "device": { "format": "opaque", "id": "unknown" } });
    let dropped = claims("critical", device, &format!("{CAEP}session-revoked"), json!({}));
    let tokens = sign(directory.path(), &[json!({ "claims": legacy }), json!({ "claims": dropped })]);
    for token in &tokens {
        assert_eq!(deliver(&host, token), (202, Value::Null));
    }
    let all = signals(&host);
    assert!(all.contains(&("caep.risk-high".into(), "cleared".into())), "{all:?}");
    assert_eq!(all.iter().filter(|(kind, state)| kind == "caep.session-revoked" && state == "received").count(), 1);
    assert!(host.writ_output(&["verify"]).status.success());
}

#[test]
fn what_is_forged_is_refused_with_its_code_and_recorded() {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let good = |jti: &str| claims(jti, workload(), &format!("{CAEP}session-revoked"), json!({}));
    let with = |name: &str, value: Value| {
        let mut claims = good(name);
        claims[name] = value;
        claims
    };
    let wrong = [
        (json!({ "alg": "none", "claims": good("none") }), "invalid_request"),
        (json!({ "alg": "HS256", "claims": good("hs") }), "invalid_key"),
        (json!({ "claims": good("kid"), "headers": { "kid": "retired" } }), "invalid_key"),
        (json!({ "alg": "ES256", "claims": good("mix"), "headers": { "kid": "RS256" } }), "invalid_key"),
        (json!({ "claims": good("typ"), "headers": { "typ": "JWT" } }), "invalid_request"),
        (json!({ "claims": with("aud", json!(["https://other.example"])) }), "invalid_audience"),
        (json!({ "claims": with("iss", json!("https://evil.example")) }), "invalid_issuer"),
        (json!({ "claims": with("exp", json!(now() + 60)) }), "invalid_request"),
        (json!({ "claims": with("sub", json!("ci")) }), "invalid_request"),
        (json!({ "claims": with("iat", json!(now() + 3_600)) }), "invalid_request"),
        (json!({ "claims": with("jti", json!("")) }), "invalid_request"),
        (json!({ "claims": with("events", json!({})) }), "invalid_request"),
        (
            json!({ "claims": claims("state", json!({ "format": "opaque", "id": "s" }), &format!("{SSF}verification"), json!({ "state": "guessed" })) }),
            "invalid_state",
        ),
    ];
    let tokens = sign(directory.path(), &wrong.iter().map(|(wanted, _)| wanted.clone()).collect::<Vec<_>>());
    let stranger = tempfile::tempdir().expect("cannot make a directory");
    let forged = sign(stranger.path(), &[json!({ "claims": good("forged") })]).remove(0);
    let host = Host::start(&configured(&format!("{}/keys.jwks", directory.path().display()), ""));
    for (token, (_, code)) in tokens.iter().zip(&wrong) {
        let (status, said) = deliver(&host, token);
        assert_eq!((status, said["err"].as_str()), (400, Some(*code)), "{said} {token}");
    }
    let (status, said) = deliver(&host, &forged);
    assert!(
        status == 400 && ["authentication_failed", "invalid_key"].contains(&said["err"].as_str().unwrap_or_default()),
        "{said}"
    );
    let file = stranger.path().join("large");
    fs::write(&file, "a".repeat(300_000)).expect("written");
    assert_eq!(deliver(&host, &format!("@{}", file.display())).0, 413);
    assert!(signals(&host).is_empty());
    let refused = host.records().into_iter().filter(|record| record.text("/operation") == "security event");
    let counted: u64 = refused.map(|record| record.number("/count").unwrap_or(1)).sum();
    assert_eq!(counted, wrong.len() as u64 + 1);
}

/// A transmitter on this host: its keys at `/jwks`, and what it was asked at `/verify`, kept as files.
struct Transmitter(Child);

impl Transmitter {
    fn start(directory: &TempDir) -> (Self, String) {
        let program = "
import http.server, pathlib, sys
kept = pathlib.Path(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body=b''):
        self.send_response(status); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        with open(kept / 'asked', 'a') as asked: asked.write('x')
        self.answer(200, (kept / 'keys.jwks').read_bytes())
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.headers['Authorization'] == 'Bearer receiver': (kept / 'verify').write_bytes(body)
        self.answer(204)
    def log_message(self, *said): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
(kept / 'port').write_text(str(server.server_port))
server.serve_forever()
";
        let mut command = Command::new("/usr/bin/python3");
        let child = command.args(["-c", program]).arg(directory.path()).spawn().expect("python3 is installed");
        let port = wait::until("the transmitter listens", || {
            fs::read_to_string(directory.path().join("port")).ok().filter(|port| !port.is_empty())
        });
        (Self(child), format!("http://127.0.0.1:{port}"))
    }
}

impl Drop for Transmitter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn keys_come_from_a_url_and_a_stream_is_verified_on_a_timer() {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let event = |jti: &str| json!({ "claims": claims(jti, workload(), &format!("{CAEP}session-revoked"), json!({})) });
    let first = sign(directory.path(), &[event("a"), event("b")]);
    let (_transmitter, url) = Transmitter::start(&directory);
    fs::write(directory.path().join("authorization"), "Bearer receiver\n").expect("written");
    let more = format!(
        "heartbeat = \"ssf.alive\"\nverify-endpoint = \"{url}/verify\"\nverify-stream = \"s-1\"\nverify-authorization = \
         \"{}/authorization\"\nverify-every = \"1h\"",
        directory.path().display()
    );
    let host = Host::start(&configured(&format!("{url}/jwks"), &more));
    for token in &first {
        assert_eq!(deliver(&host, token), (202, Value::Null));
    }
    let asked = || fs::read_to_string(directory.path().join("asked")).unwrap_or_default().len();
    assert_eq!(asked(), 1, "keys are kept");

    // writ asks; what the transmitter then says makes its accounts fresh, and what it was not asked does not.
    let state = wait::until("writ asks for a verification", || {
        let body = fs::read(directory.path().join("verify")).ok()?;
        let body: Value = serde_json::from_slice(&body).ok()?;
        assert_eq!(body["stream_id"], "s-1");
        Some(body["state"].clone())
    });
    let verification = |jti: &str, stream: &str, state: Value| {
        let subject = json!({ "format": "opaque", "id": stream });
        json!({ "claims": claims(jti, subject, &format!("{SSF}verification"), json!({ "state": state })) })
    };
    let wrong = sign(directory.path(), &[verification("w1", "s-2", state), verification("w2", "s-1", json!("old"))]);
    for token in &wrong {
        assert_eq!(deliver(&host, token).0, 400);
    }
    let alive = || signals(&host).contains(&("ssf.alive".to_owned(), "received".to_owned()));
    assert!(!alive());
    wait::until("the stream is verified", || {
        let body: Value = serde_json::from_slice(&fs::read(directory.path().join("verify")).ok()?).ok()?;
        let token =
            sign(directory.path(), &[verification(&format!("v{}", now()), "s-1", body["state"].clone())]).remove(0);
        (deliver(&host, &token).0 == 202).then_some(())
    });
    assert!(alive());
}

#[test]
fn a_transmitter_whose_keys_cannot_be_had_is_asked_to_deliver_again() {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let token = sign(
        directory.path(),
        &[json!({ "claims": claims("a", workload(), &format!("{CAEP}session-revoked"), json!({})) })],
    );
    let host = Host::start(&configured("http://127.0.0.1:9/jwks", ""));
    for _ in 0..3 {
        assert_eq!(deliver(&host, &token[0]).0, 503);
    }
    assert!(signals(&host).is_empty());
}
