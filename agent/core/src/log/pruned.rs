//! The signed statement that a log no longer holds its oldest lines; their hashes stay, so the tree still verifies.

use super::note::{NoteError, NoteSigner, SignedNote, Vkey};

/// First line of the statement.
const TITLE: &str = "writ pruned v1";

/// Up to where lines were removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pruned {
    /// Which log.
    pub origin: String,
    /// Index of the first line that is kept.
    pub first_index: u64,
}

impl Pruned {
    /// Signs it.
    pub fn sign(&self, signer: &NoteSigner) -> String {
        signer.sign(&format!("{TITLE}\n{}\n{}\n", self.origin, self.first_index))
    }

    /// Reads a statement that the key must have signed.
    pub fn open(note: &str, key: &Vkey) -> Result<Self, NoteError> {
        let note = SignedNote::parse(note)?;
        let mut lines = note.verify(key)?.lines();
        let (title, origin, index) = (lines.next(), lines.next(), lines.next());
        match (title, origin, index.and_then(|digits| digits.parse().ok())) {
            (Some(TITLE), Some(origin), Some(first_index)) if origin == key.name() => {
                Ok(Self { origin: origin.to_owned(), first_index })
            }
            _ => Err(NoteError::Malformed("it is not a statement of pruning by this log")),
        }
    }
}
