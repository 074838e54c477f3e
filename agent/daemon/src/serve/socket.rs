//! The socket: made anew at each start, open to every local user, since what each may do is decided per request.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::caller::Peer;
use super::connection;
use super::held::Held;
use super::https::HttpsServer;
use super::limit::{Limits, turn_away};
use super::pace::Askers;
use super::quiet::{Arrival, Quiet};
use super::routes;
use super::sight::Sightings;
use super::ssf::Receiver;
use crate::engine::Handle;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("socket `{path}`: {why}")]
pub(crate) struct ServeError {
    /// The socket.
    pub path: String,
    /// Why.
    pub why: String,
}

/// A socket that listens.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
}

/// Opens the socket. A socket left by a daemon that is gone is replaced; anything else at the path is left alone.
///
/// # Errors
/// Another daemon listens there, something that is no socket is there, or it cannot be made.
pub(crate) async fn bind(path: &Path) -> Result<Server, ServeError> {
    let failed = |why: String| ServeError { path: path.display().to_string(), why };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(failed("another writ listens there".into()));
            }
            fs::remove_file(path).map_err(|error| failed(error.to_string()))?;
        }
        Ok(_) => return Err(failed("there is something that is not a socket".into())),
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| failed(error.to_string()))?;
    }
    let listener = UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
    // Every local user may ask: a denied account asks why. Who may do what is decided by peer credentials.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(|error| failed(error.to_string()))?;
    Ok(Server { listener, path: path.to_owned() })
}

impl Server {
    /// Answers until `stop` says so: on the socket, and over HTTPS if that is configured.
    pub(crate) async fn serve(self, engine: Handle, https: Option<HttpsServer>, mut stop: watch::Receiver<bool>) {
        let serving =
            routes::Serving { engine, held: Held::default(), limits: Limits::default(), receiver: Receiver::default() };
        let asking = serving.receiver.clone().keep_asking(serving.engine.clone(), stop.clone());
        let asking = tokio::spawn(asking);
        let https = https.map(|https| tokio::spawn(https.serve(serving.clone(), stop.clone())));
        let limits = serving.limits.clone();
        let router = routes::router(serving);
        let (sightings, askers) = (Sightings::begin(), Askers::here());
        let mut open = JoinSet::new();
        let until = stop.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many open files, for one: it passes.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let arrival = Arrival::default();
            let peer = Peer::local(&stream, &sightings, arrival.clone());
            // Who cannot be told shares one place.
            let uid = stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
            let Some(admitted) = limits.admit(uid) else {
                turn_away(&stream);
                continue;
            };
            let stream = match Quiet::new(stream, askers.pace(), arrival) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be prepared");
                    continue;
                }
            };
            let conversation = connection::converse(stream, router.clone(), peer, until.clone());
            open.spawn(async move {
                let _admitted = admitted;
                conversation.await;
            });
        }
        let _ = fs::remove_file(&self.path);
        while open.join_next().await.is_some() {}
        if let Some(https) = https {
            let _ = https.await;
        }
        let _ = asking.await;
    }
}
