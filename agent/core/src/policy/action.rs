//! The operator's own actions (`schema.d`): asked of the decision endpoint, answered by the same policies and engine.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression, SchemaFragment,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::bundle::Bundle;
use super::judge::Evaluation;
use super::question;
use super::state::AccountState;

/// Entities of these types are writ's own: an asker states nothing about them.
const OWN_TYPES: [&str; 4] = ["ServiceAccount", "Team", "Destination", "Endpoint"];

/// A question about an action of the operator's own.
#[derive(Clone, Debug)]
pub struct ActionRequest<'a> {
    /// Who, as Cedar writes it: `ServiceAccount::"ci"`, or an entity of a type of the operator's own, `user::"alice"`.
    pub principal: &'a str,
    /// The action, as Cedar writes it: `Action::"issue"`.
    pub action: &'a str,
    /// The resource, as Cedar writes it: `Secret::"api-key"`.
    pub resource: &'a str,
    /// The context the asker knows, as an object. Where the schema declares members of the account's state (`risk`,
    /// `signals`, `fresh`, `now`, …), writ fills them in, whatever the asker says. What it does not declare is left out.
    pub context: &'a Value,
    /// Entities the asker knows, as `cedar authorize --entities` takes them; undeclared attributes are left out. The
    /// account and its teams are writ's own.
    pub entities: &'a Value,
    /// Ids of the escalating policies that a person has approved for exactly this principal, action and resource.
    pub approvals: &'a BTreeSet<String>,
}

/// The answer, with the question as it was put to Cedar.
#[derive(Clone, PartialEq, Debug)]
pub struct ActionAnswer {
    /// What policy says.
    pub evaluation: Evaluation,
    /// The context as evaluated.
    pub context: Map<String, Value>,
    /// The asker's entities as evaluated.
    pub entities: Vec<Value>,
    /// Until when time alone cannot change the answer; `None`: it never can.
    pub until: Option<Timestamp>,
}

/// Why a question cannot be asked.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ActionError {
    /// The account is not declared.
    #[error("service account `{0}` is not declared")]
    UnknownAccount(String),
    /// Connects and sockets are decided by the kernel's tables.
    #[error("`{0}` is decided in the kernel: ask `simulate` about it")]
    KernelAction(String),
    /// A name is not a Cedar entity.
    #[error("`{0}` is not an entity: write `Type::\"id\"`")]
    NotAnEntity(String),
    /// The request does not fit the schema.
    #[error("the request does not fit the schema: {0}")]
    Schema(String),
    /// The entities do not fit the schema.
    #[error("the entities do not fit the schema: {0}")]
    Entities(String),
}

/// What a schema declares: the members of each action's context, and the attributes of each entity type.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnActions {
    contexts: BTreeMap<String, BTreeSet<String>>,
    attributes: BTreeMap<String, BTreeSet<String>>,
    /// The names of types, parsed: a question names three.
    types: BTreeMap<String, EntityTypeName>,
    /// Every action with the groups it is in; empty if none is in any.
    actions: Entities,
    /// Whether some policy asks for `now`, or for the clock.
    now: bool,
    clock: bool,
}

impl OwnActions {
    /// Reads them off a schema's text. What cannot be read declares nothing: the schema check then names what is missing.
    /// `actions` are the schema's, `policies` the texts of all policies.
    pub(crate) fn of<'a>(schema: &str, actions: Entities, policies: impl Iterator<Item = &'a str>) -> Self {
        let json =
            SchemaFragment::from_cedarschema_str(schema).ok().and_then(|(schema, _)| schema.to_json_value().ok());
        let mut declared = Self::default();
        let in_a_group =
            |action: &Entity| actions.ancestors(&action.uid()).is_some_and(|mut groups| groups.next().is_some());
        if actions.iter().any(in_a_group) {
            declared.actions = actions;
        }
        for text in policies {
            let asks = |member: &str| text.contains(&format!(".{member}")) || text.contains(&format!("\"{member}\""));
            declared.now |= asks("now");
            declared.clock |= ["hour", "minute", "weekday"].into_iter().any(asks);
        }
        for (namespace, body) in json.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let qualified =
                |name: &str| if namespace.is_empty() { name.to_owned() } else { format!("{namespace}::{name}") };
            let members = |record: &Value| -> BTreeSet<String> {
                let named = record.get("name").or_else(|| record.get("type")).and_then(Value::as_str);
                let common = named.and_then(|name| body.get("commonTypes")?.get(name));
                let attributes = common.unwrap_or(record).get("attributes").and_then(Value::as_object);
                attributes.into_iter().flat_map(|attributes| attributes.keys().cloned()).collect()
            };
            for (action, definition) in body.get("actions").and_then(Value::as_object).into_iter().flatten() {
                let Some(context) = definition.pointer("/appliesTo/context") else { continue };
                let name = format!("{}::{}", qualified("Action"), super::schema::quoted(action));
                declared.contexts.insert(name, members(context));
            }
            for (kind, definition) in body.get("entityTypes").and_then(Value::as_object).into_iter().flatten() {
                let attributes = definition.get("shape").map(members).unwrap_or_default();
                declared.attributes.insert(qualified(kind), attributes);
            }
            let kinds = declared.attributes.keys().cloned().chain([qualified("Action")]).collect::<Vec<_>>();
            let parsed = kinds.into_iter().filter_map(|kind| kind.parse().ok().map(|name| (kind, name)));
            declared.types.extend(parsed);
        }
        declared
    }

    /// An entity's name, read by Cedar's own parser unless there is nothing in it to be read: `Type::"plain id"`.
    fn entity(&self, name: &str) -> Result<EntityUid, ActionError> {
        let plain = name.strip_suffix('"').and_then(|name| name.split_once("::\""));
        if let Some((kind, id)) = plain
            && !id.contains(['"', '\\'])
            && let Some(kind) = self.types.get(kind)
        {
            return Ok(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)));
        }
        name.parse().map_err(|_| ActionError::NotAnEntity(name.to_owned()))
    }

    /// An entity of which nothing is said but its name; `None` if it is any other.
    fn plain_entity(&self, entity: &Value) -> Option<Entity> {
        let nothing = |member: &str| match entity.get(member) {
            None => true,
            Some(Value::Object(members)) => members.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        let uid = entity.get("uid").and_then(Value::as_object).filter(|uid| uid.len() == 2)?;
        let (kind, id) = (uid.get("type")?.as_str()?, uid.get("id")?.as_str()?);
        let known = ["uid", "attrs", "parents"];
        let only = entity.as_object()?.keys().all(|member| known.contains(&member.as_str()));
        let kind = self.types.get(kind).filter(|_| only && nothing("attrs") && nothing("parents"))?;
        Some(Entity::new_no_attrs(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)), HashSet::new()))
    }

    /// The context without what the action does not declare: askers may say more than anybody asks.
    fn context(&self, action: &str, given: &Value) -> Map<String, Value> {
        let declared = self.contexts.get(action);
        let given = given.as_object().into_iter().flatten();
        given
            .filter(|(name, _)| declared.is_some_and(|declared| declared.contains(*name)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// The entities without attributes that their types do not declare.
    fn entities(&self, given: &Value) -> Result<Vec<Value>, ActionError> {
        let mut entities = Vec::new();
        for entity in given.as_array().into_iter().flatten() {
            let kind = entity.pointer("/uid/type").and_then(Value::as_str).unwrap_or_default();
            if OWN_TYPES.contains(&kind) {
                return Err(ActionError::Entities(format!("`{kind}` entities are writ's own")));
            }
            let mut entity = entity.clone();
            if let Some(attributes) = entity.get_mut("attrs").and_then(Value::as_object_mut) {
                let declared = self.attributes.get(kind);
                attributes.retain(|name, _| declared.is_some_and(|declared| declared.contains(name)));
            }
            entities.push(entity);
        }
        Ok(entities)
    }
}

/// A context of texts, whole numbers, truth values and sets of them, as its JSON says; `None` if there is more to it.
fn plain_context(members: &Map<String, Value>) -> Option<Context> {
    let pairs = members.iter().map(|(name, value)| Some((name.clone(), plain(value)?)));
    Context::from_pairs(pairs.collect::<Option<Vec<_>>>()?).ok()
}

fn plain(value: &Value) -> Option<RestrictedExpression> {
    Some(match value {
        Value::String(text) => RestrictedExpression::new_string(text.clone()),
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Number(number) => RestrictedExpression::new_long(number.as_i64()?),
        Value::Array(items) => RestrictedExpression::new_set(items.iter().map(plain).collect::<Option<Vec<_>>>()?),
        Value::Null | Value::Object(_) => return None,
    })
}

impl Bundle {
    /// Asks Cedar about an action of the operator's own.
    ///
    /// # Errors
    /// It cannot be asked: a name is unknown, or the schema does not allow the question.
    pub fn authorize(&self, asked: &ActionRequest<'_>, state: &AccountState) -> Result<ActionAnswer, ActionError> {
        if matches!(asked.action, "Action::\"connect\"" | "Action::\"open-socket\"") {
            return Err(ActionError::KernelAction(asked.action.to_owned()));
        }
        let entity = |name: &str| self.own_actions.entity(name);
        let (principal, action, resource) = (entity(asked.principal)?, entity(asked.action)?, entity(asked.resource)?);
        let account_of = |uid: &EntityUid| {
            let id: &str = uid.id().as_ref();
            (uid.type_name() == &self.names.account).then(|| id.to_owned())
        };
        let account = match account_of(&principal) {
            Some(id) => Some(self.accounts.get(&id).ok_or(ActionError::UnknownAccount(id))?),
            None => None,
        };
        let mut context = self.own_actions.context(asked.action, asked.context);
        context.extend(self.state_of(asked, state));
        let schema = Some(&*self.cedar_schema);
        let misfit = |error: &dyn std::fmt::Display| ActionError::Schema(error.to_string());
        let about = account_of(&resource).and_then(|id| self.accounts.get(&id));
        let ask = |context: Context| {
            Request::new(principal.clone(), action.clone(), resource.clone(), context, schema)
                .map_err(|error| misfit(&error))
        };
        // The schema judges either way. Reading JSON by it takes several times as long as policies do, and is only needed
        // where it says that a text is to be something else, an address say.
        let request = match plain_context(&context).map(&ask) {
            Some(Ok(request)) => request,
            _ => {
                let whole = Value::Object(context.clone());
                let read = Context::from_json_value(whole, Some((&self.cedar_schema, &action)));
                ask(read.map_err(|error| misfit(&error))?)?
            }
        };
        let misfit = |error: &dyn std::fmt::Display| ActionError::Entities(error.to_string());
        let given = self.own_actions.entities(asked.entities)?;
        let plain = given.iter().map(|entity| self.own_actions.plain_entity(entity)).collect::<Option<Vec<Entity>>>();
        // Of writ's own entities the schema was made; what the asker says is held against it. Two accounts can have a team in
        // common, which is then the same.
        let own = account.map_or_else(Entities::empty, |policy| policy.entities.clone());
        let further = about.iter().flat_map(|about| about.entities.iter()).chain(self.own_actions.actions.iter());
        let own = match further.cloned().collect::<Vec<_>>() {
            none if none.is_empty() => own,
            further => own.add_entities(further, None).map_err(|error| misfit(&error))?,
        };
        let entities = match plain {
            Some(plain) => own.add_entities(plain, schema).map_err(|error| misfit(&error))?,
            None => own.add_entities_from_json_value(json!(given), schema).map_err(|error| misfit(&error))?,
        };
        let judge = account.map_or(&*self.outsiders, |policy| &policy.shared.others);
        let evaluation = judge.judge(&self.authorizer, &request, &entities);
        Ok(ActionAnswer { evaluation, context, entities: given, until: self.action_until(state.now) })
    }

    /// The members of the state that an action's context declares.
    fn state_of(&self, asked: &ActionRequest<'_>, state: &AccountState) -> Map<String, Value> {
        let Some(declared) = self.own_actions.contexts.get(asked.action) else { return Map::new() };
        // Not the executable: nobody is connecting.
        let asks = |name: &str| name != "executable" && declared.contains(name);
        question::state_json(state, asked.approvals, &self.moment(state), asks)
    }

    /// The next moment at which time alone may change an answer. The times in policies for own actions are not analysed
    /// as those for connects are: what asks for `now` may change at once, what asks for the clock with the next minute.
    fn action_until(&self, now: Timestamp) -> Option<Timestamp> {
        if self.own_actions.now {
            return Some(now);
        }
        if self.own_actions.clock {
            return Timestamp::from_second((now.as_second() / 60 + 1) * 60).ok();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use writ_abi::{Reason, Verdict};

    use super::*;
    use crate::config::SourceFile;
    use crate::policy::fixture::{account, bundle, config, state};

    const NOON: &str = "2026-11-23T12:00:00Z";

    fn broker() -> Bundle {
        let mut config = config(
            vec![account("ci", &["platform"])],
            r#"@id("issue") @owner("o") @reason("r")
permit (principal in Team::"platform", action == Action::"issue", resource in Vault::"ci")
when { context.pipeline == "release" && context.risk < 50 };"#,
        );
        config.schemas = vec![SourceFile {
            name: "schema.d/broker.cedarschema".into(),
            text: "entity Vault;\nentity Secret in [Vault];\naction issue appliesTo { principal: [ServiceAccount], resource: [Secret], context: { pipeline: String, risk: Long, fresh: Set<String> } };".into(),
        }];
        bundle(&config)
    }

    fn ask(context: &Value, entities: &Value, risk: u8) -> Result<Evaluation, ActionError> {
        let action = "Action::\"issue\"";
        let principal = "ServiceAccount::\"ci\"";
        let approvals = &BTreeSet::new();
        let request = ActionRequest { principal, action, resource: "Secret::\"key\"", context, entities, approvals };
        broker().authorize(&request, &state(risk, NOON)).map(|answer| answer.evaluation)
    }

    fn vault() -> Value {
        json!([{"uid": {"type": "Secret", "id": "key"}, "attrs": {}, "parents": [{"type": "Vault", "id": "ci"}]}])
    }

    #[test]
    fn an_own_action_is_decided_with_the_live_state() {
        let release = json!({"pipeline": "release"});
        let allowed = ask(&release, &vault(), 10).unwrap();
        assert_eq!(
            (allowed.verdict, allowed.policies, allowed.reason),
            (Verdict::Allow, vec!["issue".into()], Reason::Policy)
        );
        assert_eq!(ask(&release, &vault(), 50).unwrap().verdict, Verdict::Deny);
        assert_eq!(ask(&release, &json!([]), 10).unwrap().verdict, Verdict::Deny, "not in the vault");
    }

    #[test]
    fn an_action_is_what_its_groups_are_whatever_is_said_of_the_resource() {
        let mut config = config(
            vec![account("ci", &["platform"])],
            r#"@id("handle") @owner("o") @reason("r")
permit (principal == ServiceAccount::"ci", action in Action::"handle", resource);"#,
        );
        config.schemas = vec![SourceFile {
            name: "schema.d/broker.cedarschema".into(),
            text: "entity Secret = { level?: Long };\naction handle;\naction issue in [handle] appliesTo { principal: [ServiceAccount], resource: [Secret], context: {} };".into(),
        }];
        let bundle = bundle(&config);
        for attributes in [json!({}), json!({ "level": 3 })] {
            let entities = json!([{"uid": {"type": "Secret", "id": "key"}, "attrs": attributes, "parents": []}]);
            let request = ActionRequest {
                principal: "ServiceAccount::\"ci\"",
                action: "Action::\"issue\"",
                resource: "Secret::\"key\"",
                context: &json!({}),
                entities: &entities,
                approvals: &BTreeSet::new(),
            };
            let answer = bundle.authorize(&request, &state(0, NOON)).unwrap();
            assert_eq!(answer.evaluation.verdict, Verdict::Allow, "{entities}");
        }
    }

    #[test]
    fn an_asker_cannot_state_the_risk_nor_the_account() {
        let boast = json!({"pipeline": "release", "risk": 0});
        assert_eq!(ask(&boast, &vault(), 90).unwrap().verdict, Verdict::Deny);
        let impostor = json!([{"uid": {"type": "ServiceAccount", "id": "ci"}, "attrs": {"name": "ci", "owner": "me", "executables": []}, "parents": []}]);
        assert!(matches!(ask(&boast, &impostor, 0), Err(ActionError::Entities(_))));
    }

    #[test]
    fn a_request_that_does_not_fit_the_schema_is_an_error_not_an_answer() {
        assert!(matches!(ask(&json!({}), &vault(), 0), Err(ActionError::Schema(_))));
        assert!(matches!(ask(&json!({"pipeline": 3}), &vault(), 0), Err(ActionError::Schema(_))));
    }

    #[test]
    fn what_the_schema_does_not_declare_is_left_out() {
        let chatty = json!({"pipeline": "release", "trace": "00-1"});
        let mut vault = vault();
        vault[0]["attrs"]["colour"] = json!("red");
        assert_eq!(ask(&chatty, &vault, 0).unwrap().verdict, Verdict::Allow);
    }

    #[test]
    fn a_principal_of_the_operators_own_type_is_judged_by_its_attributes() {
        let mut config = config(
            vec![account("ci", &[])],
            r#"@id("admins") @owner("o") @reason("r") @scope("read write") @max_ttl("15m")
permit (principal is user, action == Action::"write", resource) when { principal has role && principal.role == "admin" };"#,
        );
        config.schemas = vec![SourceFile {
            name: "schema.d/app.cedarschema".into(),
            text: "entity user = { role?: String };\nentity record;\naction write appliesTo { principal: [user], resource: [record] };".into(),
        }];
        let bundle = bundle(&config);
        let verdict = |role: &str| {
            let entities = json!([{"uid": {"type": "user", "id": "bob"}, "attrs": {"role": role}, "parents": []}]);
            let request = ActionRequest {
                principal: "user::\"bob\"",
                action: "Action::\"write\"",
                resource: "record::\"r\"",
                context: &json!({}),
                entities: &entities,
                approvals: &BTreeSet::new(),
            };
            bundle.authorize(&request, &state(0, NOON)).unwrap().evaluation.verdict
        };
        assert_eq!((verdict("admin"), verdict("guest")), (Verdict::Allow, Verdict::Deny));
        let policy = &bundle.policies()["admins"];
        assert_eq!(policy.scope.as_ref().unwrap().len(), 2);
        assert_eq!(policy.max_ttl, Some(std::time::Duration::from_secs(900)));
    }

    #[test]
    fn a_text_that_the_schema_takes_for_an_address_or_an_entity_is_one() {
        let mut config = config(
            vec![account("ci", &[])],
            r#"@id("inside") @owner("o") @reason("r")
permit (principal, action == Action::"fetch", resource)
when { context.from.isInRange(ip("10.0.0.0/8")) && context.by == Robot::"r2" && context.tags.contains("x") };"#,
        );
        config.schemas = vec![SourceFile {
            name: "schema.d/app.cedarschema".into(),
            text:
                "entity Robot;\nentity Page;\naction fetch appliesTo { principal: [ServiceAccount], resource: [Page], \
                   context: { from: __cedar::ipaddr, by: Robot, tags: Set<String> } };"
                    .into(),
        }];
        let bundle = bundle(&config);
        let verdict = |from: &str| {
            let context = json!({"from": from, "by": {"type": "Robot", "id": "r2"}, "tags": ["x", "y"]});
            let request = ActionRequest {
                principal: "ServiceAccount::\"ci\"",
                action: "Action::\"fetch\"",
                resource: "Page::\"p\"",
                context: &context,
                entities: &json!([{"uid": {"type": "Page", "id": "p"}, "attrs": {}, "parents": []}]),
                approvals: &BTreeSet::new(),
            };
            bundle.authorize(&request, &state(0, NOON)).map(|answer| answer.evaluation.verdict)
        };
        assert_eq!((verdict("10.1.2.3"), verdict("192.0.2.1")), (Ok(Verdict::Allow), Ok(Verdict::Deny)));
        assert!(matches!(verdict("nowhere"), Err(ActionError::Schema(_))));
    }

    #[test]
    fn evaluating_for_another_is_an_action_that_policy_permits() {
        let config = config(
            vec![account("broker", &[]), account("ci", &["platform"])],
            r#"@id("broker-asks") @owner("o") @reason("r")
permit (principal == ServiceAccount::"broker", action == Action::"evaluate", resource in Team::"platform");"#,
        );
        let bundle = bundle(&config);
        let may = |who: &str, whom: &str| {
            let (principal, resource) = (format!("ServiceAccount::\"{who}\""), format!("ServiceAccount::\"{whom}\""));
            let request = ActionRequest {
                principal: &principal,
                action: "Action::\"evaluate\"",
                resource: &resource,
                context: &json!({}),
                entities: &json!([]),
                approvals: &BTreeSet::new(),
            };
            bundle.authorize(&request, &state(0, NOON)).unwrap().evaluation.verdict
        };
        assert_eq!((may("broker", "ci"), may("ci", "broker")), (Verdict::Allow, Verdict::Deny));
    }
}
