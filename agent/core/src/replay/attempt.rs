//! What deciding again needs of a record, read from its line and checked against itself.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};
use writ_abi::{Family, Protocol};

use super::compare::Difference;
use crate::policy::Moment;
use crate::record::{EffectiveMode, Verdict};

/// A decision or observation, as far as it is decided again.
#[derive(Clone, Debug, Deserialize)]
pub struct Attempt<'a> {
    /// The record's id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// `decision` or `observation`.
    #[serde(borrow)]
    pub r#type: Cow<'a, str>,
    /// When.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// The account.
    #[serde(borrow)]
    pub account: Cow<'a, str>,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it was enforced.
    pub effective_mode: EffectiveMode,
    /// The action.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// The destination.
    #[serde(borrow, default)]
    pub destination: Option<To<'a>>,
    /// The determining policies.
    #[serde(borrow)]
    pub policies: Vec<Named<'a>>,
    /// The set's digest.
    #[serde(borrow)]
    pub policy_digest: Cow<'a, str>,
    /// The risk.
    pub risk: u8,
    /// The Cedar request.
    #[serde(borrow)]
    pub request: Asked<'a>,
    /// Why.
    #[serde(borrow)]
    pub reason_code: Cow<'a, str>,
    /// The verdict with observe-mode policies enforced, where it differs.
    #[serde(borrow, default)]
    pub would: Option<Instead<'a>>,
    /// How many attempts it stands for.
    pub count: u32,
    /// What was shortened.
    #[serde(borrow, default)]
    pub truncated: Vec<Cow<'a, str>>,
}

/// The destination of an [`Attempt`].
#[derive(Clone, Debug, Deserialize)]
pub struct To<'a> {
    /// The address.
    #[serde(borrow)]
    pub address: Cow<'a, str>,
    /// The port.
    pub port: u16,
    /// The protocol.
    #[serde(borrow)]
    pub protocol: Cow<'a, str>,
    /// The destinations it belongs to.
    #[serde(borrow)]
    pub groups: Vec<Cow<'a, str>>,
}

/// A policy of an [`Attempt`].
#[derive(Clone, Debug, Deserialize)]
pub struct Named<'a> {
    /// Its id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

/// The request of an [`Attempt`].
#[derive(Clone, Debug, Deserialize)]
pub struct Asked<'a> {
    /// The principal.
    #[serde(borrow)]
    pub principal: Cow<'a, str>,
    /// The action.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// The resource.
    #[serde(borrow)]
    pub resource: Cow<'a, str>,
    /// The context.
    pub context: Map<String, Value>,
    /// What the asker said about principal and resource.
    #[serde(default)]
    pub entities: Vec<Value>,
}

/// The would-be verdict of an [`Attempt`].
#[derive(Clone, Debug, Deserialize)]
pub struct Instead<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// Who would have determined it.
    #[serde(borrow)]
    pub policies: Vec<Named<'a>>,
}

/// Why a record cannot be decided again; the name is stable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NotReplayable {
    /// Policy did not decide it: the reason is in the record.
    Reason(&'static str),
    /// The generation was too old to be explained when the record was made.
    NoInputs,
    /// The inputs were shortened to fit the line.
    Truncated,
    /// An action of the operator's own, which what-if leaves out.
    DecisionPoint,
}

impl NotReplayable {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reason(code) => code,
            Self::NoInputs => "inputs-not-recorded",
            Self::Truncated => "inputs-shortened",
            Self::DecisionPoint => "decision-point",
        }
    }
}

impl<'a> Attempt<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// It is not a decision or observation.
    pub fn of(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }

    /// Whether everything that Cedar is asked is in the record.
    pub(super) fn askable(&self) -> Result<(), NotReplayable> {
        if self.truncated.iter().any(|path| path.starts_with("request") || path.starts_with("destination")) {
            return Err(NotReplayable::Truncated);
        }
        if self.request.principal.is_empty() || self.policy_digest.is_empty() {
            return Err(NotReplayable::NoInputs);
        }
        Ok(())
    }

    /// Whether it was asked of the decision point, about an action of the operator's own.
    pub(super) fn is_own_action(&self) -> bool {
        !matches!(self.action.as_ref(), "connect" | "open-socket")
    }

    /// The account that it is about, if the principal is one.
    pub(super) fn principal_account(&self) -> Option<String> {
        let principal: cedar_policy::EntityUid = self.request.principal.parse().ok()?;
        (principal.type_name().to_string() == "ServiceAccount").then(|| principal.id().unescaped().to_owned())
    }

    /// The family of a socket that is not decided by address.
    pub(super) fn family(&self) -> Option<Family> {
        let name = self.request.context.get("family")?.as_str()?;
        Family::ALL.into_iter().find(|family| family.name() == name)
    }

    /// The endpoint asked about, from the context.
    pub(super) fn endpoint(&self) -> Option<(IpAddr, u16, Protocol)> {
        let context = &self.request.context;
        let ip = context.get("ip")?.pointer("/__extn/arg")?.as_str()?.parse().ok()?;
        let port = context.get("port")?.as_u64()?.try_into().ok()?;
        let name = context.get("protocol")?.as_str()?;
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.name() == name)?;
        Some((ip, port, protocol))
    }

    /// The moment asked about, from the context.
    pub(super) fn moment(&self) -> Option<Moment> {
        let context = &self.request.context;
        let small = |name: &str| context.get(name)?.as_i64()?.try_into().ok();
        let now: jiff::Timestamp = self.now()?.parse().ok()?;
        let (hour, minute, weekday) = (small("hour")?, small("minute")?, small("weekday")?);
        // There are classes of no others.
        let sane = (0..24).contains(&hour) && (0..60).contains(&minute) && (1..8).contains(&weekday);
        sane.then(|| Moment { now: now.as_millisecond(), hour, minute, weekday })
    }

    fn now(&self) -> Option<&str> {
        self.request.context.get("now")?.pointer("/__extn/arg")?.as_str()
    }

    /// Where the record says two things at once: the members by which people search it, against the request by which it
    /// was decided. `groups` are the destinations of the archived configuration that the endpoint is in.
    pub(super) fn contradictions(&self, groups: &[String]) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut expect = |member: &'static str, recorded: &str, asked: &str| {
            if recorded != asked {
                found.push(Difference::new(member, recorded, asked));
            }
        };
        let quoted = crate::policy::quoted;
        let own = self.is_own_action();
        // One that is no account is named as Cedar names it.
        if !own || self.request.principal != self.account {
            expect("account", &format!("ServiceAccount::{}", quoted(&self.account)), &self.request.principal);
        }
        expect("action", &format!("Action::{}", quoted(&self.action)), &self.request.action);
        let kind = match self.effective_mode {
            EffectiveMode::Enforce => "decision",
            EffectiveMode::Observe => "observation",
        };
        expect("type", &self.r#type, kind);
        if own {
            // Its schema says what of the account's state was asked about.
            if let Some(risk) = self.request.context.get("risk") {
                expect("risk", &self.risk.to_string(), &risk.to_string());
            }
            if let Some(now) = self.now() {
                expect("time", self.time.get(..23).unwrap_or(&self.time), now.get(..23).unwrap_or(now));
            }
            return found;
        }
        let risk = self.request.context.get("risk").map(ToString::to_string).unwrap_or_default();
        expect("risk", &self.risk.to_string(), &risk);
        let resource = match (&self.destination, self.endpoint(), self.family()) {
            (Some(to), Some((ip, port, protocol)), _) => {
                expect("destination.address", &to.address, &ip.to_string());
                expect("destination.port", &to.port.to_string(), &port.to_string());
                expect("destination.protocol", &to.protocol, protocol.name());
                let mut recorded: Vec<&str> = to.groups.iter().map(AsRef::as_ref).collect();
                recorded.sort_unstable();
                expect("destination.groups", &recorded.join(", "), &groups.join(", "));
                match ip {
                    IpAddr::V4(ip) => format!("{ip}:{port}/{}", protocol.name()),
                    IpAddr::V6(ip) => format!("[{ip}]:{port}/{}", protocol.name()),
                }
            }
            (None, None, Some(family)) => family.name().to_owned(),
            _ => "(not one endpoint)".to_owned(),
        };
        expect("request.resource", &self.request.resource, &format!("Endpoint::{}", quoted(&resource)));
        // Both are the moment of the attempt; the request's has milliseconds.
        let recorded = self.time.get(..23).unwrap_or(&self.time);
        let asked = self.now().unwrap_or_default();
        expect("time", recorded, asked.get(..23).unwrap_or(asked));
        found
    }
}
