//! Verification events on a timer: a transmitter that says nothing looks like one that has nothing to say, so it is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use writ_core::config::{Transmitter, Verification};

use super::fetch::{Call, call};
use crate::engine::Handle;

/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(1);

/// What was asked, by issuer: the last question, and the one before it, whose answer may still be on its way.
#[derive(Clone, Debug, Default)]
pub(in crate::serve) struct Asked {
    states: Arc<Mutex<HashMap<String, [Option<String>; 2]>>>,
}

impl Asked {
    /// Whether a verification event answers what was asked; one without a state is the transmitter's own.
    pub(super) fn answers(&self, issuer: &str, state: Option<&str>) -> bool {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            None => true,
            // They are kept until others are asked: an answer may be delivered again.
            Some(state) => states.entry(issuer.to_owned()).or_default().iter().flatten().any(|asked| asked == state),
        }
    }

    fn ask(&self, issuer: &str) -> String {
        let mut bytes = [0; 16];
        // Without randomness a state can be guessed, and still only by who can sign.
        let _ = getrandom::fill(&mut bytes);
        let state: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let [last, _] = states.entry(issuer.to_owned()).or_default();
        let before = last.replace(state.clone());
        states.insert(issuer.to_owned(), [Some(state.clone()), before]);
        state
    }
}

/// Asks each transmitter that has an endpoint for it, each at its own pace, until `stop` says so.
pub(in crate::serve) async fn keep_asking(engine: Handle, asked: Asked, mut stop: watch::Receiver<bool>) {
    let mut due: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(transmitters) = engine.ask(|engine| engine.current().map(|now| now.config.agent.ssf.clone())).await
        else {
            return;
        };
        for (issuer, transmitter) in transmitters.into_iter().flatten() {
            let Some(verification) = transmitter.verification.clone() else { continue };
            let now = Instant::now();
            if due.get(&issuer).is_some_and(|due| now < *due) {
                continue;
            }
            due.insert(issuer.clone(), now + verification.every);
            let asked = asked.clone();
            tokio::spawn(async move {
                if let Err(error) = ask(&issuer, &transmitter, &verification, &asked).await {
                    tracing::warn!(issuer, error, "a transmitter could not be asked to verify its stream");
                }
            });
        }
    }
}

async fn ask(
    issuer: &str,
    transmitter: &Transmitter,
    verification: &Verification,
    asked: &Asked,
) -> Result<(), String> {
    let authorization = match &verification.authorization {
        None => None,
        Some(file) => {
            let text = tokio::fs::read_to_string(file).await.map_err(|error| format!("`{file}`: {error}"))?;
            Some(text.trim().to_owned())
        }
    };
    let body = json!({ "stream_id": verification.stream, "state": asked.ask(issuer) }).to_string();
    let (url, ca) = (verification.endpoint.clone(), transmitter.ca.clone());
    match call(&Call { url, ca, authorization, post: Some(body) }).await? {
        (200..300, _) => Ok(()),
        (status, _) => Err(format!("the answer is {status}")),
    }
}
