//! Who may say what about whom.
//!
//! Root and operators may send any signal about any account that is not themselves. Others send a declared kind if its
//! `from` names them. What a service account says about itself can only make things worse for it: root and operator
//! rights do not count, `from` must name it, and nothing it said before can be taken back. The one exception is
//! declared word by word: a freshness kind whose `from` names the account's own `match.user`. A transmitter of security
//! events is nobody here: it sends what its `[ssf."ISSUER"]` maps, about the accounts its subjects are.

use serde::Serialize;

use super::{Caller, Signal, TRANSMITTER};
use crate::config::{Account, Config, SignalKind};

/// Why a sender was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unauthorised {
    /// The kind's `from` does not name the sender.
    NotInFrom,
    /// No `[ssf."ISSUER"]` declares that the transmitter speaks of this, or about this account.
    NotMapped,
    /// An account declares itself fresh, and `from` does not name its own user.
    OwnFreshness,
    /// An account takes back a graver or longer statement about itself.
    LowersOwnRisk,
}

impl Unauthorised {
    /// It in words, with what to do.
    pub(super) fn told(self, kind: &str) -> String {
        match self {
            Self::NotInFrom => {
                format!("the sender may not send `{kind}`: `from` of `[signal.\"{kind}\"]` says who may")
            }
            Self::NotMapped => format!(
                "`[ssf.\"ISSUER\"]` of this transmitter maps no event to `{kind}`, or no subject to this account"
            ),
            Self::OwnFreshness => format!(
                "a service account cannot declare itself fresh: `from` of `[signal.\"{kind}\"]` would have to name its user"
            ),
            Self::LowersOwnRisk => "a service account cannot take back or lower a statement about itself".to_owned(),
        }
    }
}

/// Whether the sender may send this kind about this account.
pub(super) fn admit(
    caller: &Caller,
    kind: &SignalKind,
    account: &Account,
    config: &Config,
) -> Result<(), Unauthorised> {
    if caller.transmitter {
        return admit_transmitter(caller, kind, account, config);
    }
    if caller.stems_from(&account.name) {
        if !caller.named_in(&kind.from) {
            return Err(Unauthorised::NotInFrom);
        }
        if kind.freshness && !declared_for_itself(caller, kind, account) {
            return Err(Unauthorised::OwnFreshness);
        }
        return Ok(());
    }
    if caller.is_operator(&config.agent.operators) || caller.named_in(&kind.from) {
        return Ok(());
    }
    Err(Unauthorised::NotInFrom)
}

/// Whether a transmitter of security events may send this kind about this account: what is declared of it decides alone.
/// Where `from` names transmitters, it has to be one of them.
fn admit_transmitter(
    caller: &Caller,
    kind: &SignalKind,
    account: &Account,
    config: &Config,
) -> Result<(), Unauthorised> {
    let declared = caller.name.as_ref().and_then(|issuer| config.agent.ssf.get(issuer));
    let maps = declared.is_some_and(|declared| {
        declared.sends(&kind.kind) && declared.subjects.values().any(|known| *known == account.name)
    });
    if !maps {
        return Err(Unauthorised::NotMapped);
    }
    let only = kind.from.iter().any(|entry| entry.starts_with(TRANSMITTER));
    if only && !caller.named_in(&kind.from) { Err(Unauthorised::NotInFrom) } else { Ok(()) }
}

/// Whether the sender may put `next` in the place of its earlier statement `live`.
pub(super) fn admit_replacement(caller: &Caller, next: &Signal, live: &Signal) -> Result<(), Unauthorised> {
    if caller.stems_from(&live.account) && (next.risk < live.risk || next.expires < live.expires) {
        return Err(Unauthorised::LowersOwnRisk);
    }
    Ok(())
}

/// Whether `from` names the user this account is matched by, and the sender is that user: a name reached by sudo from
/// the account's own processes is not enough.
fn declared_for_itself(caller: &Caller, kind: &SignalKind, account: &Account) -> bool {
    let Some(name) = &caller.name else { return false };
    kind.from.contains(name) && account.matches.iter().any(|way| way.user.as_ref() == Some(name))
}
