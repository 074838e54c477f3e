//! C2SP tlog-proof: everything needed to check one record, in one text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::checkpoint::{Checkpoint, CheckpointError};
use super::note::Vkey;
use super::proof::{ProofError, verify_inclusion};
use super::tree::{Hash, hash_leaf};

const TITLE: &str = "c2sp.org/tlog-proof@v1";

/// A proof that an entry is in a log. writ puts the entry itself into `extra`, so that the text stands alone; the hash
/// over it is what makes it trustworthy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlogProof {
    /// The entry, or whatever an application put there.
    pub extra: Option<Vec<u8>>,
    /// The entry's index.
    pub index: u64,
    /// The inclusion proof.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint, verbatim.
    pub checkpoint: String,
}

/// Why a proof does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TlogProofError {
    /// The text.
    #[error("not a tlog-proof: {0}")]
    Malformed(&'static str),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The hashes.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

impl TlogProof {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self, TlogProofError> {
        let malformed = TlogProofError::Malformed;
        let (head, checkpoint) = text.split_once("\n\n").ok_or(malformed("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(TITLE) {
            return Err(malformed("the first line is not c2sp.org/tlog-proof@v1"));
        }
        let mut line = lines.next().ok_or(malformed("no index"))?;
        let mut extra = None;
        if let Some(encoded) = line.strip_prefix("extra ") {
            extra = Some(BASE64.decode(encoded).map_err(|_| malformed("extra is not base64"))?);
            line = lines.next().ok_or(malformed("no index"))?;
        }
        let digits = line.strip_prefix("index ").ok_or(malformed("no index"))?;
        let index: u64 = digits.parse().map_err(|_| malformed("the index is not a number"))?;
        if index.to_string() != digits {
            return Err(malformed("the index is not written plainly"));
        }
        let hashes = lines
            .map(|line| BASE64.decode(line).ok().and_then(|bytes| Hash::try_from(bytes).ok()))
            .collect::<Option<Vec<Hash>>>()
            .ok_or(malformed("a line is not a SHA-256 hash in base64"))?;
        Ok(Self { extra, index, hashes, checkpoint: checkpoint.to_owned() })
    }

    /// Checks that the entry is in the log of the key; returns the checkpoint it is proven against.
    pub fn verify(&self, entry: &[u8], key: &Vkey) -> Result<Checkpoint, TlogProofError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, key)?;
        verify_inclusion(&hash_leaf(entry), self.index, checkpoint.size, &self.hashes, &checkpoint.root)?;
        Ok(checkpoint)
    }
}

impl std::fmt::Display for TlogProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{TITLE}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", BASE64.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{}", BASE64.encode(hash))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}
