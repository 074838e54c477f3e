//! What decisions rested on, by digest: a copied log replays by itself.

use sha2::{Digest, Sha256};

use super::file::{make_dir, read_if_there, replace};
use super::{Layout, LogError};

/// Keeps a policy set, schema or entity snapshot; returns its digest as records name it, `sha256-HEX`.
pub(crate) fn archive_put(layout: &Layout, content: &[u8]) -> Result<String, LogError> {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("sha256-{hex}");
    let path = layout.archive().join(&name);
    if read_if_there(&path)?.is_none_or(|there| there != content) {
        make_dir(&layout.archive())?;
        replace(&path, content, true)?;
    }
    Ok(name)
}

/// What was kept under a digest; an error if the file is no longer what its name says.
pub(crate) fn archive_get(layout: &Layout, digest: &str) -> Result<Option<Vec<u8>>, LogError> {
    let hex =
        digest.strip_prefix("sha256-").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let path = layout.archive().join(digest);
    if hex.is_none() {
        return Err(LogError::invalid(&layout.archive(), format!("`{digest}` is not of the form sha256-HEX")));
    }
    let Some(content) = read_if_there(&path)? else { return Ok(None) };
    let found: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    if hex == Some(found.as_str()) { Ok(Some(content)) } else { Err(LogError::invalid(&path, "its content changed")) }
}
