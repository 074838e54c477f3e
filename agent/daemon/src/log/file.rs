//! Files of the log: their modes, replacing them whole, and forcing them to the disk.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::LogError;

/// Log files: the owner writes, the group (auditors, shippers) reads.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;
/// The private key.
pub(super) const KEY_MODE: u32 = 0o600;

/// Makes a directory and its parents, where they are missing.
pub(super) fn make_dir(path: &Path) -> Result<(), LogError> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(LogError::io("create", path))
}

/// Opens a file for writing, made with the log's mode whatever the umask is.
pub(super) fn open_for_writing(path: &Path, create: bool) -> Result<File, LogError> {
    let existed = path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
        .map_err(LogError::io("open", path))?;
    if !existed {
        file.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(LogError::io("set the mode of", path))?;
    }
    Ok(file)
}

/// Puts a file in place whole: a reader sees the old content or the new, also after a crash if `sync`.
pub(super) fn replace(path: &Path, content: &[u8], sync: bool) -> Result<(), LogError> {
    replace_with_mode(path, content, sync, FILE_MODE)
}

/// The name of a file until its content is whole.
pub(super) fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// [`replace`] with a mode.
pub(super) fn replace_with_mode(path: &Path, content: &[u8], sync: bool, mode: u32) -> Result<(), LogError> {
    let temporary = temporary_of(path);
    let written = write_new(&temporary, content, sync, mode)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(LogError::io("write", path));
    if written.is_err() {
        // Only to give the space back; a leftover is overwritten next time.
        let _unused = std::fs::remove_file(&temporary);
        return written;
    }
    if sync { sync_dir_of(path) } else { Ok(()) }
}

fn write_new(path: &Path, content: &[u8], sync: bool, mode: u32) -> io::Result<()> {
    // What a crash left under this name may share its content with something that counts.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// Forces a directory's entries to the disk, so that a renamed or new file is found after a crash.
pub(super) fn sync_dir_of(path: &Path) -> Result<(), LogError> {
    let dir = path.parent().unwrap_or(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::io("sync", dir))
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), LogError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads a file that may not be there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, LogError> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LogError::io("read", path)(error)),
    }
}
