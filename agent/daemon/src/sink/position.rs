//! How far a sink came, kept in a file of the state directory and written with one call.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is known of an earlier run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Resumed {
    /// Index of the first line that was not sent for certain; 0 where nothing is known.
    pub(super) next: u64,
    /// What the target said with it.
    pub(super) mark: String,
}

/// The file of one sink.
pub(super) struct PositionFile {
    path: PathBuf,
    identity: String,
    file: Option<File>,
    /// Bytes in it: what is shorter must not leave a rest behind.
    len: usize,
}

impl PositionFile {
    /// The position of the sink `name` in the log `identity`.
    pub(super) fn new(directory: &Path, name: &str, identity: &str) -> Self {
        Self { path: directory.join(name), identity: identity.to_owned(), file: None, len: 0 }
    }

    /// Where it stands; the beginning, where the file is not there or is about another log.
    pub(super) fn load(&self) -> Resumed {
        read(&self.path, &self.identity).unwrap_or_default()
    }

    /// Keeps a position. It outlives this process at once.
    pub(super) fn save(&mut self, next: u64, mark: &str) -> io::Result<()> {
        let mut text = format!("{next:020} {} {mark}\n", self.identity);
        // Padded to what was there before: one write replaces all of it, also if it is the last that this process makes.
        while text.len() < self.len {
            text.push('\n');
        }
        let file = match &self.file {
            Some(file) => file,
            None => {
                if let Some(directory) = self.path.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                }
                let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
                file.set_len(0)?;
                self.file.insert(file)
            }
        };
        file.write_all_at(text.as_bytes(), 0)?;
        self.len = text.len();
        Ok(())
    }

    /// Brings it to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

fn read(path: &Path, identity: &str) -> Option<Resumed> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.lines().next()?.splitn(3, ' ');
    let next = words.next()?.parse().ok()?;
    (words.next()? == identity).then(|| Resumed { next, mark: words.next().unwrap_or_default().to_owned() })
}

/// Sets every position back that is beyond the end of the log.
pub(super) fn rewind_all(directory: &Path, identity: &str, size: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Some(found) = read(&entry.path(), identity).filter(|found| found.next > size) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        tracing::warn!(sink = name, sent = found.next, size, "the log ends before what was sent: a crash took its end");
        let mut file = PositionFile::new(directory, &name, identity);
        if let Err(error) = file.save(size, "rewound") {
            tracing::error!(sink = name, %error, "the sink's position could not be set back");
        }
    }
}
