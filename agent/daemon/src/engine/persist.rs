//! What outlives the daemon in the state directory: live state, account numbers, and the last configuration that worked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use writ_core::config::SourceFile;
use writ_core::stance::LiveState;

use super::explain::{Legend, Moment};

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

/// A file of the state directory that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("state file `{path}`: {why}")]
pub(crate) struct StoreError {
    /// The file.
    pub path: String,
    /// Why.
    pub why: String,
}

/// What is needed to read events that were made before this daemon started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Explained {
    /// Names of the last generations.
    pub(crate) legends: Vec<Legend>,
    /// What held, by account index and epoch.
    pub(crate) moments: Vec<(u16, u32, Moment)>,
}

/// Account numbers, as pinned maps know them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Numbers {
    /// The boot in which they hold.
    pub(crate) boot_id: String,
    /// Accounts by index.
    pub(crate) accounts: Vec<String>,
    /// Epochs by account.
    pub(crate) epochs: BTreeMap<String, u32>,
    /// Since when each account is known: its learning period begins there.
    #[serde(default)]
    pub(crate) known_since: BTreeMap<String, jiff::Timestamp>,
}

impl Store {
    /// Opens, and makes where needed, the state directory (0700).
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError { path: directory.display().to_string(), why: error.to_string() };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where the log's key lies.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.join("log.key")
    }

    fn failed(path: &Path) -> impl Fn(String) -> StoreError {
        let path = path.display().to_string();
        move |why| StoreError { path: path.clone(), why }
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<(), StoreError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!(".{name}.new"));
        let failed = Self::failed(&path);
        let attempt = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        attempt().map_err(|error| failed(error.to_string()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.directory.join(name);
        let failed = Self::failed(&path);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.to_string())),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.to_string())),
        }
    }

    /// Writes the live state.
    ///
    /// # Errors
    /// It could not be written; the one before is still there.
    pub(crate) fn save_live(&self, live: &LiveState) -> Result<(), StoreError> {
        let text = live.to_json().map_err(|error| StoreError { path: "live.json".into(), why: error.to_string() })?;
        self.write("live.json", text.as_bytes())
    }

    /// Reads the live state; none at a first start.
    ///
    /// # Errors
    /// It is there and cannot be used: to start without it could open what a signal had closed.
    pub(crate) fn load_live(&self) -> Result<LiveState, StoreError> {
        let path = self.directory.join("live.json");
        let failed = Self::failed(&path);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LiveState::default()),
            Err(error) => Err(failed(error.to_string())),
            Ok(text) => LiveState::restore(&text).map_err(|error| failed(error.to_string())),
        }
    }

    pub(crate) fn save_explained(&self, explained: &Explained) -> Result<(), StoreError> {
        let text = serde_json::to_vec(explained)
            .map_err(|error| StoreError { path: "explained.json".into(), why: error.to_string() })?;
        self.write("explained.json", &text)
    }

    pub(crate) fn load_explained(&self) -> Result<Explained, StoreError> {
        Ok(self.read("explained.json")?.unwrap_or_default())
    }

    pub(crate) fn save_numbers(&self, numbers: &Numbers) -> Result<(), StoreError> {
        let text = serde_json::to_vec(numbers)
            .map_err(|error| StoreError { path: "accounts.json".into(), why: error.to_string() })?;
        self.write("accounts.json", &text)
    }

    pub(crate) fn load_numbers(&self) -> Result<Numbers, StoreError> {
        Ok(self.read("accounts.json")?.unwrap_or_default())
    }

    /// Keeps the configuration that was just put in force.
    pub(crate) fn save_last_good(&self, sources: &[SourceFile]) -> Result<(), StoreError> {
        let files: Vec<(&str, &str)> =
            sources.iter().map(|source| (source.name.as_str(), source.text.as_str())).collect();
        let text = serde_json::to_vec(&files)
            .map_err(|error| StoreError { path: "last-good.json".into(), why: error.to_string() })?;
        self.write("last-good.json", &text)
    }

    /// The last configuration that was in force.
    pub(crate) fn load_last_good(&self) -> Result<Option<Vec<SourceFile>>, StoreError> {
        let files: Option<Vec<(String, String)>> = self.read("last-good.json")?;
        Ok(files.map(|files| files.into_iter().map(|(name, text)| SourceFile { name, text }).collect()))
    }
}
