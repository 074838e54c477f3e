//! What a question to the decision point costs: evaluations a second and latency over the unix socket with 1,000 accounts,
//! and whether a connect notices. `writ-bench-decision [SECONDS]`, for each number of clients. Another engine runs beside it
//! where it was built in (`--features beside`, as `cargo xtask bench decision` does).

#[cfg(feature = "beside")]
mod beside;

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use writ_tests::{Config, Host, config, wait};

const ACCOUNTS: usize = 1_000;
/// Connects of one measurement of the connect path.
const CONNECTS: u32 = 5_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [worker, address] = arguments.as_slice()
        && worker == "worker"
    {
        return connects(address.parse()?);
    }
    let seconds = Duration::from_secs(arguments.first().map_or(Ok(5), |text| text.parse())?);
    let peer = UdpSocket::bind("127.0.0.1:0")?;
    eprintln!("a host with {ACCOUNTS} accounts starts …");
    let host = Host::start(&configuration(&peer)?);
    let socket = host.socket();
    let calm = median(&host, &peer)?;
    println!("| clients | evaluations/s | p50 | p99 | connect, beside it |");
    println!("|---|---|---|---|---|");
    println!("| none | | | | {calm:.0} ns |");
    for clients in [1, 32, 256] {
        // The first second warms up.
        load(&socket, clients, Duration::from_secs(1), || Ok(0.0))?;
        let (rate, p50, p99, _) = load(&socket, clients, seconds, || Ok(0.0))?;
        let (.., connect) = load(&socket, clients, Duration::from_secs(60), || median(&host, &peer))?;
        println!("| {clients} | {rate:.0} | {p50} µs | {p99} µs | {connect:.0} ns (×{:.2}) |", connect / calm);
    }
    let settled =
        wait::within(Duration::from_secs(30), || host.writ_output(&["verify"]).status.success().then_some(()));
    anyhow::ensure!(settled.is_some(), "the log does not verify after the load");
    #[cfg(feature = "beside")]
    another(seconds)?;
    Ok(())
}

/// The other engine's rate and latency, in the same table.
#[cfg(feature = "beside")]
fn another(seconds: Duration) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("regorus.sock");
    beside::serve(&socket, ACCOUNTS)?;
    for clients in [1, 32, 256] {
        load(&socket, clients, Duration::from_secs(1), || Ok(0.0))?;
        let (rate, p50, p99, _) = load(&socket, clients, seconds, || Ok(0.0))?;
        println!("| {clients}, regorus | {rate:.0} | {p50} µs | {p99} µs | |");
    }
    Ok(())
}

/// A thousand accounts in ten teams, each team with its own secrets, and rules for all of them.
fn configuration(peer: &UdpSocket) -> anyhow::Result<Config> {
    let mut accounts = String::new();
    for index in 0..ACCOUNTS {
        accounts += &format!("[service-account.svc-{index}]\nowner = \"bench\"\nteam = [\"team-{}\"]\n", index % 10);
    }
    let mut policies = String::new();
    for team in 0..10 {
        policies += &format!(
            "@id(\"team-{team}\") @owner(\"bench\") @reason(\"its own secrets\") @max_ttl(\"15m\")\npermit (principal in \
             Team::\"team-{team}\", action == Action::\"issue\", resource in Vault::\"vault-{team}\")\nwhen {{ \
             context.pipeline == \"release\" }};\n"
        );
    }
    policies += "@id(\"risky\") @owner(\"bench\") @reason(\"too risky\")\nforbid (principal, action == Action::\"issue\", \
                 resource) when { context.risk >= 70 || context.signals.contains(\"caep.session-revoked\") };\n";
    let schema = "entity Vault;\nentity Secret in [Vault];\naction issue appliesTo { principal: [ServiceAccount], resource: \
                  [Secret, Vault], context: { pipeline: String, risk: Long, signals: Set<String> } };\n";
    Ok(Config::new()
        .destination("peer", peer.local_addr()?)
        .permit("to-peer", "peer")
        .file("service-accounts.d/many.toml", &accounts)
        .file("schema.d/bench.cedarschema", schema)
        .file("policies.d/bench.cedar", &policies))
}

/// One exchange on a connection that stays open.
fn ask(stream: &mut UnixStream, account: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
    let body = json!({
        "subject": { "type": "service_account", "id": format!("svc-{account}") },
        "action": { "name": "issue" },
        "resource": { "type": "Vault", "id": format!("vault-{}", account % 10) },
        "context": { "pipeline": "release" },
    })
    .to_string();
    let head = "POST /access/v1/evaluation HTTP/1.1\r\nhost: writ\r\ncontent-type: application/json\r\ncontent-length:";
    stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut read = 0;
    loop {
        let more = stream.read(buffer.get_mut(read..).unwrap_or_default())?;
        anyhow::ensure!(more > 0, "the daemon hung up");
        read += more;
        let text = std::str::from_utf8(buffer.get(..read).unwrap_or_default())?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length.is_some_and(|length| body.len() >= length) {
            anyhow::ensure!(body.starts_with("{\"decision\":true"), "not permitted: {body}");
            return Ok(());
        }
    }
}

/// Clients that ask as fast as they are answered, until the time is over or `beside` is done; rate, p50, p99, and what it gave.
fn load(
    socket: &Path,
    clients: usize,
    most: Duration,
    beside: impl FnOnce() -> anyhow::Result<f64>,
) -> anyhow::Result<(f64, u128, u128, f64)> {
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..clients)
            .map(|client| {
                let over = &over;
                scope.spawn(move || -> anyhow::Result<Vec<u128>> {
                    let mut stream = UnixStream::connect(socket)?;
                    let mut buffer = vec![0; 8_192];
                    let mut took = Vec::new();
                    let mut account = client;
                    while !over.load(Ordering::Relaxed) && begun.elapsed() < most {
                        let asked = Instant::now();
                        ask(&mut stream, account % ACCOUNTS, &mut buffer)?;
                        took.push(asked.elapsed().as_micros());
                        account += 7;
                    }
                    Ok(took)
                })
            })
            .collect();
        let gave = beside();
        if !matches!(gave, Ok(0.0)) {
            over.store(true, Ordering::Relaxed);
        }
        let mut took = Vec::new();
        for asker in askers {
            took.extend(asker.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        let elapsed = begun.elapsed().as_secs_f64();
        took.sort_unstable();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(0);
        Ok((took.len() as f64 / elapsed, at(0.5), at(0.99), gave?))
    })
}

/// The median of some measurements of the connect path, each by a process that is the account.
fn median(host: &Host, peer: &UdpSocket) -> anyhow::Result<f64> {
    let address = peer.local_addr()?;
    let program: PathBuf = std::env::current_exe()?;
    let mut each = Vec::new();
    for _ in 0..3 {
        let mut command: Command = host.command(&program);
        let output = command.args(["worker", &address.to_string()]).output()?;
        let text = String::from_utf8(output.stdout)?;
        each.push(text.trim().parse::<f64>().map_err(|_| anyhow::anyhow!("worker of {}: {text}", config::ACCOUNT))?);
        wait::within(Duration::from_secs(5), || {
            let status = host.status();
            let number = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
            (number("/records/in_flight") == 0).then_some(())
        });
    }
    each.sort_by(f64::total_cmp);
    Ok(each.get(each.len() / 2).copied().unwrap_or(f64::NAN))
}

/// The fastest tenth: what is measured is the call, not how often it was interrupted by the load on the same processors.
fn connects(address: std::net::SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut took: Vec<u64> = Vec::new();
    for _ in 0..CONNECTS / 100 {
        let began = Instant::now();
        for _ in 0..100 {
            socket.connect(address)?;
        }
        took.push(u64::try_from(began.elapsed().as_nanos())? / 100);
    }
    took.sort_unstable();
    println!("{}", took.get(took.len() / 10).copied().unwrap_or(0));
    Ok(())
}
