//! The access gateway of docs/examples: what nginx's `auth_request` asks, the adapter asks writ.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use writ_tests::{Config, Host, config, wait};

const NGINX: &str = include_str!("../../docs/examples/gateway-nginx.conf");
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
        wait::until("the adapter listens", || std::os::unix::net::UnixStream::connect(&socket).ok());
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

    let signal = json!({ "account": config::ACCOUNT, "kind": "edr.heartbeat", "ttl": "10s" }).to_string();
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

/// What stands behind the gateway.
const BACKEND: &str = "
import http.server, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '7'); self.end_headers(); self.wfile.write(b'report\\n')
    do_POST = do_GET
    def log_message(self, *said): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
pathlib.Path(sys.argv[1]).write_text(str(server.server_port))
server.serve_forever()
";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example's configuration as a whole nginx of its own, with this test's places in it.
fn nginx(at: &Path, listen: &str, backend: &str, adapter: &Path) -> Ended {
    let server = NGINX
        .replace("listen 8443 ssl", &format!("listen {listen} ssl"))
        .replace("/etc/nginx/gateway.pem", "server.pem")
        .replace("/etc/nginx/gateway.key", "server.key")
        .replace("/etc/nginx/workloads-ca.pem", "ca.pem")
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{backend}"))
        .replace("/run/writ-gateway/gateway.sock", &adapter.display().to_string());
    let paths =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};\n")).concat();
    let whole = format!(
        "user root;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}map \
         $ssl_client_s_dn $ssl_client_s_dn_cn {{ ~CN=(?<cn>[^,]+) $cn; }}\n{server}}}\n"
    );
    fs::write(at.join("nginx.conf"), whole).expect("written");
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(at).args(["-c", "nginx.conf", "-g", "daemon off; master_process off;"]);
    Ended(command.stdin(Stdio::null()).spawn().expect("nginx is installed"))
}

#[test]
fn nginx_lets_through_what_writ_permits_while_it_does() {
    let policy = "@id(\"reports\") @owner(\"tests\") @reason(\"its device is checked\")\npermit (principal == \
                  ServiceAccount::\"broker\", action == Action::\"GET\", resource == Route::\"/reports\")\nwhen { \
                  context.risk < 50 };\n";
    let schema = "entity Route;\naction GET, POST appliesTo { principal: [ServiceAccount], resource: [Route], \
                  context: { risk: Long } };\n";
    let mut host = Host::start(
        &Config::new()
            .file("schema.d/gateway.cedarschema", schema)
            .file("policies.d/gateway.cedar", policy)
            .file("service-accounts.d/broker.toml", "[service-account.broker]\nowner = \"tests\"\n"),
    );
    let gateway = Gateway::start(&host);
    let directory = crate::https::certificates();
    let at = directory.path();
    let port = at.join("port");
    let backend =
        Command::new("/usr/bin/python3").args(["-c", BACKEND]).arg(&port).spawn().expect("python3 is installed");
    let _backend = Ended(backend);
    let backend = wait::until("the backend listens", || fs::read_to_string(&port).ok().filter(|port| !port.is_empty()));
    let listen = crate::https::free_port().to_string();
    let _nginx = nginx(at, &listen, &backend, &gateway.directory.path().join("gateway.sock"));
    let get = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.current_dir(at).args(["--silent", "--cacert", "ca.pem", "--output", "/dev/null"]);
        command.args(["--write-out", "%{http_code}", "--cert", "broker.pem", "--key", "broker.key"]).args(arguments);
        String::from_utf8_lossy(&command.output().expect("curl is installed").stdout).into_owned()
    };
    let reports = format!("https://{listen}/reports");
    wait::until("nginx serves", || (get(&[&reports]) == "200").then_some(()));
    assert_eq!(get(&["--request", "POST", &reports]), "403");
    assert_eq!(get(&[&format!("https://{listen}/else")]), "403");
    let signal = ["signal", "send", "--account", "broker", "--kind", "odd", "--risk", "80", "--ttl", "5m"];
    assert!(host.writ_output(&signal).status.success());
    assert_eq!(get(&[&reports]), "403");
    let asked =
        host.judgements().into_iter().rfind(|record| record.text("/account") == "broker").expect("it is recorded");
    assert_eq!((asked.text("/verdict"), asked.number("/risk")), ("deny", Some(80)));
    // Nobody to ask is a refusal.
    host.kill_daemon();
    assert_eq!(get(&[&reports]), "500");
}
