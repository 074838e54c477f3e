//! A question to the decision point as the engine takes it, and its answer.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use serde_json::{Map, Value, json};
use writ_abi::Protocol;

/// A subject or a resource.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Party {
    /// Its type.
    pub(crate) kind: String,
    /// Its id.
    pub(crate) id: String,
    /// What the asker says about it.
    pub(crate) properties: Map<String, Value>,
}

/// A question: may this subject do this to that resource, in this context?
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Asked {
    /// Who.
    pub(crate) subject: Party,
    /// The action's name.
    pub(crate) action: String,
    /// To what.
    pub(crate) resource: Party,
    /// The context, the action's properties included.
    pub(crate) context: Map<String, Value>,
}

/// An answer; what is sent of it is its decision and its context.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Answered {
    /// Whether it may.
    pub(crate) decision: bool,
    /// What else there is to say.
    pub(crate) context: Map<String, Value>,
    /// The escalation that waits for a person, if one does.
    #[serde(skip)]
    pub(crate) escalation: Option<String>,
    /// What is answered instead where it is worth nothing without its record: the record is then replaced too (see
    /// [`super::Engine::settle`]).
    #[serde(skip)]
    pub(crate) without_record: Option<Map<String, Value>>,
}

impl Answered {
    /// What is left of it when its record could not be written.
    pub(crate) fn unrecorded(mut self) -> Self {
        if let Some(refusal) = self.without_record.take() {
            self.decision = false;
            self.context = refusal;
        }
        // It waits for its place in the log.
        self.context.remove("record");
        self
    }
}

impl Party {
    /// The party as Cedar writes it.
    pub(crate) fn uid(&self) -> String {
        format!("{}::{}", self.kind, quoted(&self.id))
    }

    /// The party as an entity with its properties.
    fn entity(&self) -> Value {
        json!({ "uid": { "type": self.kind, "id": self.id }, "attrs": self.properties, "parents": [] })
    }
}

impl Asked {
    /// The account asked about, if the subject is one.
    pub(crate) fn account(&self) -> Option<&str> {
        matches!(self.subject.kind.as_str(), "service_account" | "ServiceAccount").then_some(self.subject.id.as_str())
    }

    /// The subject as Cedar writes it: both spellings of an account's type are one.
    pub(crate) fn principal(&self) -> String {
        match self.account() {
            Some(account) => format!("ServiceAccount::{}", quoted(account)),
            None => self.subject.uid(),
        }
    }

    /// The action as Cedar writes it; a name of a namespace is taken as it is.
    pub(crate) fn action_uid(&self) -> String {
        if self.action.contains("::Action::\"") {
            return self.action.clone();
        }
        format!("Action::{}", quoted(&self.action))
    }

    /// What the asker knows about subject and resource. Of accounts and destinations writ knows better.
    pub(crate) fn entities(&self) -> Vec<Value> {
        let subject = self.account().is_none().then(|| self.subject.entity());
        let known = matches!(self.resource.kind.as_str(), "ServiceAccount" | "SubjectType")
            || self.subject.uid() == self.resource.uid();
        let resource = (!known).then(|| self.resource.entity());
        let named = self.context.values().filter_map(party).map(|party| party.entity());
        subject.into_iter().chain(resource).chain(named).collect()
    }

    /// The context as Cedar reads it: what the asker describes as subjects and resources are described is an entity there.
    pub(crate) fn cedar_context(&self) -> Map<String, Value> {
        let value = |value: &Value| match party(value) {
            Some(party) => json!({ "__entity": { "type": party.kind, "id": party.id } }),
            None => value.clone(),
        };
        self.context.iter().map(|(name, given)| (name.clone(), value(given))).collect()
    }

    /// The endpoint that the resource of a `connect` is: `ADDRESS:PORT/PROTOCOL`.
    pub(crate) fn endpoint(&self) -> Result<(IpAddr, u16, Protocol), String> {
        if !matches!(self.resource.kind.as_str(), "Endpoint" | "endpoint" | "network_endpoint") {
            return Err(format!("a connect goes to an `Endpoint`, not to a `{}`", self.resource.kind));
        }
        let wrong = || format!("`{}` is not an endpoint: write `ADDRESS:PORT/PROTOCOL`", self.resource.id);
        let (address, protocol) = self.resource.id.rsplit_once('/').unwrap_or((&self.resource.id, "tcp"));
        let address: SocketAddr = address.parse().map_err(|_| wrong())?;
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.name() == protocol);
        Ok((address.ip(), address.port(), protocol.ok_or_else(wrong)?))
    }
}

/// An entity that a member of the context is: an object of `type`, `id` and `properties`, and nothing else.
fn party(value: &Value) -> Option<Party> {
    let members = value.as_object().filter(|members| members.len() == 3)?;
    let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
    let properties = members.get("properties").and_then(Value::as_object)?.clone();
    Some(Party { kind: text("type")?, id: text("id")?, properties })
}

/// A Cedar string literal.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(kind: &str, id: &str) -> Asked {
        let resource = Party { kind: kind.into(), id: id.into(), ..Party::default() };
        Asked { resource, ..Asked::default() }
    }

    #[test]
    fn an_endpoint_is_an_address_a_port_and_a_protocol() {
        assert_eq!(
            to("Endpoint", "10.0.0.1:5432/udp").endpoint(),
            Ok(("10.0.0.1".parse().unwrap(), 5432, Protocol::Udp))
        );
        assert_eq!(to("Endpoint", "[::1]:53").endpoint(), Ok(("::1".parse().unwrap(), 53, Protocol::Tcp)));
        for wrong in ["10.0.0.1", "host:1/tcp", "10.0.0.1:1/sctp", ""] {
            assert!(to("Endpoint", wrong).endpoint().is_err(), "{wrong}");
        }
        assert!(to("Secret", "10.0.0.1:1/tcp").endpoint().is_err());
    }

    #[test]
    fn what_the_context_describes_as_an_entity_is_one() {
        let posture = json!({ "type": "Posture", "id": "run/7", "properties": { "repository": "example/payments" } });
        let record = json!({ "type": "Posture", "id": "run/7" });
        let context = json!({ "posture": posture, "other": record, "plain": 1 });
        let asked = Asked { context: context.as_object().unwrap().clone(), ..to("Credential", "deploy-key") };
        let cedar = Value::Object(asked.cedar_context());
        assert_eq!(
            cedar,
            json!({ "posture": { "__entity": { "type": "Posture", "id": "run/7" } }, "other": record, "plain": 1 })
        );
        let entities = asked.entities();
        let described = entities.last().unwrap();
        assert_eq!(described["uid"], json!({ "type": "Posture", "id": "run/7" }));
        assert_eq!(described["attrs"], json!({ "repository": "example/payments" }));
    }

    #[test]
    fn both_spellings_of_an_account_are_one_principal() {
        for kind in ["service_account", "ServiceAccount"] {
            let subject = Party { kind: kind.into(), id: "ci".into(), ..Party::default() };
            assert_eq!(Asked { subject, ..Asked::default() }.principal(), "ServiceAccount::\"ci\"");
        }
    }
}
