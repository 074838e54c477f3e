//! The archived destinations and accounts: what entities are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use writ_abi::Protocol;

use crate::config::Destination;
use crate::policy::Places;

/// The archived form of destinations and accounts.
#[derive(Deserialize)]
struct Written {
    destinations: BTreeMap<String, Place>,
    service_accounts: BTreeMap<String, Account>,
}

#[derive(Deserialize)]
struct Place {
    addresses: Vec<IpNet>,
    ports: Vec<(u16, u16)>,
    protocols: Vec<String>,
    r#in: Vec<String>,
}

/// One account's part in entities.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Account {
    pub(super) owner: Option<String>,
    pub(super) team: Vec<String>,
    pub(super) executables: Vec<String>,
    attributes: Map<String, Value>,
}

/// Destinations and accounts of one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    destinations: BTreeMap<String, Destination>,
    places: Places,
    pub(super) accounts: BTreeMap<String, Account>,
}

impl Facts {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let protocol = |name: &String| {
            let known = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.name() == name);
            known.ok_or_else(|| format!("`{name}` is no protocol"))
        };
        let mut destinations = BTreeMap::new();
        for (name, place) in written.destinations {
            let destination = Destination {
                name: name.clone(),
                addresses: place.addresses,
                names: Vec::new(),
                ports: place.ports,
                protocols: place.protocols.iter().map(protocol).collect::<Result<_, _>>()?,
                parents: place.r#in,
                at: None,
            };
            destinations.insert(name, destination);
        }
        Ok(Self { places: Places::of(&destinations), destinations, accounts: written.service_accounts })
    }

    /// The same, with those of these destinations that are not among them.
    pub(super) fn with(&self, more: &BTreeMap<String, Destination>) -> Self {
        let mut destinations = self.destinations.clone();
        for (name, destination) in more {
            destinations.entry(name.clone()).or_insert_with(|| destination.clone());
        }
        Self { places: Places::of(&destinations), destinations, accounts: self.accounts.clone() }
    }

    /// Every destination.
    pub(super) fn destinations(&self) -> &BTreeMap<String, Destination> {
        &self.destinations
    }

    /// Whether a destination is declared.
    pub(super) fn has_destination(&self, name: &str) -> bool {
        self.destinations.contains_key(name)
    }

    /// Accounts with their teams.
    pub(super) fn teams(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.accounts.iter().map(|(name, account)| (name.as_str(), account.team.as_slice()))
    }

    /// The destinations an endpoint is in, parents included.
    pub(super) fn groups(&self, endpoint: Option<(IpAddr, u16, Protocol)>) -> Vec<String> {
        let groups: BTreeSet<String> = match endpoint {
            Some((ip, port, protocol)) => self.places.groups(&self.destinations, ip, port, protocol),
            None => BTreeSet::new(),
        };
        groups.into_iter().collect()
    }

    /// The entities of one question, as `cedar authorize --entities` takes them; `None` if there is no such account.
    pub(super) fn entities(&self, name: &str, endpoint: &str, groups: &[String]) -> Option<Value> {
        let mut entities = self.account_entities(name)?;
        let parents = groups.iter().map(|group| named("Destination", group)).collect();
        entities.push(entity("Endpoint", endpoint, json!({}), parents));
        Some(Value::Array(entities))
    }

    /// An account and its teams; `None` if there is no such account.
    pub(super) fn account_entities(&self, name: &str) -> Option<Vec<Value>> {
        let account = self.accounts.get(name)?;
        let mut attributes = account.attributes.clone();
        attributes.insert("name".into(), json!(name));
        attributes.insert("owner".into(), json!(account.owner.as_deref().unwrap_or("")));
        attributes.insert("executables".into(), json!(account.executables));
        let mut entities: Vec<Value> =
            account.team.iter().map(|team| entity("Team", team, json!({}), Vec::new())).collect();
        let teams = account.team.iter().map(|team| named("Team", team)).collect();
        entities.push(entity("ServiceAccount", name, Value::Object(attributes), teams));
        Some(entities)
    }
}

fn named(kind: &str, id: &str) -> Value {
    json!({"type": kind, "id": id})
}

fn entity(kind: &str, id: &str, attributes: Value, parents: Vec<Value>) -> Value {
    json!({"uid": named(kind, id), "attrs": attributes, "parents": parents})
}
