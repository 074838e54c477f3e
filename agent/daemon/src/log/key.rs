//! The log's key: made at the first start, readable by root alone, and never used for another origin.

use std::path::{Path, PathBuf};

use writ_core::log::NoteSigner;

use super::LogError;
use super::file::{KEY_MODE, make_dir, read_if_there, replace_with_mode};

/// The key of this origin, made if there is none. A key of another origin (a cloned machine's) is kept beside it under
/// another name.
pub(super) fn load_or_make(path: &Path, origin: &str) -> Result<NoteSigner, LogError> {
    if let Some(text) = read_if_there(path)? {
        let text = String::from_utf8(text).map_err(|_| LogError::invalid(path, "it is not text"))?;
        let signer = NoteSigner::parse(text.trim_end()).map_err(|error| LogError::invalid(path, error.to_string()))?;
        if signer.vkey().name() == origin {
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
