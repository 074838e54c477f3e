//! The public keys of transmitters: from a file at every delivery, or from a URL, kept for a while and rotated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::JwkSet;
use tokio::sync::Mutex;
use writ_core::config::Transmitter;

use super::fetch::{Call, call};

/// How long fetched keys are used without asking again: so long a key that was withdrawn may still count.
const FRESH: Duration = Duration::from_secs(3_600);
/// How long they are used while they cannot be fetched again.
const USABLE: Duration = Duration::from_secs(24 * 3_600);
/// How soon an unknown key makes us ask again: whoever invents key ids asks nothing of the transmitter.
const AGAIN: Duration = Duration::from_secs(30);
/// The pause after a failure, doubled with each, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(900));

/// What was fetched, by URL.
#[derive(Clone, Debug, Default)]
pub(in crate::serve) struct Keys {
    known: Arc<Mutex<HashMap<String, Fetched>>>,
}

#[derive(Clone, Debug, Default)]
struct Fetched {
    keys: Option<(Arc<JwkSet>, Instant)>,
    tried: Option<Instant>,
    failures: u32,
}

impl Fetched {
    fn within(&self, age: Duration) -> Option<Arc<JwkSet>> {
        self.keys.as_ref().filter(|(_, at)| at.elapsed() < age).map(|(keys, _)| Arc::clone(keys))
    }

    /// Whether it is too early to ask again.
    fn pausing(&self) -> bool {
        let pause = match self.failures {
            0 => AGAIN,
            failures => PAUSE.0.saturating_mul(1 << failures.min(12)).min(PAUSE.1),
        };
        self.tried.is_some_and(|tried| tried.elapsed() < pause)
    }
}

impl Keys {
    /// The transmitter's keys; `anew`: a token names one that they have not. Where it is too early to ask for it, there are
    /// none: the transmitter delivers again.
    ///
    /// # Errors
    /// There are none, and why.
    pub(super) async fn of(&self, transmitter: &Transmitter, anew: bool) -> Result<Arc<JwkSet>, String> {
        let source = &transmitter.jwks;
        if source.starts_with('/') {
            // Read each time: a rotated key is known as soon as the file has it.
            let text = tokio::fs::read(source).await.map_err(|error| format!("`{source}`: {error}"))?;
            return read(source, &text);
        }
        // Held while it is fetched: one question to the transmitter, whoever asks meanwhile.
        let mut known = self.known.lock().await;
        let fetched = known.entry(source.clone()).or_default();
        let kept = fetched.within(if anew { Duration::ZERO } else { FRESH });
        if let Some(keys) = kept {
            return Ok(keys);
        }
        if anew && fetched.failures == 0 && fetched.pausing() {
            // A key may have come since we asked last: refused for good, the event of a rotated key would be lost.
            return Err(format!("`{source}`: asked a moment ago, and there was no such key"));
        }
        if !fetched.pausing() {
            fetched.tried = Some(Instant::now());
            let asked = Call { url: source.clone(), ca: transmitter.ca.clone(), ..Call::default() };
            let answer = match call(&asked).await {
                Ok((200, body)) => read(source, &body),
                Ok((status, _)) => Err(format!("`{source}`: the answer is {status}")),
                Err(error) => Err(error),
            };
            match answer {
                Ok(keys) => {
                    *fetched =
                        Fetched { keys: Some((Arc::clone(&keys), Instant::now())), failures: 0, ..fetched.clone() };
                    return Ok(keys);
                }
                Err(error) => {
                    fetched.failures = fetched.failures.saturating_add(1);
                    tracing::warn!(error, failures = fetched.failures, "the keys of a transmitter cannot be fetched");
                }
            }
        }
        fetched.within(USABLE).ok_or_else(|| format!("`{source}`: there are no keys that can be used"))
    }
}

fn read(source: &str, text: &[u8]) -> Result<Arc<JwkSet>, String> {
    serde_json::from_slice(text).map(Arc::new).map_err(|error| format!("`{source}`: {error}"))
}
