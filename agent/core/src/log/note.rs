//! C2SP signed notes with Ed25519: text, an empty line, and a line for each signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// The signature type of plain Ed25519.
const ED25519: u8 = 1;
/// The longest note read: a checkpoint with sixteen post-quantum cosignatures fits.
const MAX_NOTE: usize = 256 * 1024;
/// What a stored private key starts with, as in Go's `sumdb/note`.
const PRIVATE: &str = "PRIVATE+KEY+";

/// Why a note or key was not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoteError {
    /// Not a signed note.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// Not a verifier or signer key.
    #[error("not a key: {0}")]
    Key(&'static str),
    /// No signature by the key.
    #[error("not signed by `{0}`")]
    Unsigned(String),
    /// A signature that names the key and does not verify.
    #[error("the signature by `{0}` is wrong")]
    Invalid(String),
}

/// A public key with its name, as `writ.vkey` holds it: `name+keyid+base64`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vkey {
    name: String,
    key: VerifyingKey,
}

/// A private key with its name.
#[derive(Clone)]
pub struct NoteSigner {
    name: String,
    key: SigningKey,
}

/// A note as read: nothing about it is to be believed before [`SignedNote::verify`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedNote {
    text: String,
    signatures: Vec<NoteSignature>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct NoteSignature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

fn key_id(name: &str, public: &[u8; 32]) -> u32 {
    let mut hasher = Sha256::new();
    hasher.update(name.as_bytes());
    hasher.update([b'\n', ED25519]);
    hasher.update(public);
    hasher.finalize().iter().take(4).fold(0, |id, byte| id << 8 | u32::from(*byte))
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+');
    if bad { Err(NoteError::Key("its name is empty or has a space or a plus")) } else { Ok(()) }
}

/// Splits `name+keyid+base64` and returns the 32 bytes after the type byte.
fn parse_key(text: &str) -> Result<(&str, u32, [u8; 32]), NoteError> {
    let mut parts = text.trim_end_matches('\n').splitn(3, '+');
    let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(NoteError::Key("it is not of the form name+keyid+base64"));
    };
    check_name(name)?;
    let id = (id.len() == 8).then(|| u32::from_str_radix(id, 16).ok()).flatten();
    let id = id.ok_or(NoteError::Key("its id is not eight hex digits"))?;
    let bytes = BASE64.decode(encoded).map_err(|_| NoteError::Key("it is not base64"))?;
    match bytes.split_first() {
        Some((&ED25519, key)) => {
            let key = key.try_into().map_err(|_| NoteError::Key("it is not 32 bytes long"))?;
            Ok((name, id, key))
        }
        _ => Err(NoteError::Key("it is not of the Ed25519 type")),
    }
}

impl Vkey {
    /// Reads `name+keyid+base64`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let (name, id, public) = parse_key(text)?;
        if id != key_id(name, &public) {
            return Err(NoteError::Key("its id does not belong to it"));
        }
        let key = VerifyingKey::from_bytes(&public).map_err(|_| NoteError::Key("it is not a point of the curve"))?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The key's name: the origin of the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key's id.
    pub fn id(&self) -> u32 {
        key_id(&self.name, self.key.as_bytes())
    }
}

impl std::fmt::Display for Vkey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = vec![ED25519];
        bytes.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, self.id(), BASE64.encode(bytes))
    }
}

impl NoteSigner {
    /// A signer from 32 random bytes.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a stored private key (`PRIVATE+KEY+name+keyid+base64`).
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let rest = text.strip_prefix(PRIVATE).ok_or(NoteError::Key("it is not a private key"))?;
        let (name, id, seed) = parse_key(rest)?;
        let signer = Self::from_seed(name, &seed)?;
        if signer.vkey().id() == id { Ok(signer) } else { Err(NoteError::Key("its id does not belong to it")) }
    }

    /// The stored form. It is the key: keep it at mode 0600.
    pub fn to_private_text(&self) -> String {
        let mut bytes = vec![ED25519];
        bytes.extend_from_slice(self.key.as_bytes());
        format!("{PRIVATE}{}+{:08x}+{}\n", self.name, self.vkey().id(), BASE64.encode(bytes))
    }

    /// The public half.
    pub fn vkey(&self) -> Vkey {
        Vkey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// The note over a text, which must end with a newline.
    pub fn sign(&self, text: &str) -> String {
        let mut signature = self.vkey().id().to_be_bytes().to_vec();
        signature.extend_from_slice(&self.key.sign(text.as_bytes()).to_bytes());
        format!("{text}\n— {} {}\n", self.name, BASE64.encode(signature))
    }
}

impl SignedNote {
    /// Takes a note apart.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::Malformed("it is too long"));
        }
        if note.bytes().any(|byte| byte < b' ' && byte != b'\n') {
            return Err(NoteError::Malformed("it has a control character"));
        }
        let end = note.rfind("\n\n").ok_or(NoteError::Malformed("no empty line before the signatures"))?;
        let (text, rest) = note.split_at(end + 1);
        let rest = rest.strip_prefix('\n').unwrap_or(rest);
        let lines = rest.strip_suffix('\n').ok_or(NoteError::Malformed("it does not end with a newline"))?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            let wrong = NoteError::Malformed("a signature line is not of the form `— name base64`");
            let (name, encoded) = line.strip_prefix("— ").and_then(|rest| rest.split_once(' ')).ok_or(wrong.clone())?;
            let bytes = BASE64.decode(encoded).map_err(|_| wrong.clone())?;
            let (id, bytes) = bytes.split_first_chunk::<4>().ok_or(wrong.clone())?;
            if check_name(name).is_err() || bytes.is_empty() {
                return Err(wrong);
            }
            let signature = NoteSignature { name: name.to_owned(), id: u32::from_be_bytes(*id), bytes: bytes.to_vec() };
            signatures.push(signature);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The text, if the key signed it. Signatures by other keys are not looked at.
    pub fn verify(&self, key: &Vkey) -> Result<&str, NoteError> {
        let ours = |signature: &&NoteSignature| signature.name == key.name && signature.id == key.id();
        let mut verified = Err(NoteError::Unsigned(key.name.clone()));
        for signature in self.signatures.iter().filter(ours) {
            let checked = Signature::from_slice(&signature.bytes)
                .and_then(|parsed| key.key.verify_strict(self.text.as_bytes(), &parsed));
            if checked.is_err() {
                return Err(NoteError::Invalid(key.name.clone()));
            }
            verified = Ok(self.text.as_str());
        }
        verified
    }

    /// The text, believed or not: to say what a note claims.
    pub fn unverified_text(&self) -> &str {
        &self.text
    }
}
