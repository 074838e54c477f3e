//! Whatever a caller writes into a request, it is read or refused, and nothing panics.

use serde::de::DeserializeOwned;
use writ_fuzz::drive;

use crate::api::{self, ApproveBody, BreakGlassBody, GrantBody, ReasonBody, SignalBody, SimulateBody};

#[test]
fn fuzz_api_bodies() {
    fn read<T: DeserializeOwned>(input: &[u8]) -> bool {
        serde_json::from_slice::<T>(input).is_ok()
    }
    let seeds: [&[u8]; 4] = [
        br#"{"account":"a","to":"10.0.0.0/8:443/tcp","ttl":"15m","reason":"r"}"#,
        br#"{"account":"a","kind":"k","risk":90,"ttl":"1h","evidence":"e"}"#,
        br#"{"account":"a","to":"db.example:5432","protocol":"tcp","risk":3,"at":"2026-11-23T00:00:00Z"}"#,
        br#"{"all":true,"ttl":"1h","reason":"r"}"#,
    ];
    let driven = drive("api bodies", &seeds, |input| {
        let text = String::from_utf8_lossy(input);
        let duration = api::duration(&text).is_ok();
        duration
            | read::<GrantBody>(input)
            | read::<SignalBody>(input)
            | read::<SimulateBody>(input)
            | read::<BreakGlassBody>(input)
            | read::<ApproveBody>(input)
            | read::<ReasonBody>(input)
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}

#[test]
fn fuzz_durations() {
    drive("durations", &[b"90s", b"15m", b"1h", b"7d"], |input| api::duration(&String::from_utf8_lossy(input)).is_ok());
}
