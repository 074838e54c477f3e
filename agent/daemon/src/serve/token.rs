//! Bearer tokens of `[https]`: a file of names and hashes, so that reading it gives nobody a token.

use sha2::{Digest as _, Sha256};

use super::tls::hex;

/// The caller whose token this is. `text` is the file: `NAME sha256-HEX` a line, `#` begins a comment; a caller may have
/// several lines, so that tokens can be rotated.
pub(super) fn caller_of(token: &str, text: &str) -> Option<String> {
    let hash = hex(&Sha256::digest(token.as_bytes()));
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((name, wanted)) = line.split_once(char::is_whitespace) else { continue };
        let Some(wanted) = wanted.trim().strip_prefix("sha256-") else { continue };
        // Every line is compared, and each to its end: how long it takes says nothing about how near it was.
        if same(hash.as_bytes(), wanted.to_ascii_lowercase().as_bytes()) && found.is_none() {
            found = Some(name.to_owned());
        }
    }
    found
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b))) == 0
}

/// The token of an `Authorization` header.
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let hash = hex(&Sha256::digest(b"correct horse"));
        let file =
            format!("# callers\nother sha256-00\nbroker  sha256-{}\nbroken\nplain correct\n", hash.to_uppercase());
        assert_eq!(caller_of("correct horse", &file).as_deref(), Some("broker"));
        for wrong in ["", "correct", "correct horse ", &hash, &format!("sha256-{hash}")] {
            assert_eq!(caller_of(wrong, &file), None, "{wrong}");
        }
        assert_eq!(caller_of("", ""), None);
        assert_eq!(bearer("Bearer a.b"), Some("a.b"));
        assert_eq!(bearer("bearer  x"), Some("x"));
        assert_eq!((bearer("Basic x"), bearer("Bearer "), bearer("Bearer")), (None, None, None));
    }
}
