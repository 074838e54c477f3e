//! What the demo shows: real programs connect, writ decides, the records say why.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::stage::Stage;
use crate::process::{output, read, say, shown};

/// Connects, and says in one line what the kernel answered.
const PYTHON: &str = "import socket, sys\ntry:\n    socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n    \
     print('connected')\nexcept OSError as error:\n    print(type(error).__name__ + ': ' + str(error))\n    sys.exit(1)";

/// One thing the agent tries, and what must come of it.
struct Scene {
    title: &'static str,
    program: Vec<String>,
    port: u16,
    verdict: &'static str,
    why: &'static str,
}

/// Plays the scenes, then shows the records. Fails if anything is other than announced.
pub(super) fn tell(stage: &Stage) -> Result<()> {
    say("the policy (Cedar)");
    println!("{}", std::fs::read_to_string(Stage::policy_file()).context("cannot read the policy")?);
    for scene in scenes(stage) {
        play(stage, &scene)?;
    }
    records(stage)
}

fn scenes(stage: &Stage) -> Vec<Scene> {
    let ports = stage.ports;
    let url = |port: u16| format!("http://127.0.0.1:{port}/");
    let curl = |port| words(&["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "10", &url(port)]);
    let python = |port: u16| words(&["/usr/bin/python3", "-c", PYTHON, &port.to_string()]);
    vec![
        Scene {
            title: "the agent reads the report server, with curl",
            program: curl(ports.reports),
            port: ports.reports,
            verdict: "allow",
            why: "`agent-reads-reports` permits it",
        },
        Scene {
            title: "the agent tries the payroll server, with curl",
            program: curl(ports.payroll),
            port: ports.payroll,
            verdict: "deny",
            why: "no policy permits it, and what is not permitted is denied",
        },
        Scene {
            title: "the agent tries the production server, with Python",
            program: python(ports.production),
            port: ports.production,
            verdict: "escalate",
            why: "`a-person-agrees-first` holds it back until somebody has agreed",
        },
        Scene {
            title: "the agent reads the report server, with Python",
            program: python(ports.reports),
            port: ports.reports,
            verdict: "allow",
            why: "`agent-reads-reports` permits it, whatever the program",
        },
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn play(stage: &Stage, scene: &Scene) -> Result<()> {
    say(scene.title);
    let program: Vec<&str> = scene.program.iter().map(String::as_str).collect();
    let line = scene.program.iter().map(|word| if word == PYTHON { "…" } else { word }).collect::<Vec<_>>().join(" ");
    println!("    $ {line}");
    let output = output(&mut stage.workload(&program))?;
    for said in String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).lines() {
        println!("    {said}");
    }
    if output.status.success() != (scene.verdict == "allow") {
        bail!("this should have ended in `{}`, and the program's exit was {}", scene.verdict, output.status);
    }
    println!("    → {}: {}", scene.verdict, scene.why);
    Ok(())
}

/// Checks that the records say what was seen, then shows them as `writ` shows them.
fn records(stage: &Stage) -> Result<()> {
    let recorded = read(&mut stage.writ(&["tail", "--json"]))?;
    let mut decisions = Vec::new();
    for line in recorded.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("a record is not JSON: {line}"))?;
        if record.get("type").and_then(Value::as_str) == Some("decision") {
            decisions.push(record);
        }
    }
    let scenes = scenes(stage);
    let brief = |record: &Value| {
        let verdict = record.get("verdict").and_then(Value::as_str).unwrap_or_default().to_owned();
        (verdict, record.pointer("/destination/port").and_then(Value::as_u64).unwrap_or_default())
    };
    let found: Vec<_> = decisions.iter().map(brief).collect();
    let expected: Vec<_> = scenes.iter().map(|scene| (scene.verdict.to_owned(), u64::from(scene.port))).collect();
    if found != expected {
        bail!("the records say {found:?}, and what happened is {expected:?}");
    }

    say("the records");
    show(stage.writ(&["tail"]))?;
    let escalated = decisions.iter().find(|record| brief(record).0 == "escalate");
    let id = escalated.and_then(|record| record.get("id")).and_then(Value::as_str).context("a record has no id")?;
    say("why the production server was out of reach");
    show(stage.writ(&["explain", id]))
}

/// Shows a command and, unfiltered, what it prints: on a terminal, what a person would see.
fn show(mut command: Command) -> Result<()> {
    let line = shown(&command);
    println!("    $ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}
