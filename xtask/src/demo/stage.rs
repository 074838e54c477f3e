//! What the demo is played on: servers, a configuration, the daemon; they end when it does, however it ends.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scenery::{DIRECTORY, PATIENCE, PINS, Scenery, USER, config_directory};
use crate::process::{command, output};

/// The ports of the three servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// Permitted.
    pub(super) reports: u16,
    /// Permitted once a person has agreed.
    pub(super) production: u16,
    /// Not mentioned by any policy.
    pub(super) payroll: u16,
}

/// Everything that runs for the demo.
pub(super) struct Stage {
    pub(super) ports: Ports,
    scenery: Scenery,
    /// The daemon first, so that it ends first.
    children: Vec<Child>,
}

impl Stage {
    /// Starts everything and waits until writ's policy is in force.
    pub(super) fn set(scenery: Scenery) -> Result<Self> {
        let [reports, production, payroll] = free_ports()?;
        let ports = Ports { reports, production, payroll };
        let mut stage = Self { ports, scenery, children: Vec::new() };
        stage.configure()?;
        stage.serve()?;
        stage.govern()?;
        Ok(stage)
    }

    /// A `writ` command on the demo's configuration.
    pub(super) fn writ(&self, arguments: &[&str]) -> Command {
        self.scenery.writ(arguments)
    }

    /// A command run as the service account inside the demo's cgroup.
    pub(super) fn workload(&self, program: &[&str]) -> Command {
        let mut shell = command("/bin/sh");
        // The shell moves itself, as root, then becomes the program, as the service account.
        shell.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(self.scenery.cgroup.join("cgroup.procs"));
        shell.args(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all", "--"]);
        shell.args(program).current_dir("/").stdin(Stdio::null());
        shell
    }

    /// The configuration that the demo shows.
    pub(super) fn policy_file() -> PathBuf {
        config_directory().join("policies.d/demo.cedar")
    }

    fn configure(&self) -> Result<()> {
        let Ports { reports, production, payroll } = self.ports;
        let directory = Path::new(DIRECTORY);
        let destination =
            |name: &str, port| format!("[destination.{name}]\naddresses = [\"127.0.0.1/32\"]\nports = [{port}]\n\n");
        let destinations =
            [destination("reports", reports), destination("production", production), destination("payroll", payroll)];
        let files = [
            (
                "writ.toml",
                format!(
                    "mode = \"enforce\"\n\n[paths]\nstate = \"{DIRECTORY}/state\"\nlog = \"{DIRECTORY}/log\"\nsocket = \
                     \"{DIRECTORY}/writ.sock\"\npins = \"{PINS}\"\ncgroup = \"{}\"\n",
                    self.scenery.cgroup.display()
                ),
            ),
            ("service-accounts.d/demo.toml", ACCOUNT.replace("USER", USER)),
            ("destinations.d/demo.toml", destinations.concat()),
            ("policies.d/demo.cedar", POLICIES.to_owned()),
        ];
        for part in ["service-accounts.d", "destinations.d", "policies.d", "signals.d", "schema.d"] {
            let part = config_directory().join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make `{}`", part.display()))?;
        }
        fs::create_dir(directory.join("www")).context("cannot make the servers' directory")?;
        fs::write(directory.join("www/index.html"), "the quarter's numbers\n").context("cannot write the page")?;
        for (name, text) in files {
            let path = config_directory().join(name);
            fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(())
    }

    /// Starts the three servers, and waits until they answer.
    fn serve(&mut self) -> Result<()> {
        let Ports { reports, production, payroll } = self.ports;
        for port in [reports, production, payroll] {
            // As nobody, so that a service account that got through would have gained nothing.
            let mut server = until_we_end(&["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
            server.args(["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
            server.current_dir(Path::new(DIRECTORY).join("www")).stdout(Stdio::null()).stderr(Stdio::null());
            self.children.push(server.spawn().context("cannot start a web server")?);
            wait("a web server listens", || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()))?;
        }
        Ok(())
    }

    /// Starts writ, and waits until its policy is in force.
    fn govern(&mut self) -> Result<()> {
        let log = Path::new(DIRECTORY).join("writ.output");
        let file = fs::File::create(&log).context("cannot make writ's output file")?;
        let mut daemon = until_we_end(&[]);
        daemon.arg(&self.scenery.writ).arg("run").arg("--config-dir").arg(config_directory());
        daemon.stdout(file.try_clone().context("cannot share writ's output file")?).stderr(file);
        let mut daemon = daemon.spawn().context("cannot start writ")?;
        let ready = wait("writ is ready", || {
            if let Some(status) = daemon.try_wait().context("cannot wait for writ")? {
                bail!("writ ended: {status}");
            }
            Ok(output(&mut self.writ(&["status", "--json"]))?.status.success())
        });
        self.children.insert(0, daemon);
        ready.with_context(|| format!("writ printed:\n{}", fs::read_to_string(&log).unwrap_or_default().trim_end()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.children {
            end(child);
        }
    }
}

const ACCOUNT: &str = r#"[service-account.report-agent]
owner = "analytics@example.com"
team = ["analytics"]
match = { user = "USER" }
"#;

const POLICIES: &str = r#"@id("agent-reads-reports")
@owner("analytics@example.com")
@reason("the agent writes its summaries from the report server")
permit (
  principal == ServiceAccount::"report-agent",
  action == Action::"connect",
  resource in Destination::"reports"
);

@id("agent-may-need-production")
@owner("analytics@example.com")
@reason("now and then a number has to be checked at its source")
permit (
  principal == ServiceAccount::"report-agent",
  action == Action::"connect",
  resource in Destination::"production"
);

@id("a-person-agrees-first")
@owner("databases@example.com")
@reason("no agent reaches production unless a person has agreed")
@decision("escalate")
forbid (
  principal,
  action == Action::"connect",
  resource in Destination::"production"
);
"#;

/// A command that the kernel ends with this program, should this program be killed. Who it becomes must be said here: a
/// later change of user would undo the first.
fn until_we_end(identity: &[&str]) -> Command {
    let mut command = command("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(identity).arg("--").stdin(Stdio::null());
    command
}

/// Asks a child to end, and makes it.
fn end(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let deadline = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("waited {} s in vain: {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Three ports that nothing listens on.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port");
    // All three at once, or the same port could be found again.
    let listeners = [bind()?, bind()?, bind()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr().context("cannot find a free port")?.port();
    }
    Ok(ports)
}
