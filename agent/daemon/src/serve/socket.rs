//! The socket: made anew at each start, open to every local user, since what each may do is decided per request.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::caller::Peer;
use super::limit::{Limited, Limits};
use super::routes;
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
    /// Answers until `stop` resolves.
    ///
    /// # Errors
    /// The socket failed.
    pub(crate) async fn serve(self, engine: Handle, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let limits = Limits::default();
        let service = routes::router(engine, limits.clone()).into_make_service_with_connect_info::<Peer>();
        let served = axum::serve(Limited::new(self.listener, limits), service).with_graceful_shutdown(stop).await;
        let _ = fs::remove_file(&self.path);
        served
    }
}
