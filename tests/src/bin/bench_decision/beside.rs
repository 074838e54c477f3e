//! Another engine beside writ in the same run: regorus (Rego, as OPA evaluates it) behind the same requests on a unix socket.
//!
//! It is served as plainly as can be, a thread for each client, and is spared what an answer of writ's has besides: who the
//! caller is, the live state, the record and its place in the log. What is left is what evaluating and serving cost.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Context as _;
use regorus::{Engine, Value};

/// Serves the same estate and the same rules at this path until the process ends.
pub(crate) fn serve(path: &Path, accounts: usize) -> anyhow::Result<()> {
    let mut engine = Engine::new();
    engine.add_policy("bench.rego".to_owned(), rules())?;
    let teams: serde_json::Map<String, serde_json::Value> = (0..accounts)
        .map(|index| (format!("svc-{index}"), [format!("team-{}", index % 10)].as_slice().into()))
        .collect();
    engine.add_data_json(&serde_json::json!({ "teams": teams }).to_string())?;
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let engine = engine.clone();
            std::thread::spawn(move || answer(stream, engine));
        }
    });
    Ok(())
}

/// The rules of the bench's Cedar policies.
fn rules() -> String {
    let mut rules =
        "package bench\nimport rego.v1\ndefault decision := false\ndecision if {\n not risky\n permitted\n}\nrisky if \
                     input.context.risk >= 70\n"
            .to_owned();
    for team in 0..10 {
        let _ = writeln!(
            rules,
            "permitted if {{\n input.action.name == \"issue\"\n input.resource.type == \"Vault\"\n input.resource.id == \
             \"vault-{team}\"\n \"team-{team}\" in data.teams[input.subject.id]\n input.context.pipeline == \"release\"\n}}"
        );
    }
    rules
}

/// Answers the requests of one connection, one after the other.
fn answer(mut stream: UnixStream, mut engine: Engine) -> anyhow::Result<()> {
    let (mut buffer, mut read) = (vec![0; 8_192], 0);
    loop {
        let text = std::str::from_utf8(buffer.get(..read).unwrap_or_default())?;
        let whole = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
            (body.len() >= length).then_some(body)
        });
        let Some(body) = whole else {
            let more = stream.read(buffer.get_mut(read..).unwrap_or_default())?;
            if more == 0 {
                return Ok(());
            }
            read += more;
            continue;
        };
        engine.set_input(Value::from_json_str(body)?);
        let decision = engine.eval_rule("data.bench.decision".to_owned())?;
        let decision = decision.as_bool().context("the rule gave no decision")?;
        let body = format!("{{\"decision\":{decision}}}");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
        stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
        read = 0;
    }
}
