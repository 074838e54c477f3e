//! A real PostgreSQL server on loopback, outside the judged cgroup, and real `psql` sessions inside it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use tempfile::TempDir;

use crate::{Host, wait};

/// A server with one database, in a directory of its own.
#[derive(Debug)]
pub struct Postgres {
    /// Where it listens.
    pub address: SocketAddr,
    directory: TempDir,
    server: Child,
}

/// Where its programs are; `None` where PostgreSQL is not installed (the virtual machines have none).
pub fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("postgres").is_file())
}

fn as_postgres(program: &Path) -> Command {
    let user = User::from_name("postgres").ok().flatten().expect("PostgreSQL is installed without its user");
    let mut command = Command::new(program);
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/").env("LC_ALL", "C");
    command
}

impl Postgres {
    /// Starts a server in the directory of programs.
    #[track_caller]
    pub fn start(programs: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("writ-postgres-").tempdir().expect("cannot make a directory");
        let user = User::from_name("postgres").ok().flatten().expect("PostgreSQL is installed without its user");
        chown(directory.path(), Some(user.uid), Some(user.gid)).expect("cannot give the directory away");
        let data = directory.path().join("data");
        let made = as_postgres(&programs.join("initdb"))
            .args(["--auth=trust", "--no-sync", "--username=postgres", "--pgdata"])
            .arg(&data)
            .output()
            .expect("cannot run initdb");
        assert!(made.status.success(), "{made:?}");
        // Free now, and nobody else here takes ports by number.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot listen on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        drop(listener);
        let output = fs::File::create(directory.path().join("server.log")).expect("cannot make the server's log");
        let mut command = as_postgres(&programs.join("postgres"));
        command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "-k", ""]);
        command.args(["-c", "fsync=off"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        // SAFETY: between fork and exec this makes one system call; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGQUIT)?)) };
        let server = command.spawn().expect("cannot start PostgreSQL");
        let postgres = Self { address, directory, server };
        wait::until("PostgreSQL accepts connections", || {
            postgres.log().contains("ready to accept connections").then_some(())
        });
        postgres
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).expect("a pid is positive"));
        // Immediate shutdown: it takes its children along.
        let _ = kill(pid, Signal::SIGQUIT);
        let _ = self.server.wait();
    }
}

/// A `psql` of the account under test, inside a transaction.
#[derive(Debug)]
pub struct Psql {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Psql {
    /// Connects, begins a transaction and waits until the server has answered.
    #[track_caller]
    pub fn begin(host: &Host, programs: &Path, server: SocketAddr) -> Self {
        let mut command = host.command(programs.join("psql"));
        command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").env("LC_ALL", "C");
        command.args(["-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-p", &server.port().to_string()]);
        command.args(["-U", "postgres", "-d", "postgres"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start psql");
        let stdin = child.stdin.take().expect("psql's input is piped");
        let stdout = BufReader::new(child.stdout.take().expect("psql's output is piped"));
        let mut psql = Self { child, stdin, stdout };
        assert_eq!(psql.query("begin; select 6 * 7;").as_deref(), Some("42"), "{}", psql.failure());
        psql
    }

    /// Runs a query of one row; `None` if there is no answer.
    pub fn query(&mut self, query: &str) -> Option<String> {
        self.stdin.write_all(format!("{query}\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line.trim().to_owned())
    }

    /// What it says once it has given up.
    pub fn failure(&mut self) -> String {
        let _ = self.stdin.write_all(b"\\q\n");
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
