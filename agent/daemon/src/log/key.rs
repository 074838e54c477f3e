//! The log's key: given by the operator or the service manager, or made at the first start; never used for another host.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::{Path, PathBuf};

use writ_core::log::NoteSigner;

use super::LogError;
use super::file::{KEY_MODE, make_dir, read_if_there, replace_with_mode};

/// Where the key is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum KeySource {
    /// Ours: made where it is missing, and made anew on another host.
    Own(PathBuf),
    /// Somebody else's to make and to protect: only read, and it must be this host's.
    Given(PathBuf),
    /// The service manager's, of this service.
    Credential(PathBuf),
    /// Ours, but whoever asks must not make one.
    Existing(PathBuf),
}

/// The name of the key among a service's credentials: `LoadCredential=log.key:…` in the unit.
const CREDENTIAL: &str = "log.key";

impl KeySource {
    /// The configured file; else the service's credential, if it has one; else the one in the state directory.
    pub(crate) fn find(configured: Option<&str>, credentials: Option<&Path>, own: PathBuf) -> Self {
        if let Some(path) = configured {
            return Self::Given(PathBuf::from(path));
        }
        match credentials.map(|directory| directory.join(CREDENTIAL)).filter(|path| path.exists()) {
            Some(path) => Self::Credential(path),
            None => Self::Own(own),
        }
    }

    /// The same, for one who must not make a key.
    pub(crate) fn existing(self) -> Self {
        match self {
            Self::Own(path) => Self::Existing(path),
            other => other,
        }
    }
}

/// The key of this origin. One of another origin (a cloned machine's) that is ours is kept beside it under another name.
pub(super) fn load_or_make(source: &KeySource, origin: &str) -> Result<NoteSigner, LogError> {
    match source {
        KeySource::Own(path) => {
            if secret(path).is_err() {
                tracing::error!(path = %path.display(), "OTHERS COULD READ THE LOG'S KEY: it is 600 again; make a new one if somebody may have");
                std::fs::set_permissions(path, Permissions::from_mode(KEY_MODE))
                    .map_err(LogError::io("set the mode of", path))?;
            }
            own(path, origin)
        }
        KeySource::Given(path) | KeySource::Existing(path) => {
            secret(path)?;
            given(path, origin)
        }
        // It lies in a directory that only the service can enter, whatever its own mode.
        KeySource::Credential(path) => given(path, origin),
    }
}

/// Whoever else could read a key could sign another log with it. One that is not there keeps its secret.
fn secret(path: &Path) -> Result<(), LogError> {
    let mode = match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(LogError::io("look at", path))?.mode() & 0o777,
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(LogError::invalid(path, format!("mode {mode:03o}: others can read the key; chmod 600")))
}

fn given(path: &Path, origin: &str) -> Result<NoteSigner, LogError> {
    let Some(signer) = read(path)? else { return Err(LogError::invalid(path, "there is no key here")) };
    if signer.name() != origin {
        let reason = format!(
            "it is the key of `{}`, and this host's log is `{origin}`: a key is for one host (copied image?)",
            signer.name()
        );
        return Err(LogError::invalid(path, reason));
    }
    Ok(signer)
}

fn own(path: &Path, origin: &str) -> Result<NoteSigner, LogError> {
    if let Some(signer) = read(path)? {
        if signer.name() == origin {
            return Ok(signer);
        }
        let aside = free_name(path, &format!("old-{:08x}", signer.vkey().id()));
        std::fs::rename(path, &aside).map_err(LogError::io("rename", path))?;
    } else if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| LogError::invalid(path, format!("no random bytes: {error}")))?;
    let signer = NoteSigner::from_seed(origin, &seed).map_err(|error| LogError::invalid(path, error.to_string()))?;
    replace_with_mode(path, signer.to_private_text().as_bytes(), true, KEY_MODE)?;
    Ok(signer)
}

fn read(path: &Path) -> Result<Option<NoteSigner>, LogError> {
    let Some(text) = read_if_there(path)? else { return Ok(None) };
    let text = String::from_utf8(text).map_err(|_| LogError::invalid(path, "it is not text"))?;
    let signer = NoteSigner::parse(text.trim_end()).map_err(|error| LogError::invalid(path, error.to_string()))?;
    Ok(Some(signer))
}

/// `path` with a suffix that no file has yet.
fn free_name(path: &Path, suffix: &str) -> PathBuf {
    let base = path.as_os_str().to_owned();
    (0u32..)
        .map(|attempt| {
            let mut name = base.clone();
            name.push(format!(".{suffix}"));
            if attempt > 0 {
                name.push(format!(".{attempt}"));
            }
            PathBuf::from(name)
        })
        .find(|name| !name.exists())
        .unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refused(source: &KeySource, origin: &str) -> String {
        load_or_make(source, origin).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_key_is_made_once_for_root_alone_and_anew_on_another_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/log.key");
        let own = KeySource::Own(path.clone());
        let first = load_or_make(&own, "writ/one").unwrap().vkey();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(&own, "writ/one").unwrap().vkey(), first);
        // A golden image: the disk is copied, the machine id is another.
        let second = load_or_make(&own, "writ/two").unwrap().vkey();
        assert_ne!(second.id(), first.id());
        assert_eq!(second.name(), "writ/two");
        let kept = fs::read_dir(dir.path().join("state")).unwrap().count();
        assert_eq!(kept, 2, "the old key is kept beside it");
    }

    #[test]
    fn a_key_that_was_given_is_only_read_and_must_be_this_hosts_and_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        let given = KeySource::Given(path.clone());
        assert!(refused(&given, "writ/one").contains("no key here"));
        assert!(!path.exists(), "none is made");
        let signer = NoteSigner::from_seed("writ/one", &[7; 32]).unwrap();
        fs::write(&path, signer.to_private_text()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(refused(&given, "writ/one").contains("others can read"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(load_or_make(&given, "writ/one").unwrap().vkey(), signer.vkey());
        assert!(refused(&given, "writ/two").contains("key of `writ/one`"));
    }

    #[test]
    fn the_configured_key_comes_before_the_credential_and_that_before_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = PathBuf::from("/state/log.key");
        let find = |configured| KeySource::find(configured, Some(dir.path()), own.clone());
        assert_eq!(find(None), KeySource::Own(own.clone()));
        fs::write(dir.path().join("log.key"), "").unwrap();
        assert_eq!(find(None), KeySource::Credential(dir.path().join("log.key")));
        assert_eq!(find(Some("/etc/writ/log.key")), KeySource::Given(PathBuf::from("/etc/writ/log.key")));
    }
}
