//! Real programs and servers: what is refused fails with the errno, what is allowed does not notice.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use writ_tests::{Config, Host, TcpPeer, wait};

/// A server that is asked to end when the test does.
struct Server(Child, Signal);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), self.1);
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> Output {
    host.command(program).args(arguments).output().unwrap_or_else(|error| panic!("`{program}`: {error}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Where a program that not every machine has lies; a test without it says that it proved nothing.
fn installed(paths: &[&str]) -> Option<PathBuf> {
    let found = paths.iter().map(PathBuf::from).find(|path| path.is_file());
    if found.is_none() {
        println!("left out: none of {paths:?} is installed here");
    }
    found
}

#[test]
fn curl_over_ipv6_is_refused_and_served() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("left out: no IPv6 here");
        return;
    };
    let open = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    });
    let host = Host::start(&Config::new().destination("open", open).permit("to-open", "open"));
    let curl =
        |to: SocketAddr| run(&host, "/usr/bin/curl", &["-sS", "--noproxy", "*", "-m", "20", &format!("http://{to}/")]);

    let served = curl(open);
    assert_eq!(said(&served), "hello");
    server.join().unwrap();
    let closed = SocketAddr::new(open.ip(), free_port());
    assert_eq!(curl(closed).status.code(), Some(7));

    host.expect_judgements(&[format!("allow tcp {open} by to-open"), format!("deny tcp {closed} EACCES")].map(
        // An IPv6 address of a record stands alone.
        |text| text.replace("[::1]", "::1"),
    ));
}

#[test]
fn python_sees_a_permission_error() {
    let (open, closed) = (TcpPeer::new(), TcpPeer::new());
    let host = Host::start(&Config::new().destination("open", open.address).permit("to-open", "open"));
    let python = |port: u16| {
        let script = format!(
            "import socket\ntry:\n    socket.create_connection(('127.0.0.1', {port}))\n    print('connected')\nexcept \
             PermissionError as error:\n    print(error.errno)"
        );
        said(&run(&host, "/usr/bin/python3", &["-c", &script]))
    };

    assert_eq!(python(open.address.port()), "connected\n");
    assert_eq!(python(closed.address.port()), "13\n");
}

#[test]
fn psql_is_served_by_the_database_it_may_reach_and_refused_by_the_other() {
    let Some(postgres) = installed(&["/usr/lib/postgresql/15/bin/postgres"]) else { return };
    let bin = postgres.parent().unwrap().to_owned();
    let owner = User::from_name("postgres").unwrap().unwrap();
    let directory = tempfile(&owner);
    let data = directory.path().join("data");
    let as_owner = |program: &Path| {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(program);
        command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw()).current_dir("/").stdin(Stdio::null());
        command
    };
    let made = as_owner(&bin.join("initdb")).args(["--auth=trust", "--no-sync", "-D"]).arg(&data).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let (open, closed) = (free_port(), free_port());
    let mut start = as_owner(&postgres);
    start.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &open.to_string(), "-F", "-k"]).arg(directory.path());
    let _server = Server(start.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), Signal::SIGINT);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, open));
    let host = Host::start(&Config::new().destination("database", address).permit("to-database", "database"));
    let ready = bin.join("pg_isready");
    wait::until("the database answers", || {
        let asked = Command::new(&ready).args(["-h", "127.0.0.1", "-p", &open.to_string()]).output().unwrap();
        asked.status.success().then_some(())
    });
    let psql = |port: u16| {
        let to = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=20");
        said(&run(&host, "/usr/bin/psql", &["-XAtc", "select 6 * 7", &to]))
    };

    assert_eq!(psql(open), "42\n");
    let refused = psql(closed);
    assert!(refused.contains("Permission denied"), "{refused}");
    host.expect_judgements(&[
        format!("allow tcp {address} by to-database"),
        format!("deny tcp 127.0.0.1:{closed} EACCES"),
    ]);
}

#[test]
fn redis_is_served_where_it_may_go() {
    let Some(redis) = installed(&["/usr/bin/redis-server"]) else { return };
    let (open, closed) = (free_port(), free_port());
    let mut start = Command::new(redis);
    start.args(["--port", &open.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let _server = Server(start.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), Signal::SIGTERM);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, open));
    wait::until("redis listens", || std::net::TcpStream::connect(address).ok());
    let host = Host::start(&Config::new().destination("cache", address).permit("to-cache", "cache"));
    let redis =
        |port: u16| said(&run(&host, "/usr/bin/redis-cli", &["-h", "127.0.0.1", "-p", &port.to_string(), "PING"]));

    assert_eq!(redis(open), "PONG\n");
    let refused = redis(closed);
    assert!(refused.contains("Permission denied"), "{refused}");
}

/// A directory that belongs to this user.
fn tempfile(owner: &User) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    nix::unistd::chown(directory.path(), Some(owner.uid), Some(owner.gid)).unwrap();
    directory
}
