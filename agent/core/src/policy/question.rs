//! One question to Cedar: who, what, where, and the context, in Cedar's own types and in the JSON its CLI takes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use cedar_policy::{Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use writ_abi::{Family, Protocol};

use super::UNLISTED;
use super::moment::Moment;
use super::schema::quoted;
use super::state::AccountState;
use crate::config::{Account, Attribute};

/// What is attempted, with everything only the attempt knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Subject<'a> {
    Connect { ip: IpAddr, port: u16, protocol: Protocol, new_destination: bool, groups: &'a BTreeSet<String> },
    OpenSocket(Family),
}

/// A question about one account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) account: &'a Account,
    pub(crate) subject: Subject<'a>,
    pub(crate) executable: &'a str,
    pub(crate) risk: u8,
    pub(crate) signals: &'a BTreeSet<String>,
    pub(crate) fresh: &'a BTreeSet<String>,
    pub(crate) approvals: BTreeSet<&'a str>,
    pub(crate) moment: Moment,
}

/// A request in the form that `cedar authorize --request-json` takes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WrittenRequest {
    /// E.g. `ServiceAccount::"billing"`.
    pub principal: String,
    /// E.g. `Action::"connect"`.
    pub action: String,
    /// E.g. `Endpoint::"10.20.0.5:5432/tcp"`.
    pub resource: String,
    /// The context, in Cedar's JSON form.
    pub context: Map<String, Value>,
}

/// Entity type names, parsed once.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) account: EntityTypeName,
    team: EntityTypeName,
    destination: EntityTypeName,
    endpoint: EntityTypeName,
    action: EntityTypeName,
}

/// One context value.
enum Member {
    Ip(IpAddr),
    Long(i64),
    Text(String),
    Bool(bool),
    Texts(Vec<String>),
    /// Milliseconds since the epoch.
    Datetime(i64),
}

/// How many extension values each thread keeps.
const MOST_SPELLED: usize = 1024;

/// An extension value, by what it is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Spelled {
    Ip(IpAddr),
    Datetime(i64),
}

thread_local! {
    /// Extension values that were asked about: to make one, Cedar's parser reads the name of its function each time.
    static SPELLED: RefCell<HashMap<Spelled, RestrictedExpression>> = RefCell::default();
}

/// The expression of an extension value.
fn spelled(value: Spelled) -> RestrictedExpression {
    SPELLED.with_borrow_mut(|known| {
        if known.len() >= MOST_SPELLED {
            known.clear();
        }
        let make = || match value {
            Spelled::Ip(ip) => RestrictedExpression::new_ip(ip.to_string()),
            Spelled::Datetime(milliseconds) => RestrictedExpression::new_datetime(datetime(milliseconds)),
        };
        known.entry(value).or_insert_with(make).clone()
    })
}

impl Names {
    pub(crate) fn new() -> Option<Self> {
        let name = |name: &str| name.parse().ok();
        Some(Self {
            account: name("ServiceAccount")?,
            team: name("Team")?,
            destination: name("Destination")?,
            endpoint: name("Endpoint")?,
            action: name("Action")?,
        })
    }
}

pub(crate) fn uid(name: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(name.clone(), EntityId::new(id))
}

/// The account and its teams as entities.
pub(crate) fn account_entities(names: &Names, account: &Account) -> Result<Entities, String> {
    let mut entities: Vec<Entity> =
        account.teams.iter().map(|team| Entity::new_no_attrs(uid(&names.team, team), HashSet::new())).collect();
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let mut attributes: HashMap<String, RestrictedExpression> = account
        .attributes
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Attribute::Bool(value) => RestrictedExpression::new_bool(*value),
                Attribute::Long(value) => RestrictedExpression::new_long(*value),
                Attribute::Text(value) => text(value),
            };
            (name.clone(), value)
        })
        .collect();
    attributes.insert("name".into(), text(&account.name));
    attributes.insert("owner".into(), text(account.owner.as_deref().unwrap_or("")));
    let executables = account.executables.iter().map(|path| text(path));
    attributes.insert("executables".into(), RestrictedExpression::new_set(executables));
    let teams = account.teams.iter().map(|team| uid(&names.team, team)).collect();
    entities
        .push(Entity::new(uid(&names.account, &account.name), attributes, teams).map_err(|error| error.to_string())?);
    Entities::from_entities(entities, None).map_err(|error| error.to_string())
}

/// The account's state, as every action's context can have it.
fn state(
    risk: u8,
    signals: &BTreeSet<String>,
    fresh: &BTreeSet<String>,
    approvals: &BTreeSet<&str>,
    executable: &str,
    moment: &Moment,
) -> BTreeMap<&'static str, Member> {
    let texts = |set: &BTreeSet<String>| Member::Texts(set.iter().cloned().collect());
    BTreeMap::from([
        ("risk", Member::Long(risk.into())),
        ("signals", texts(signals)),
        ("fresh", texts(fresh)),
        ("approvals", Member::Texts(approvals.iter().map(|id| (*id).to_owned()).collect())),
        ("executable", Member::Text(executable.to_owned())),
        ("now", Member::Datetime(moment.now)),
        ("hour", Member::Long(moment.hour.into())),
        ("minute", Member::Long(moment.minute.into())),
        ("weekday", Member::Long(moment.weekday.into())),
    ])
}

/// The members of the state that a question asks for as JSON, by their names, where nobody connects; `approvals` are the ids
/// of the escalating policies that a person approved for it.
pub(crate) fn state_json(
    state_of: &AccountState,
    approvals: &BTreeSet<String>,
    moment: &Moment,
    asks: impl Fn(&str) -> bool,
) -> Map<String, Value> {
    let approvals = approvals.iter().map(String::as_str).collect();
    let members = state(state_of.risk, &state_of.signals, &state_of.fresh, &approvals, UNLISTED, moment);
    let asked = members.into_iter().filter(|(name, _)| asks(name));
    asked.map(|(name, member)| (name.to_owned(), member.json())).collect()
}

impl Question<'_> {
    /// `Action::"connect"` or `Action::"open-socket"`, without the type.
    fn action(&self) -> &'static str {
        match self.subject {
            Subject::Connect { .. } => "connect",
            Subject::OpenSocket(_) => "open-socket",
        }
    }

    fn endpoint(&self) -> String {
        match self.subject {
            Subject::Connect { ip: IpAddr::V4(ip), port, protocol, .. } => format!("{ip}:{port}/{}", protocol.name()),
            Subject::Connect { ip: IpAddr::V6(ip), port, protocol, .. } => format!("[{ip}]:{port}/{}", protocol.name()),
            Subject::OpenSocket(family) => family.name().to_owned(),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &String> {
        match self.subject {
            Subject::Connect { groups, .. } => Some(groups.iter()),
            Subject::OpenSocket(_) => None,
        }
        .into_iter()
        .flatten()
    }

    fn members(&self) -> BTreeMap<&'static str, Member> {
        let mut members = state(self.risk, self.signals, self.fresh, &self.approvals, self.executable, &self.moment);
        match self.subject {
            Subject::Connect { ip, port, protocol, new_destination, .. } => members.extend([
                ("ip", Member::Ip(ip)),
                ("port", Member::Long(port.into())),
                ("protocol", Member::Text(protocol.name().to_owned())),
                ("new_destination", Member::Bool(new_destination)),
            ]),
            Subject::OpenSocket(family) => members.extend([("family", Member::Text(family.name().to_owned()))]),
        }
        members
    }

    /// The question for the authorizer, with or without `context.now`.
    pub(crate) fn request(&self, names: &Names, now: bool) -> Result<Request, String> {
        let members = self.members().into_iter().filter(|(name, _)| now || *name != "now");
        let pairs = members.map(|(name, member)| (name.to_owned(), member.expression()));
        let context = Context::from_pairs(pairs).map_err(|error| error.to_string())?;
        Request::new(
            uid(&names.account, &self.account.name),
            uid(&names.action, self.action()),
            uid(&names.endpoint, &self.endpoint()),
            context,
            None,
        )
        .map_err(|error| error.to_string())
    }

    /// The entities the question needs: the account with its teams, and the endpoint in its destinations.
    pub(crate) fn entities(&self, names: &Names, account: &Entities) -> Result<Entities, String> {
        let parents = self.groups().map(|group| uid(&names.destination, group)).collect();
        let endpoint = Entity::new_no_attrs(uid(&names.endpoint, &self.endpoint()), parents);
        account.clone().add_entities([endpoint], None).map_err(|error| error.to_string())
    }

    /// The request as `cedar authorize --request-json` takes it.
    pub(crate) fn written(&self) -> WrittenRequest {
        WrittenRequest {
            principal: format!("ServiceAccount::{}", quoted(&self.account.name)),
            action: format!("Action::{}", quoted(self.action())),
            resource: format!("Endpoint::{}", quoted(&self.endpoint())),
            context: self.members().into_iter().map(|(name, member)| (name.to_owned(), member.json())).collect(),
        }
    }

    /// The entities as `cedar authorize --entities` takes them.
    pub(crate) fn entities_json(&self) -> Value {
        let account = self.account;
        let entity = |kind: &str, id: &str, attributes: Value, parents: Vec<Value>| json!({"uid": {"type": kind, "id": id}, "attrs": attributes, "parents": parents});
        let named = |kind: &str, id: &str| json!({"type": kind, "id": id});
        let mut attributes: Map<String, Value> =
            account.attributes.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        attributes.insert("name".into(), json!(account.name));
        attributes.insert("owner".into(), json!(account.owner.as_deref().unwrap_or("")));
        attributes.insert("executables".into(), json!(account.executables));
        let mut entities: Vec<Value> =
            account.teams.iter().map(|team| entity("Team", team, json!({}), Vec::new())).collect();
        let teams = account.teams.iter().map(|team| named("Team", team)).collect();
        entities.push(entity("ServiceAccount", &account.name, Value::Object(attributes), teams));
        let groups = self.groups().map(|group| named("Destination", group)).collect();
        entities.push(entity("Endpoint", &self.endpoint(), json!({}), groups));
        Value::Array(entities)
    }
}

impl Member {
    fn expression(self) -> RestrictedExpression {
        match self {
            Self::Ip(ip) => spelled(Spelled::Ip(ip)),
            Self::Long(number) => RestrictedExpression::new_long(number),
            Self::Text(text) => RestrictedExpression::new_string(text),
            Self::Bool(value) => RestrictedExpression::new_bool(value),
            Self::Texts(texts) => {
                RestrictedExpression::new_set(texts.into_iter().map(RestrictedExpression::new_string))
            }
            Self::Datetime(milliseconds) => spelled(Spelled::Datetime(milliseconds)),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::Ip(ip) => json!({"__extn": {"fn": "ip", "arg": ip.to_string()}}),
            Self::Long(number) => json!(number),
            Self::Text(text) => json!(text),
            Self::Bool(value) => json!(value),
            Self::Texts(texts) => json!(texts),
            Self::Datetime(milliseconds) => json!({"__extn": {"fn": "datetime", "arg": datetime(milliseconds)}}),
        }
    }
}

/// `context.now` at this moment, in Cedar's JSON form.
pub fn now_json(at: Timestamp) -> Value {
    Member::Datetime(at.as_millisecond()).json()
}

/// Milliseconds since the epoch as Cedar's `datetime` reads them. Years beyond its four digits are clamped.
fn datetime(milliseconds: i64) -> String {
    let instant =
        Timestamp::from_millisecond(milliseconds.clamp(-62_135_596_800_000, 253_402_207_200_000)).unwrap_or_default();
    instant.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
