//! Security event tokens, signed by the stock `openssl`, become signals; wrong ones are refused as RFC 8935 says.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;
use writ_tests::{Config, Host, UdpPeer, config, wait};

const TRANSMITTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/transmitter.py");
const ISSUER: &str = "https://idp.example";
const REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";

fn sign(directory: &TempDir, claims: &Value, header: Option<&Value>) -> String {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(TRANSMITTER).arg(directory.path()).arg(claims.to_string()).args(header.map(ToString::to_string));
    let output = command.output().expect("python3 and openssl are installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a token is text")
}

fn claims(jti: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs();
    json!({
        "iss": ISSUER, "aud": "https://host.example", "iat": now, "jti": jti,
        "sub_id": { "format": "uri", "uri": "spiffe://example/ci" },
        "events": { REVOKED: { "event_timestamp": now } },
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[track_caller]
fn deliver(host: &Host, token: &str, kind: &str) -> (u16, Value) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--write-out", "\n%{http_code}", "--header", &format!("Content-Type: {kind}")]);
    command.args(["--data", token, "--unix-socket"]).arg(host.socket()).arg("http://writ/v1/ssf/events");
    let output = command.output().expect("curl is installed");
    let whole = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, status) = whole.rsplit_once('\n').expect("there is a status");
    (status.parse().expect("the status is a number"), serde_json::from_str(text).unwrap_or_default())
}

#[test]
fn a_signed_event_is_a_signal_and_a_wrong_one_is_refused() {
    let directory = tempfile::tempdir().expect("cannot make a directory");
    let good = sign(&directory, &claims("one"), None);
    let transmitter = format!(
        "[ssf.\"{ISSUER}\"]\njwks = \"{}/keys.jwks\"\naudience = \"https://host.example\"\n[ssf.\"{ISSUER}\".subjects]\n\
         \"spiffe://example/ci\" = \"{}\"\n",
        directory.path().display(),
        config::ACCOUNT
    );
    let kind = "[signal.\"caep.session-revoked\"]\nrisk = 90\nttl = \"1h\"\nflag = true\nfrom = [\"root\"]\n";
    let mut config = Config::new();
    config.agent = transmitter;
    let host = Host::start(&config.file("signals.d/caep.toml", kind));
    let event = "application/secevent+jwt";

    assert_eq!(deliver(&host, &good, event), (202, Value::Null));
    // Delivered again, it is answered as the first time, and nothing more comes of it.
    assert_eq!(deliver(&host, &good, event), (202, Value::Null));
    let received: Vec<_> = host.records().into_iter().filter(|record| record.text("/event") == "signal").collect();
    assert_eq!(received.len(), 1);
    assert_eq!(
        (received[0].text("/account"), received[0].text("/kind"), received[0].text("/source")),
        (config::ACCOUNT, "caep.session-revoked", ISSUER)
    );

    let stranger = tempfile::tempdir().expect("cannot make a directory");
    let header = |name: &str, value: &str| {
        with(json!({ "alg": "RS256", "typ": "secevent+jwt", "kid": "k1" }), name, json!(value))
    };
    let far = claims("x")["iat"].as_u64().expect("a number") + 3_600;
    let wrong = [
        (sign(&stranger, &claims("a"), None), "authentication_failed"),
        (sign(&directory, &with(claims("b"), "aud", json!("https://other.example")), None), "invalid_audience"),
        (sign(&directory, &with(claims("c"), "iss", json!("https://other.example")), None), "invalid_issuer"),
        (sign(&directory, &claims("d"), Some(&header("kid", "k2"))), "invalid_key"),
        (sign(&directory, &claims("e"), Some(&header("typ", "JWT"))), "invalid_request"),
        (sign(&directory, &claims("f"), Some(&header("alg", "none"))), "invalid_request"),
        (sign(&directory, &claims("f"), Some(&header("alg", "HS256"))), "invalid_key"),
        (sign(&directory, &with(claims("g"), "exp", json!(far)), None), "invalid_request"),
        (sign(&directory, &with(claims("h"), "iat", json!(far)), None), "invalid_request"),
        (sign(&directory, &with(claims("i"), "sub_id", json!("ci")), None), "invalid_request"),
        (sign(&directory, &with(claims("j"), "events", json!({ REVOKED: {}, "urn:x": {} })), None), "invalid_request"),
        ("not.a.token".to_owned(), "invalid_request"),
    ];
    for (token, err) in &wrong {
        let (status, said) = deliver(&host, token, event);
        assert_eq!((status, said["err"].as_str()), (400, Some(*err)), "{said} {token}");
    }
    assert_eq!(deliver(&host, &sign(&directory, &claims("k"), None), "application/json").0, 400);
    // Well said, but about nobody here: no error of the transmitter's.
    let nobody = with(claims("l"), "sub_id", json!({ "format": "opaque", "id": "nobody" }));
    assert_eq!(deliver(&host, &sign(&directory, &nobody, None), event).0, 202);

    let records = host.records();
    assert_eq!(records.iter().filter(|record| record.text("/event") == "signal").count(), 1);
    assert_eq!(records.iter().filter(|record| record.text("/operation") == "security event").count(), wrong.len() + 2);
}

/// A transmitter over TLS, with keys that it can change and the will to fall silent.
struct Transmitter {
    child: Child,
    directory: TempDir,
}

impl Transmitter {
    fn signs_with(directory: &TempDir, kid: &str) {
        let signer = directory.path().join(kid);
        fs::create_dir_all(&signer).expect("cannot make a directory");
        // Makes the key.
        let signing = Command::new("/usr/bin/python3").args([TRANSMITTER]).arg(&signer).arg("{}").output();
        assert!(signing.expect("python3 is installed").status.success());
        let current = json!({ "directory": signer, "kid": kid }).to_string();
        fs::write(directory.path().join("new"), current).expect("cannot write");
        fs::rename(directory.path().join("new"), directory.path().join("current.json")).expect("cannot put in place");
    }

    fn start(certificates: &TempDir, directory: TempDir, port: u16, host: &Host) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/transmitter_server.py");
        let output = fs::File::create(directory.path().join("output")).expect("cannot make the output file");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(certificates.path().join("server.pem")).arg(certificates.path().join("server.key"));
        command.arg(port.to_string()).arg(directory.path()).arg(host.socket());
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("cannot share the file")).stderr(output);
        Self { child: command.spawn().expect("python3 is installed"), directory }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Transmitter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_silent_transmitter_is_stale_and_one_that_rotates_its_keys_is_not() {
    let certificates = crate::https::certificates();
    let port = crate::https::free_port().port();
    let directory = tempfile::tempdir().expect("cannot make a directory");
    Transmitter::signs_with(&directory, "k1");
    let peer = UdpPeer::new();
    let mut config = Config::new().destination("db", peer.address).permit("to-db", "db");
    config.agent = format!(
        "[ssf.\"{ISSUER}\"]\njwks = \"https://127.0.0.1:{port}/jwks\"\nca = \"{}/ca.pem\"\naudience = \
         \"https://host.example\"\nheartbeat = \"ssf.alive\"\nverify-endpoint = \"https://127.0.0.1:{port}/verify\"\n\
         verify-stream = \"s-1\"\nverify-every = \"5s\"\n[ssf.\"{ISSUER}\".subjects]\n\"spiffe://example/ci\" = \"{}\"\n",
        certificates.path().display(),
        config::ACCOUNT
    );
    config.account = "requires-fresh = [\"ssf.alive\"]".to_owned();
    let kind = "[signal.\"ssf.alive\"]\nrisk = 0\nttl = \"20s\"\nfreshness = true\n";
    let host = Host::start(&config.file("signals.d/ssf.toml", kind));
    let mut probe = host.batch();
    let mut refused = || probe.attempt("udp-judge", peer.address).errno.as_deref() == Some("EACCES");
    assert!(refused(), "nobody has said that the stream is alive");

    let transmitter = Transmitter::start(&certificates, directory, port, &host);
    wait::until("the stream is verified", || (!refused()).then_some(()));
    let silent = transmitter.directory.path().join("silent");
    fs::write(&silent, "").expect("cannot write");
    wait::until("silence has made it stale", || refused().then_some(()));

    // Another key from now on, and not the old one: known as soon as a token names it and it may be asked for again.
    Transmitter::signs_with(&transmitter.directory, "k2");
    fs::remove_file(&silent).expect("it is there");
    wait::until("the rotated key has been fetched", || (!refused()).then_some(()));
    let said = wait::until("the transmitter has seen it taken", || {
        Some(transmitter.said()).filter(|said| said.contains("pushed with k2: 202"))
    });
    assert!(!said.contains(": 400"), "no event is refused for good for being signed with a new key: {said}");
    // What the key that was taken out signs is refused, for good once that is known.
    let old = Command::new("/usr/bin/python3")
        .arg(TRANSMITTER)
        .arg(transmitter.directory.path().join("k1"))
        .arg(claims("old").to_string())
        .output()
        .expect("python3 is installed");
    let old = String::from_utf8(old.stdout).expect("a token is text");
    let (status, said) = wait::until("the old key is refused", || {
        let (status, said) = deliver(&host, &old, "application/secevent+jwt");
        (status != 503).then_some((status, said))
    });
    assert_eq!((status, said["err"].as_str()), (400, Some("invalid_key")), "{said}");
}
