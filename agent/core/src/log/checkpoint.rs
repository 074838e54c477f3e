//! C2SP checkpoints: the signed head of the tree.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::note::{NoteError, NoteSigner, SignedNote, Vkey};
use super::tree::Hash;

/// The head of a log's tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many leaves.
    pub size: u64,
    /// The root.
    pub root: Hash,
}

/// Why a checkpoint was not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The note around it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Its text.
    #[error("not a checkpoint: {0}")]
    Body(&'static str),
    /// Signed by a key of another name.
    #[error("the checkpoint is of `{origin}`, the key of `{key}`")]
    Origin {
        /// What the checkpoint says.
        origin: String,
        /// What the key says.
        key: String,
    },
}

impl Checkpoint {
    /// The text that is signed.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// Signs it.
    pub fn sign(&self, signer: &NoteSigner) -> String {
        signer.sign(&self.body())
    }

    /// Reads the text of a checkpoint.
    pub fn parse_body(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty()).ok_or(CheckpointError::Body("no origin"))?;
        let digits = lines.next().ok_or(CheckpointError::Body("no size"))?;
        let size: u64 = digits.parse().map_err(|_| CheckpointError::Body("the size is not a number"))?;
        if size.to_string() != digits {
            return Err(CheckpointError::Body("the size is not written plainly"));
        }
        let encoded = lines.next().ok_or(CheckpointError::Body("no root"))?;
        let root = BASE64.decode(encoded).ok().and_then(|bytes| Hash::try_from(bytes).ok());
        let root = root.ok_or(CheckpointError::Body("the root is not a SHA-256 hash in base64"))?;
        if lines.any(str::is_empty) {
            return Err(CheckpointError::Body("an extension line is empty"));
        }
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// Reads a checkpoint that the key must have signed, under its own name.
    pub fn open(note: &str, key: &Vkey) -> Result<Self, CheckpointError> {
        let note = SignedNote::parse(note)?;
        let checkpoint = Self::parse_body(note.verify(key)?)?;
        if checkpoint.origin == key.name() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Origin { origin: checkpoint.origin, key: key.name().to_owned() })
        }
    }
}
