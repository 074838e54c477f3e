//! The access gateway of docs/examples: what nginx's `auth_request` asks, the adapter asks writ.

use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use writ_tests::{Config, Host, config, wait};

const ADAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/gateway.py");

struct Gateway {
    directory: TempDir,
    child: Child,
}

impl Gateway {
    #[track_caller]
    fn start(host: &Host) -> Self {
        let directory = tempfile::tempdir().expect("cannot make a directory");
        let socket = directory.path().join("gateway.sock");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(ADAPTER).arg(&socket).env("WRIT_SOCKET", host.socket()).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("cannot run the adapter");
        wait::until("the adapter listens", || socket.exists().then_some(()));
        Self { directory, child }
    }

    /// The status that nginx would act on.
    #[track_caller]
    fn check(&self, account: &str, method: &str, path: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--unix-socket"]);
        command.arg(self.directory.path().join("gateway.sock"));
        for (name, value) in [("X-Account", account), ("X-Method", method), ("X-Resource", path)] {
            command.arg("--header").arg(format!("{name}: {value}"));
        }
        let output = command.arg("http://gateway/").output().expect("curl is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn access_lasts_while_signals_are_fresh() {
    let policy = format!(
        "@id(\"reports\") @owner(\"tests\") @reason(\"its device is checked\")\npermit (principal == ServiceAccount::\"{}\", \
         action == Action::\"GET\", resource == Route::\"/reports\")\nwhen {{ context.fresh.contains(\"edr.heartbeat\") }};\n",
        config::ACCOUNT
    );
    let schema = "entity Route;\naction GET, POST appliesTo { principal: [ServiceAccount], resource: [Route], \
                  context: { fresh: Set<String> } };\n";
    let kind = "[signal.\"edr.heartbeat\"]\nrisk = 0\nttl = \"1h\"\nfreshness = true\nfrom = [\"root\"]\n";
    let mut host = Host::start(
        &Config::new()
            .file("schema.d/gateway.cedarschema", schema)
            .file("policies.d/gateway.cedar", &policy)
            .file("signals.d/edr.toml", kind),
    );
    let gateway = Gateway::start(&host);
    assert_eq!(gateway.check(config::ACCOUNT, "GET", "/reports"), "403");

    let signal = json!({ "account": config::ACCOUNT, "kind": "edr.heartbeat", "ttl": "3s" }).to_string();
    let mut command = Command::new("curl");
    command.args(["--silent", "--fail", "--data", &signal, "--unix-socket"]).arg(host.socket());
    let sent = command.arg("http://writ/v1/signals").output().expect("curl is installed");
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(gateway.check(config::ACCOUNT, "GET", "/reports"), "204");
    assert_eq!(gateway.check(config::ACCOUNT, "POST", "/reports"), "403");
    assert_eq!(gateway.check("somebody", "GET", "/reports"), "403");
    wait::until("the heartbeat is stale", || {
        (gateway.check(config::ACCOUNT, "GET", "/reports") == "403").then_some(())
    });

    // Nobody to ask is no permit.
    host.kill_daemon();
    assert_eq!(gateway.check(config::ACCOUNT, "GET", "/reports"), "503");
}
