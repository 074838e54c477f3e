//! Workload drift: real services at their ordinary work raise nothing; what they should not do raises its signal.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::{User, chown};
use serde_json::{Value, json};
use writ_tests::{Config, Host, Record, postgres, wait};

/// A program that runs from memory: found by every account, so that it shows when what came before was looked at.
const MEMORY: &str = "import os,sys\nf=os.memfd_create('tool')\nos.write(f,open('/bin/sleep','rb').read())\n\
                      os.execve(f,['tool','2'],{})\n";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(host: &Host, text: &str) -> Command {
    let mut command = host.command("python3");
    command.args(["-c", text]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The signals that were received, in their order.
fn signals(host: &Host) -> Vec<Record> {
    let records = host.records_of("lifecycle");
    records
        .into_iter()
        .filter(|record| record.text("/event") == "signal" && record.text("/state") == "received")
        .collect()
}

/// The kinds raised, in their order, once one of this kind is among them.
#[track_caller]
fn kinds_with(host: &Host, wanted: &str) -> Vec<String> {
    wait::until("the signal is raised", || {
        let kinds: Vec<String> = signals(host).iter().map(|record| record.text("/kind").to_owned()).collect();
        kinds.iter().any(|kind| kind == wanted).then_some(kinds)
    })
}

/// A directory that belongs to the account.
fn own_directory(host: &Host, name: &str) -> PathBuf {
    let path = host.directory().join(name);
    fs::create_dir(&path).expect("cannot make a directory");
    let user = host.service_user();
    chown(&path, Some(user.uid), Some(user.gid)).expect("cannot give the directory away");
    path
}

#[track_caller]
fn succeeds(mut command: Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[track_caller]
fn nothing_was_raised(host: &Host) {
    let marker = python(host, MEMORY).spawn().expect("cannot run python3");
    let _marker = Ended(marker);
    kinds_with(host, "workload.executable-deleted");
    let others: Vec<Record> =
        signals(host).into_iter().filter(|record| !record.text("/evidence").contains("/memfd:tool")).collect();
    assert!(others.is_empty(), "{others:#?}");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
        .port()
}

#[test]
fn nginx_at_its_ordinary_work_raises_nothing() {
    let nginx = Path::new("/usr/sbin/nginx");
    if !nginx.exists() {
        eprintln!("left out: nginx is not installed here");
        return;
    }
    let host = Host::start(&Config::new());
    let (at, port) = (own_directory(&host, "nginx"), free_port());
    let settings = format!(
        "daemon on; worker_processes 2; pid {at}/pid; error_log {at}/error;\nevents {{}}\nhttp {{ access_log off; \
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; \
         scgi_temp_path {at}/s; server {{ listen 127.0.0.1:{port}; return 200 'ok'; }} }}\n",
        at = at.display()
    );
    fs::write(at.join("conf"), settings).expect("cannot write its configuration");
    let run = |arguments: &[&str]| {
        let mut command = host.command(nginx);
        command.arg("-c").arg(at.join("conf")).arg("-e").arg(at.join("error")).args(arguments);
        succeeds(command);
    };
    run(&[]);
    wait::until("it serves", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    run(&["-s", "reload"]);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--noproxy", "*", &format!("http://127.0.0.1:{port}/")]);
    succeeds(curl);
    run(&["-s", "stop"]);

    nothing_was_raised(&host);
}

#[test]
fn postgresql_at_its_ordinary_work_raises_nothing() {
    let Some(programs) = postgres::programs() else {
        eprintln!("left out: PostgreSQL is not installed here");
        return;
    };
    let host = Host::start(&Config::new());
    let (at, port) = (own_directory(&host, "postgres"), free_port());
    let data = at.join("data");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = host.command(programs.join(program));
        command.arg("-D").arg(&data).args(arguments).env("LC_ALL", "C").stdout(Stdio::null());
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).status().expect("it is installed");
        assert!(output.success(), "{program} {arguments:?}");
    };
    run("initdb", &["-A", "trust", "--no-sync"]);
    let options = format!("-p {port} -c listen_addresses=127.0.0.1 -k {} -c archive_mode=off", at.display());
    let log = at.join("log").display().to_string();
    // As Debian starts and restarts it: pg_ctl has a shell become the server.
    run("pg_ctl", &["-w", "-l", &log, "-o", &options, "start"]);
    run("pg_ctl", &["-w", "-l", &log, "-o", &options, "restart"]);
    let mut psql = Command::new(programs.join("psql"));
    psql.args(["-X", "-h", "127.0.0.1", "-p", &port.to_string(), "-d", "postgres", "-c", "select 1"]);
    psql.args(["-U", &host.service_user().name]).stdout(Stdio::null());
    succeeds(psql);
    run("pg_ctl", &["-w", "-m", "fast", "stop"]);

    nothing_was_raised(&host);
}

#[test]
fn a_cron_job_and_an_upgraded_service_raise_nothing() {
    let mut config = Config::new();
    let mut host = Host::prepare(&config);
    let tool = host.directory().join("tool");
    let install = |from: &str| {
        let beside = tool.with_extension("new");
        fs::copy(from, &beside).expect("cannot copy a program");
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("cannot make it a program");
        fs::rename(&beside, &tool).expect("cannot put it in place");
    };
    install("/bin/sleep");
    config.account = format!(
        "executables = [\"/bin/sh\", \"/usr/bin/python3\", \"{}\", \"/bin/date\", \"/bin/sleep\"]",
        tool.display()
    );
    host.configure(&config);
    host.run_daemon();
    // cron: root's process becomes the user and has a shell run the line; there is a login uid, and no terminal.
    let mut job = host.command("/bin/sh");
    job.args(["-c", "date; /bin/sh -c 'date' > /dev/null"]).stdout(Stdio::null());
    succeeds(job);
    // A service runs, the package manager puts a new file in its place, and the service is restarted.
    let mut old = Ended(host.command(&tool).arg("300").spawn().expect("cannot start the service"));
    install("/bin/date");
    let _ = old.0.kill();
    succeeds(host.command(&tool));

    nothing_was_raised(&host);
}

#[test]
fn a_shell_started_by_a_python_service_ends_its_grants() {
    let peer = writ_tests::TcpPeer::new();
    let host = Host::start(&Config::new().destination("db", peer.address));
    let grant = ["grant", "create", "--account", "tested", "--to", "db", "--ttl", "10m", "--reason", "a migration"];
    host.writ_json(&grant);
    host.attempt("tcp", &[peer.address]).assert_succeeded();
    let service = "import socket,subprocess\ns=socket.create_server(('127.0.0.1',0))\n\
                   subprocess.run(['sh','-c','sleep 3; true'])\n";
    let _service = Ended(python(&host, service).spawn().expect("cannot run python3"));

    assert_eq!(kinds_with(&host, "workload.shell"), ["workload.shell"]);

    wait::until("the grant has ended", || {
        (host.attempt("tcp", &[peer.address]).errno.as_deref() == Some("EACCES")).then_some(())
    });
    let signals = host.writ_json(&["signal", "list"]);
    assert_eq!(signals.pointer("/0/risk"), Some(&json!(70)), "{signals}");
    let evidence = signals.pointer("/0/evidence").and_then(Value::as_str).unwrap_or_default();
    assert!(evidence.contains("has connections open and started a shell"), "{evidence}");
}

/// A host that runs, with a program of its own that the account may run and has run.
fn with_tool(mut config: Config) -> (Host, PathBuf) {
    let mut host = Host::prepare(&config);
    let tool = host.directory().join("tool");
    fs::copy("/bin/true", &tool).expect("cannot copy a program");
    config.account = format!("executables = [\"{}\"]", tool.display());
    host.configure(&config);
    host.run_daemon();
    succeeds(host.command(&tool));
    (host, tool)
}

#[test]
fn an_approved_executable_that_is_written_over_is_noticed_and_its_kind_can_be_declared() {
    let config = Config::new().file(
        "signals.d/drift.toml",
        "[signal.\"workload.executable-changed\"]\nrisk = 35\nttl = \"5m\"\nflag = true\n",
    );
    let (host, tool) = with_tool(config);
    assert!(signals(&host).is_empty());

    // Written over in place, with other contents each time: the first that is read after another was is the finding.
    let program = fs::read("/bin/true").expect("there is /bin/true");
    let mut written = 0u32;
    wait::until("the change is noticed", || {
        written += 1;
        fs::write(&tool, [program.as_slice(), &written.to_le_bytes()].concat()).expect("cannot write over it");
        succeeds(host.command(&tool));
        signals(&host).iter().any(|record| record.text("/kind") == "workload.executable-changed").then_some(())
    });

    let signal = signals(&host).into_iter().find(|record| record.text("/kind").starts_with("workload"));
    assert_eq!(signal.expect("it is on record").number("/risk"), Some(35));
}

#[test]
fn a_login_as_the_account_is_noticed() {
    // As login(1) and sshd do: a login uid, a terminal, the user, a program.
    let login = "import os,pty,sys\nuid=int(sys.argv[1])\nopen('/proc/self/loginuid','w').write(str(uid))\n\
                 os.setgroups([]); os.setresgid(uid,uid,uid); os.setresuid(uid,uid,uid)\npty.spawn(['sleep','3'])\n";
    let host = Host::start(&Config::new());
    let root = User::from_name("root").expect("users can be looked up").expect("there is a root");
    let mut command = host.command_as(&root, "python3");
    command.args(["-c", login, &host.service_user().uid.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let _login = Ended(command.spawn().expect("cannot run python3"));

    assert_eq!(kinds_with(&host, "workload.login-session"), ["workload.login-session"]);
}

fn slept(host: &Host) -> Command {
    let mut command = host.command("/usr/bin/sleep");
    command.arg("0");
    command
}

#[test]
fn what_is_found_again_while_its_signal_lives_is_counted_and_not_said_again() {
    let mut config = Config::new();
    config.account = "executables = [\"/usr/bin/python3\"]".to_owned();
    let host = Host::start(&config);
    let unexpected = |path: &str| {
        let all = signals(&host);
        all.into_iter().filter(|record| record.text("/evidence").contains(&format!("runs {path}"))).count()
    };
    for _ in 0..5 {
        succeeds(slept(&host));
    }
    // Another program is news, and shows that the five before it were looked at.
    succeeds(host.command("/usr/bin/true"));
    wait::until("the other is raised", || (unexpected("/usr/bin/true") == 1).then_some(()));
    assert_eq!(unexpected("/usr/bin/sleep"), 1);
    // A signal that was cleared says nothing any more: the next start does, with how often it happened meanwhile.
    let list = host.writ_json(&["signal", "list"]);
    let id = list.pointer("/0/id").and_then(Value::as_str).expect("the signal has an id").to_owned();
    host.writ_json(&["signal", "clear", &id, "--reason", "looked at"]);
    succeeds(slept(&host));
    wait::until("it is raised again", || (unexpected("/usr/bin/sleep") == 2).then_some(()));
    let last = signals(&host).pop().expect("there is one");
    assert!(last.text("/evidence").contains("4 times more"), "{last:?}");
}

#[test]
fn an_executable_that_is_written_over_while_writ_is_away_is_noticed_when_it_is_back() {
    let (mut host, tool) = with_tool(Config::new());
    let state = host.directory().join("state/executables.json");
    wait::until("what it is has been kept", || {
        fs::read_to_string(&state).is_ok_and(|text| text.contains("/tool")).then_some(())
    });
    host.kill_daemon();
    let program = fs::read("/bin/true").expect("there is /bin/true");
    fs::write(&tool, [program.as_slice(), b"other"].concat()).expect("cannot write over it");
    host.run_daemon();
    assert!(signals(&host).is_empty());
    succeeds(host.command(&tool));
    assert_eq!(kinds_with(&host, "workload.executable-changed"), ["workload.executable-changed"]);
}
