//! `writ run`: read, open, announce, serve, drain. Enforcement outlives every way this can end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::Uid;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use super::{INTERNAL, NOT_PERMITTED, output};
use crate::configuration::render;
use crate::engine::{self, Actor, Ended, Handle, OpenedEngine, StartError};
use crate::kernel::Hangups;
use crate::serve;
use crate::stack::STACK;

/// Enforcement was taken away by `writ uninstall`: the service manager is not to put it back (`RestartPreventExitStatus=`).
const UNINSTALLED: u8 = 6;

/// What `run` takes.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {}

/// Runs the daemon.
pub(super) fn run(config_dir: &Path, _: &Args) -> anyhow::Result<ExitCode> {
    announce_on_stderr();
    if !Uid::effective().is_root() {
        eprintln!("error: `writ run` needs root, or CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN");
        return Ok(ExitCode::from(NOT_PERMITTED));
    }
    // Before anything is opened: maps, the log, and every connection that may be admitted.
    serve::make_room();
    let OpenedEngine { engine, findings, sources } = match engine::open(config_dir) {
        Ok(opened) => opened,
        Err(StartError::Refused(findings, sources)) => {
            eprint!("{}", render::render(&findings, &sources, output::colours()));
            eprintln!("error: the configuration is refused, and there is no earlier one to fall back to");
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => {
            eprintln!("error: {error}");
            eprintln!("  enforcement that was pinned before stays in force");
            return Ok(ExitCode::FAILURE);
        }
    };
    if !findings.is_empty() {
        eprint!("{}", render::render(&findings, &sources, output::colours()));
    }
    let socket = engine.current().map(|current| PathBuf::from(&current.config.agent.paths.socket)).unwrap_or_default();
    let https = engine.current().and_then(|current| current.config.agent.https.clone());
    // Whichever thread lets go of a policy set last takes its policies apart, by recursion too.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // With two, one can read requests while the other is the engine's.
    let runtime = runtime.worker_threads(2).thread_stack_size(STACK).enable_all().build()?;
    let code = runtime.block_on(async move {
        let server = match serve::bind(&socket).await {
            Ok(server) => server,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        };
        let https = match &https {
            None => None,
            Some(https) => match serve::bind_https(https).await {
                Ok(server) => Some(server),
                Err(error) => {
                    eprintln!("error: {error}");
                    return ExitCode::FAILURE;
                }
            },
        };
        match engine::run(engine) {
            Ok((handle, stopped)) => lifecycle(handle, stopped, server, https).await,
            Err(error) => {
                eprintln!("error: the engine cannot run: {error}");
                ExitCode::from(INTERNAL)
            }
        }
    });
    Ok(code)
}

/// Serves until it is asked to end, or has nothing to serve any more; the exit code says which.
async fn lifecycle(
    handle: Handle,
    stopped: tokio::sync::oneshot::Receiver<Ended>,
    server: serve::Server,
    https: Option<serve::HttpsServer>,
) -> ExitCode {
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let serving = tokio::spawn(server.serve(handle.clone(), https, stopping));
    // Policy is in force, and the socket answers.
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("policy in force")]);
    tracing::info!("policy in force");
    let watchdog = tokio::spawn(watchdog(handle.clone()));
    let tested = tokio::spawn(test_each_minute(handle.clone()));
    let ended = tokio::select! {
        () = signals(&handle) => Ended::Asked,
        ended = stopped => ended.unwrap_or(Ended::Failed),
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    watchdog.abort();
    tested.abort();
    let _ = stop.send(true);
    let _ = tokio::time::timeout(Duration::from_secs(5), handle.ask(engine::Engine::begin_stop)).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), serving).await;
    handle.drained().await;
    match ended {
        Ended::Asked => {
            tracing::info!("stopped; enforcement stays in force until `writ uninstall`");
            ExitCode::SUCCESS
        }
        Ended::Uninstalled => {
            tracing::info!("stopped: enforcement was taken away");
            ExitCode::from(UNINSTALLED)
        }
        Ended::Failed => {
            tracing::error!("the engine stopped by itself; enforcement stays in force");
            ExitCode::from(INTERNAL)
        }
    }
}

/// Waits for the end; reloads on the way.
async fn signals(handle: &Handle) {
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangups)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), Hangups::taken())
    else {
        tracing::error!("signals cannot be waited for");
        return;
    };
    // A write beyond a limit on file sizes is an error like any other, not an end: taking the signal makes it one.
    let _too_large = signal(SignalKind::from_raw(libc::SIGXFSZ));
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            (pid, uid) = hangups.next() => {
                // The name service may take its time. The kernel itself, for a terminal that went away, is nobody.
                let named = tokio::task::spawn_blocking(move || (pid != 0).then(|| Actor::local(uid, pid)));
                let by = named.await.ok().flatten();
                match handle.ask(move |engine| engine.reload(by.as_ref())).await {
                    Ok(Ok(reloaded)) => tracing::info!(generation = reloaded.generation, "reloaded"),
                    Ok(Err((problem, _))) => tracing::error!(problem, "reload refused; the configuration before is in force"),
                    Err(_) => return,
                }
            }
        }
    }
}

/// Tells systemd that the engine still takes its turns; silence gets us restarted, and enforcement adopted.
async fn watchdog(handle: Handle) {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(every / 3);
    loop {
        tick.tick().await;
        if handle.ask(|_| ()).await.is_ok() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

/// How many seconds lie between two self-tests; 0: there are none but those that somebody asks for. For tests, which count
/// attempts: it is not named in the unit, and a daemon that it weakens says so.
const SELF_TEST_EVERY: &str = "WRIT_SELF_TEST_EVERY";

/// Tries what must be refused, again and again: a hook that is attached and never fires looks like one that works.
async fn test_each_minute(handle: Handle) {
    let asked = std::env::var(SELF_TEST_EVERY).ok().and_then(|seconds| seconds.parse().ok());
    let every = Duration::from_secs(asked.unwrap_or(60));
    if every.is_zero() {
        tracing::warn!("{SELF_TEST_EVERY} is 0: that the hooks fire is not tested by itself");
        return;
    }
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(cgroup) = handle.ask(|engine| engine.kernel.cgroup().attached.clone()).await else { return };
        let Ok(outcome) = tokio::task::spawn_blocking(move || engine::self_test(&cgroup)).await else { continue };
        if handle.ask(move |engine| engine.self_tested(outcome)).await.is_err() {
            return;
        }
    }
}

fn announce_on_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("WRIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Where standard error cannot be written (a full disk, a pipe nobody reads), saying so there would be a panic.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(output::colours())
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .try_init();
}
