//! Whatever is pushed as a security event token, it is read or refused, and nothing panics.

use jiff::Timestamp;
use serde_json::{Map, Value};
use writ_fuzz::drive;

use super::token;

#[test]
fn fuzz_security_event_tokens() {
    let claims = br#"{"iss":"https://i","aud":"a","jti":"1","iat":1700000000,"sub_id":{"format":"opaque","id":"a"},"events":{"https://schemas.openid.net/secevent/caep/event-type/session-revoked":{"event_timestamp":1700000000,"subject":{}}}}"#;
    // A header and claims in base64url; nothing verifies the signature where only the issuer is asked.
    let token = b"eyJ0eXAiOiJzZWNldmVudCtqd3QiLCJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2kifQ.AAAA";
    let driven = drive("security event tokens", &[claims, token], |input| {
        let issuer = token::claimed_issuer(&String::from_utf8_lossy(input)).is_ok();
        let claims = serde_json::from_slice::<Map<String, Value>>(input);
        issuer | claims.is_ok_and(|claims| token::read(&claims, Timestamp::MAX).is_ok())
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}
