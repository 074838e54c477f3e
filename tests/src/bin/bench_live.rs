//! How fast what is known changes what may be done: a signal's receipt to the next connect's refusal and to the end of
//! sessions, signals in a second, grants. On a host with a thousand accounts.
//!
//! `writ-bench-live [ROUNDS [ACCOUNTS]]`. Times are from before the request is written to what the account's own process
//! sees, unless a row says otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use writ_tests::{Api, Estate, Host, KeepingPeer, config::ACCOUNT, user, wait};

/// Sessions of the account that is cut.
const SESSIONS: usize = 10;
/// Other connections on the host; each has two sockets.
const OTHERS: usize = 5_000;
/// How long signals are sent as fast as they are taken.
const FLOOD: Duration = Duration::from_secs(5);
/// Who sends them, each waiting for its answer.
const SENDERS: usize = 32;
/// How long one kind of measurement may take: then it is what it is, and the row says of how many rounds. All of them
/// together are done in about four minutes.
const MOST: Duration = Duration::from_secs(20);
/// How many times as many refusals are measured, in how many times the time: of a hundred, the 99th percentile is the worst but one.
const REFUSALS: u32 = 4;
/// How long the daemon is waited for to have nothing left to prepare.
const QUIET: Duration = Duration::from_secs(25);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["watch", to] => return watch(to.parse()?),
        ["verify", accounts, to] => return verify(accounts.parse()?, to.parse()?),
        _ => {}
    }
    let rounds: usize = arguments.first().map_or(Ok(100), |text| text.parse())?;
    let accounts = arguments.get(1).map_or(Ok(Estate::FULL.accounts), |text| text.parse())?;
    let estate = Estate { accounts, ..Estate::FULL };
    eprintln!("a host with {accounts} accounts starts …");
    let host = Host::start(&estate.config());
    println!("| what | p50 | p99 | most | rounds |");
    println!("|---|---|---|---|---|");
    refusals(&host, rounds * REFUSALS as usize)?;
    cold(&host, estate, rounds.min(25))?;
    grants(&host, rounds.min(50))?;
    cuts(&host, rounds.min(40))?;
    flood(&host, estate)
}

/// Nanoseconds of the clock that every process shares.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The process of the account: it connects without end and says when the answer changes.
struct Watcher {
    child: Child,
    changes: BufReader<ChildStdout>,
    _input: ChildStdin,
}

impl Watcher {
    fn start(host: &Host) -> anyhow::Result<Self> {
        let program = host.directory().join("writ-bench-live");
        fs::copy(std::env::current_exe()?, &program)?;
        let mut command = host.command(&program);
        command.args(["watch", "127.0.0.1:9"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        // It finds a processor whenever it wakes: what is measured is since when the kernel refuses, not when somebody had the
        // time to notice.
        let pid = child.id().to_string();
        ensure!(Command::new("chrt").args(["--fifo", "--pid", "1", &pid]).status()?.success(), "chrt failed");
        let changes = BufReader::new(child.stdout.take().context("no output")?);
        let input = child.stdin.take().context("no input")?;
        let mut watcher = Self { child, changes, _input: input };
        watcher.until("allowed")?;
        Ok(watcher)
    }

    /// When the answer became this.
    fn until(&mut self, wanted: &str) -> anyhow::Result<u64> {
        loop {
            let mut line = String::new();
            ensure!(self.changes.read_line(&mut line)? > 0, "the watcher ended");
            if let Some((answer, at)) = line.trim().split_once(' ')
                && answer == wanted
            {
                return Ok(at.parse()?);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(to: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut last = None;
    let mut output = std::io::stdout();
    nix::sys::prctl::set_timerslack(1)?;
    loop {
        let allowed = socket.connect(to).is_ok();
        let at = now();
        if last != Some(allowed) {
            writeln!(output, "{} {at}", if allowed { "allowed" } else { "refused" })?;
            output.flush()?;
            last = Some(allowed);
        }
        // A few thousand records a second are to be written meanwhile, not a million.
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn signal(api: &mut Api, account: &str, kind: &str) -> anyhow::Result<String> {
    let (status, answer) = api.post("/v1/signals", &json!({ "account": account, "kind": kind }));
    ensure!(status == 200, "signal: {status} {answer}");
    let id = answer.pointer("/outcome/signal/id").and_then(Value::as_str).context("the signal has no id")?;
    Ok(id.to_owned())
}

fn clear(api: &mut Api, id: &str) -> anyhow::Result<()> {
    let (status, answer) = api.post(&format!("/v1/signals/{id}/clear"), &json!({ "reason": "measured" }));
    ensure!(status == 200, "clear: {status} {answer}");
    Ok(())
}

/// Waits until the daemon has nothing left to prepare: it uses no time of its own any more.
fn idle(host: &Host) -> anyhow::Result<()> {
    let used = || -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", host.daemon_pid()))?;
        let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Ok(ticks(11) + ticks(12))
    };
    eprintln!("the daemon prepares …");
    let mut before = used()?;
    let deadline = Instant::now() + QUIET;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let after = used()?;
        if after - before <= 2 || Instant::now() > deadline {
            return Ok(());
        }
        before = after;
    }
}

fn refusals(host: &Host, rounds: usize) -> anyhow::Result<()> {
    idle(host)?;
    let mut api = host.api();
    let mut watcher = Watcher::start(host)?;
    let (mut floor, mut refused, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    let mut sent = BTreeSet::new();
    let started = Instant::now();
    for _ in 0..rounds {
        if started.elapsed() > MOST * REFUSALS {
            break;
        }
        // As long after the last question as the signal, and to the engine and back like it: what else it takes is writ's.
        let began = now();
        let (status, answer) = api.get("/.well-known/authzen-configuration");
        floor.push(now() - began);
        ensure!(status == 200, "metadata: {status} {answer}");
        std::thread::sleep(Duration::from_millis(30));
        let began = now();
        let id = signal(&mut api, ACCOUNT, "bench.malware")?;
        answered.push(now() - began);
        refused.push(watcher.until("refused")?.saturating_sub(began));
        clear(&mut api, &id)?;
        watcher.until("allowed")?;
        sent.insert(id);
        std::thread::sleep(Duration::from_millis(30));
    }
    let changes = host.records_of("change").into_iter().filter(|change| sent.contains(change.text("/cause_id")));
    let applied = changes.filter(|change| change.text("/cause") == "signal");
    let applied = applied.filter_map(|change| change.number("/applied_us")).map(|micros| micros * 1_000).collect();
    row("a question that asks and changes nothing → answered (the floor of the next)", floor);
    row("signal whose row is prepared → next connect refused", refused);
    let what =
        "the same: received by the API → in the kernel, so that every connect is refused (`applied_us` of its record)";
    row(what, applied);
    row("the same → answered, after the grace period and its record", answered);
    Ok(())
}

fn cold(host: &Host, estate: Estate, rounds: usize) -> anyhow::Result<()> {
    let mut api = host.api();
    let mut watcher = Watcher::start(host)?;
    let mut refused = Vec::new();
    let started = Instant::now();
    for round in 0..rounds {
        if started.elapsed() > MOST {
            break;
        }
        let last = estate.accounts - 1;
        let note = format!("round {round}");
        let first = last - last % 10;
        let text: String = (first..=last).map(|account| estate.policies_of(account, &note)).collect();
        fs::write(host.config_directory().join(Estate::policy_file(last)), text)?;
        let (status, answer) = api.post("/v1/reload", &json!({}));
        ensure!(status == 200, "reload: {answer}");
        let began = now();
        let id = signal(&mut api, ACCOUNT, "bench.malware")?;
        refused.push(watcher.until("refused")?.saturating_sub(began));
        clear(&mut api, &id)?;
        watcher.until("allowed")?;
    }
    row("signal right after a reload, nothing prepared → next connect refused", refused);
    Ok(())
}

fn grants(host: &Host, rounds: usize) -> anyhow::Result<()> {
    idle(host)?;
    let mut api = host.api();
    let (mut named, mut made, mut revoked) = (Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    for round in 0..rounds {
        if started.elapsed() > MOST {
            break;
        }
        let to = [Estate::destination(17), format!("198.51.100.{}:8443/tcp", round % 20 + 1)];
        for (to, samples) in to.iter().zip([&mut named, &mut made]) {
            let began = now();
            let body = json!({ "account": ACCOUNT, "to": to, "ttl": "5m", "reason": "measured" });
            let (status, answer) = api.post("/v1/grants", &body);
            ensure!(status == 200, "grant: {status} {answer}");
            samples.push(now() - began);
            let id = answer.pointer("/id").and_then(Value::as_str).context("the grant has no id")?.to_owned();
            let began = now();
            let (status, answer) = api.post(&format!("/v1/grants/{id}/revoke"), &json!({ "reason": "measured" }));
            ensure!(status == 200, "revoke: {status} {answer}");
            revoked.push(now() - began);
        }
    }
    row("grant for a declared destination → answered", named);
    row("grant for an address and port → answered", made);
    row("grant revoked → answered", revoked);
    Ok(())
}

fn cuts(host: &Host, rounds: usize) -> anyhow::Result<()> {
    let peer = KeepingPeer::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let elsewhere = listener.local_addr()?;
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        others.push((TcpStream::connect(elsewhere)?, listener.accept()?.0));
    }
    idle(host)?;
    let mut api = host.api();
    for (sessions, rounds) in [(SESSIONS, rounds), (1_000, 5)] {
        let (mut cut, mut answered) = (Vec::new(), Vec::new());
        let started = Instant::now();
        for _ in 0..rounds {
            if started.elapsed() > MOST && !cut.is_empty() {
                break;
            }
            let held = host.hold(sessions, "tcp", peer.address);
            peer.wait_for(sessions);
            std::thread::sleep(Duration::from_millis(50));
            let began = now();
            // The answer comes after the cut; what the peers see is read beside it.
            let (done, id) = std::thread::scope(|scope| -> anyhow::Result<(u64, String)> {
                let ends = scope.spawn(|| {
                    let mut ended = 0;
                    let deadline = Instant::now() + wait::PATIENCE;
                    while ended < sessions && Instant::now() < deadline {
                        ended += peer.read().1.values().sum::<u64>() as usize;
                    }
                    (ended, now())
                });
                let id = signal(&mut api, ACCOUNT, "bench.malware")?;
                answered.push(now() - began);
                let (ended, at) = ends.join().map_err(|_| anyhow::anyhow!("the reader failed"))?;
                ensure!(ended >= sessions, "{ended} of {sessions} sessions were cut");
                Ok((at, id))
            })?;
            cut.push(done - began);
            drop(held);
            clear(&mut api, &id)?;
            std::thread::sleep(Duration::from_millis(50));
        }
        row(
            &format!("signal → all {sessions} sessions of the account reset at the peer, {} other sockets", OTHERS * 2),
            cut,
        );
        row("the same → answered", answered);
    }
    Ok(())
}

fn flood(host: &Host, estate: Estate) -> anyhow::Result<()> {
    idle(host)?;
    let began = Instant::now();
    let last: Vec<(u64, Vec<(u32, bool)>)> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn(move || -> anyhow::Result<(u64, Vec<(u32, bool)>)> {
                    let mut api = host.api();
                    let (mut sent, mut last) = (0, Vec::new());
                    // Each has accounts of its own, so that the last word about each is known.
                    let mine: Vec<u32> = (0..estate.accounts).filter(|at| *at as usize % SENDERS == sender).collect();
                    let mut closed = vec![false; mine.len()];
                    let mut turn = 0usize;
                    while began.elapsed() < FLOOD {
                        let at = turn % mine.len();
                        let grave = (turn / mine.len() + at) % 7 == 3;
                        let account = mine.get(at).copied().unwrap_or(0);
                        let kind = if grave { "bench.malware" } else { "bench.note" };
                        signal(&mut api, &Estate::account(account), kind)?;
                        if let Some(closed) = closed.get_mut(at) {
                            *closed |= grave;
                        }
                        sent += 1;
                        turn += 1;
                    }
                    last.extend(mine.into_iter().zip(closed));
                    Ok((sent, last))
                })
            })
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap_or_else(|_| anyhow::bail!("a sender failed")))
            .collect::<anyhow::Result<_>>()
    })?;
    let took = began.elapsed();
    let sent: u64 = last.iter().map(|(sent, _)| sent).sum();
    let expected: Vec<(u32, bool)> = last.into_iter().flat_map(|(_, last)| last).collect();
    let wrong = verified(host, estate, &expected)?;
    println!(
        "| signals taken, recorded and in the kernel, {SENDERS} senders, {} accounts | {:.0} a second | | | {sent} in {:.1} s; {} accounts' kernel answers checked, {wrong} differ |",
        estate.accounts,
        sent as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        expected.len(),
    );
    ensure!(wrong == 0, "the kernel does not say what the signals said");
    Ok(())
}

/// How many accounts are not answered by the kernel as their last signals say.
fn verified(host: &Host, estate: Estate, expected: &[(u32, bool)]) -> anyhow::Result<usize> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["verify", &estate.accounts.to_string(), &host.cgroup().path().display().to_string()]);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let refused: Vec<bool> = text.split_whitespace().map(|word| word == "refused").collect();
    Ok(expected.iter().filter(|(account, closed)| refused.get(*account as usize) != Some(closed)).count())
}

/// Connects once as every account, to where it may go while it is calm.
fn verify(accounts: u32, cgroup: std::path::PathBuf) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))?
        .write_all(std::process::id().to_string().as_bytes())?;
    let service = user::ensure(user::SERVICE).uid.as_raw();
    for account in 0..accounts {
        let uid = nix::unistd::Uid::from_raw(if account == 0 { service } else { user::BENCH_UIDS + account });
        nix::unistd::setresuid(uid, uid, nix::unistd::ROOT)?;
        let to = Estate::address(Estate::FULL.reachable(account));
        let answer = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect((to, 9)));
        nix::unistd::setresuid(nix::unistd::ROOT, nix::unistd::ROOT, nix::unistd::ROOT)?;
        println!("{}", if answer.is_ok() { "allowed" } else { "refused" });
    }
    Ok(())
}

fn row(what: &str, mut samples: Vec<u64>) {
    samples.sort_unstable();
    let at = |share: f64| {
        let index = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
        samples.get(index).map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1e6)
    };
    println!("| {what} | {:.2} ms | {:.2} ms | {:.2} ms | {} |", at(0.5), at(0.99), at(1.0), samples.len());
}
