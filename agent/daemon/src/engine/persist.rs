//! What outlives the daemon in the state directory: live state, account numbers, and the last configuration that worked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use writ_core::config::SourceFile;
use writ_core::signal::Accepted;
use writ_core::stance::LiveState;
use writ_core::table::Explanation;

use super::explain::{Legend, Moment};
use super::journal::Journal;
use super::losses::Position;
use super::resolution::Resolution;
use crate::process::Baselines;

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

/// What was appended to a generation: what events mean.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) generation: u32,
    pub(crate) account: u16,
    pub(crate) epoch: u32,
    /// What holds for the account from this epoch on; `None` where rows were only prepared, whosever they are.
    pub(crate) moment: Option<Moment>,
    /// The generation's explanations and digests that are new with it.
    pub(crate) explanations: Vec<Explanation>,
    pub(crate) digests: Vec<String>,
}

impl Explained {
    fn take(&mut self, step: Step) {
        if let Some(legend) = self.legends.iter_mut().find(|legend| legend.generation == step.generation) {
            legend.explanations.extend(step.explanations);
            legend.digests.extend(step.digests);
        }
        self.moments.extend(step.moment.map(|moment| (step.account, step.epoch, moment)));
    }
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

    /// The journal beside a state file.
    pub(crate) fn journal(&self, name: &str) -> Journal {
        Journal::new(self.directory.join(format!("{name}.journal")))
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<(), StoreError> {
        self.place(name, text, true)
    }

    /// Writes a file whole or not at all. What means nothing after a power cut, since the pinned maps are gone with it,
    /// need not reach the disk first.
    fn place(&self, name: &str, text: &[u8], durable: bool) -> Result<(), StoreError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!(".{name}.new"));
        let failed = Self::failed(&path);
        let attempt = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text)?;
            if durable {
                file.sync_data()?;
            }
            fs::rename(&temporary, &path)?;
            if durable { fs::File::open(&self.directory)?.sync_all() } else { Ok(()) }
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

    /// The same of what can be done without: what is damaged is told, and as if it were not there.
    fn read_unless_damaged<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Self::failed(&path)(error.to_string())),
            Ok(text) => Ok(serde_json::from_slice(&text)
                .map_err(|error| tracing::error!(path = %path.display(), %error, "it is damaged, and left out"))
                .ok()),
        }
    }

    /// Writes the live state.
    ///
    /// # Errors
    /// It could not be written; the one before is still there.
    pub(crate) fn save_live(&self, live: &LiveState, journal: &mut Journal) -> Result<(), StoreError> {
        let text = live.to_json().map_err(|error| StoreError { path: "live.json".into(), why: error.to_string() })?;
        self.write("live.json", text.as_bytes())?;
        journal.follow(text.as_bytes());
        Ok(())
    }

    /// Reads the live state; none at a first start.
    ///
    /// # Errors
    /// It is there and cannot be used: to start without it could open what a signal had closed.
    pub(crate) fn load_live(&self, journal: &Journal) -> Result<LiveState, StoreError> {
        let path = self.directory.join("live.json");
        let failed = Self::failed(&path);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LiveState::default()),
            Err(error) => Err(failed(error.to_string())),
            Ok(text) => {
                let mut live = LiveState::restore(&text).map_err(|error| failed(error.to_string()))?;
                let taken = journal.changes::<Accepted>(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
                for accepted in &taken {
                    live.retake(accepted, jiff::Timestamp::now());
                }
                Ok(live)
            }
        }
    }

    pub(crate) fn save_explained(&self, explained: &Explained, journal: &mut Journal) -> Result<(), StoreError> {
        let text = serde_json::to_vec(explained)
            .map_err(|error| StoreError { path: "explained.json".into(), why: error.to_string() })?;
        self.place("explained.json", &text, false)?;
        journal.follow(&text);
        Ok(())
    }

    /// What an earlier daemon kept. It only serves to name old events, so what cannot be read is not in the way.
    pub(crate) fn load_explained(&self, journal: &Journal) -> Explained {
        let Ok(text) = fs::read(self.directory.join("explained.json")) else { return Explained::default() };
        let mut explained: Explained = serde_json::from_slice(&text).unwrap_or_default();
        for step in journal.changes::<Step>(&text).unwrap_or_default() {
            explained.take(step);
        }
        explained
    }

    pub(crate) fn save_numbers(&self, numbers: &Numbers) -> Result<(), StoreError> {
        let text = serde_json::to_vec(numbers)
            .map_err(|error| StoreError { path: "accounts.json".into(), why: error.to_string() })?;
        self.write("accounts.json", &text)
    }

    /// Account numbers. Where programs that know them are pinned they must be readable.
    pub(crate) fn load_numbers(&self, adopted: bool) -> Result<Numbers, StoreError> {
        if !adopted {
            return Ok(self.read_unless_damaged("accounts.json")?.unwrap_or_default());
        }
        let with_help = |error: StoreError| StoreError {
            why: format!(
                "{}; the pinned programs know accounts by the numbers in it: `writ uninstall`, and start again",
                error.why
            ),
            ..error
        };
        Ok(self.read("accounts.json").map_err(with_help)?.unwrap_or_default())
    }

    pub(super) fn save_position(&self, position: &Position) -> Result<(), StoreError> {
        let text = serde_json::to_vec(position)
            .map_err(|error| StoreError { path: "position.json".into(), why: error.to_string() })?;
        self.place("position.json", &text, false)
    }

    /// What was known of the log when it had fewer lines. What cannot be read is not in the way: the log says it too.
    pub(super) fn load_position(&self) -> Option<Position> {
        self.read("position.json").ok().flatten()
    }

    /// Keeps what names resolved to.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn save_resolution(&self, resolution: &Resolution) -> Result<(), StoreError> {
        let text = serde_json::to_vec(resolution)
            .map_err(|error| StoreError { path: "resolved.json".into(), why: error.to_string() })?;
        self.place("resolved.json", &text, false)
    }

    /// What names resolved to last; what cannot be read is looked up anew.
    pub(crate) fn load_resolution(&self) -> Resolution {
        self.read("resolved.json").ok().flatten().unwrap_or_default()
    }

    /// Keeps what executables were when they were looked at.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn save_fingerprints(&self, known: &Baselines) -> Result<(), StoreError> {
        let text = serde_json::to_vec(known)
            .map_err(|error| StoreError { path: "executables.json".into(), why: error.to_string() })?;
        self.place("executables.json", &text, false)
    }

    /// What executables were; what cannot be read is learnt anew, and says so.
    pub(crate) fn load_fingerprints(&self) -> Baselines {
        self.read("executables.json").unwrap_or_else(|error| {
            tracing::error!(%error, "what executables were is not known any more: a change while writ was away goes unseen");
            None
        }).unwrap_or_default()
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
        let files: Option<Vec<(String, String)>> = self.read_unless_damaged("last-good.json")?;
        Ok(files.map(|files| files.into_iter().map(|(name, text)| SourceFile { name, text }).collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    #[test]
    fn what_explains_prepared_rows_is_there_again_and_steps_of_older_versions_are_read() {
        let (_directory, store) = store();
        let mut journal = store.journal("explained");
        let legends = vec![Legend { generation: 7, ..Legend::default() }];
        store.save_explained(&Explained { legends, moments: Vec::new() }, &mut journal).unwrap();
        let prepared = Step {
            generation: 7,
            account: 0,
            epoch: 0,
            moment: None,
            explanations: vec![Explanation::default()],
            digests: vec!["sha256-1".to_owned()],
        };
        journal.append(&prepared).unwrap();
        // As it was written when each step had a moment.
        let moment = json!({
            "account": "a", "from": "2026-01-01T00:00:00Z", "until": null, "signals": [], "grants": [], "approved": [],
            "offboarded": false, "break_glass_until": null, "base_digest": "",
        });
        let older = json!({
            "generation": 7, "account": 3, "epoch": 2, "moment": moment, "explanations": [], "digests": ["sha256-2"],
        });
        journal.append(&older).unwrap();
        let explained = store.load_explained(&journal);
        let legend = explained.legends.first().unwrap();
        assert_eq!((legend.explanations.len(), legend.digests.join(" ")), (1, "sha256-1 sha256-2".to_owned()));
        let moments: Vec<_> = explained.moments.iter().map(|(account, epoch, _)| (*account, *epoch)).collect();
        assert_eq!(moments, [(3, 2)], "a prepared row begins nothing");
    }
}
