//! Throws at a running daemon whatever `schemathesis` makes of docs/openapi.yaml, as somebody who may do nothing and as root:
//! nothing may panic, hang, answer 5xx, or be permitted to the former. `writ-fuzz-api SCHEMATHESIS [EXAMPLES]`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use writ_tests::{Config, Host, user, wait};

const DESCRIPTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.yaml");
/// Carries connections on a port of this host to the daemon's socket: the daemon's peer is whoever runs it.
const BRIDGE: &str = "
import asyncio, pathlib, sys
async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data); await writer.drain()
    except OSError: pass
    finally: writer.close()
async def bridge(reader, writer):
    try: there, out = await asyncio.open_unix_connection(sys.argv[1])
    except OSError: return writer.close()
    await asyncio.gather(carry(reader, out), carry(there, writer))
async def main():
    server = await asyncio.start_server(bridge, '127.0.0.1', 0)
    pathlib.Path(sys.argv[2]).write_text(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()
asyncio.run(main())
";
/// What nobody but root, operators, approvers and accounts that policy permits may do.
const PRIVILEGED: &str = "^/v1/(status|metrics|reload|self-test|signals|grants|escalations|sessions|accounts|break-glass|simulate|uninstall)";

struct Bridge(Child);

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bridge run by a user; its URL.
fn bridge(mut command: Command, socket: &Path, port: &Path) -> anyhow::Result<(Bridge, String)> {
    let child = command.args(["-c", BRIDGE]).arg(socket).arg(port).stdin(Stdio::null()).spawn()?;
    let bridge = Bridge(child);
    let port = wait::until("the bridge listens", || fs::read_to_string(port).ok().filter(|port| !port.is_empty()));
    Ok((bridge, format!("http://127.0.0.1:{port}")))
}

fn run(program: &str, url: &str, examples: &str, more: &[&str]) -> anyhow::Result<bool> {
    let mut command = Command::new(program);
    command.args(["run", DESCRIPTION, "--url", url, "--max-examples", examples, "--seed", "1", "--workers", "1"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--request-timeout", "20"]);
    // Streams and long waits are answered when there is something to say; signed tokens it cannot make.
    command.args([
        "--exclude-path",
        "/v1/changes",
        "--exclude-path",
        "/v1/ssf/events",
        "--warnings",
        "off",
        "--no-shrink",
        "--no-color",
    ]);
    command.args(["--suppress-health-check", "all"]).args(more);
    // Its own directory: schemathesis leaves what it found behind.
    let directory = tempfile::tempdir()?;
    Ok(command.current_dir(directory.path()).status()?.success())
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().ok_or_else(|| anyhow::anyhow!("which schemathesis?"))?;
    let examples = arguments.next().unwrap_or_else(|| "30".to_owned());
    let schema = "entity record;\nentity user;\naction read, write appliesTo { principal: [user], resource: [record], context: {} };\n";
    let policy = "@id(\"reads\") @owner(\"fuzz\") @reason(\"fuzz\")\npermit (principal is user, action == Action::\"read\", resource);\n";
    let host =
        Host::start(&Config::new().file("schema.d/fuzz.cedarschema", schema).file("policies.d/fuzz.cedar", policy));
    let places = tempfile::tempdir()?;
    fs::set_permissions(places.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;

    let nobody = user::ensure(user::STRANGER);
    let (stranger, url) =
        bridge(host.command_as(&nobody, "/usr/bin/python3"), &host.socket(), &places.path().join("stranger"))?;
    let refused =
        run(
            &program,
            &url,
            &examples,
            &["--checks", "not_a_server_error", "--include-path-regex", "^/(access|.well-known|v1/why)"],
        )? & run(&program, &url, &examples, &["--checks", "not_a_server_error", "--include-path-regex", PRIVILEGED])?;
    let done: Vec<_> = host
        .records()
        .into_iter()
        .filter(|record| {
            ["grant", "change", "cut"].contains(&record.text("/type")) || record.text("/event") == "break-glass"
        })
        .collect();
    anyhow::ensure!(done.is_empty(), "somebody who may do nothing did something: {done:?}");
    drop(stranger);

    let (root, url) = bridge(Command::new("/usr/bin/python3"), &host.socket(), &places.path().join("root"))?;
    let more = ["--checks", "not_a_server_error", "--exclude-path", "/v1/uninstall"];
    let served = run(&program, &url, &examples, &more)?;
    drop(root);
    anyhow::ensure!(refused && served, "schemathesis found something: see above");
    anyhow::ensure!(host.writ_output(&["status", "--json"]).status.success(), "the daemon does not answer");
    let verified = host.writ_output(&["verify"]);
    anyhow::ensure!(verified.status.success(), "the log does not verify: {verified:?}");
    println!("fuzz-api: nothing found");
    Ok(())
}
