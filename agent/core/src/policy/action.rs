//! The operator's own actions (`schema.d`): asked of the decision endpoint, answered by the same policies and engine.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Context, Entities, EntityUid, Request, SchemaFragment};
use serde_json::Value;
use thiserror::Error;
use writ_abi::Family;

use super::UNLISTED;
use super::bundle::Bundle;
use super::judge::Evaluation;
use super::question::{self, Question, Subject};
use super::state::AccountState;

/// A question about an action of the operator's own.
#[derive(Clone, Debug)]
pub struct ActionRequest<'a> {
    /// The account.
    pub account: &'a str,
    /// The action, as Cedar writes it: `Action::"issue"`.
    pub action: &'a str,
    /// The resource, as Cedar writes it: `Secret::"api-key"`.
    pub resource: &'a str,
    /// The context the asker knows, as an object. Where the schema declares members of the account's state (`risk`,
    /// `signals`, `fresh`, `now`, …), writ fills them in, whatever the asker says.
    pub context: &'a Value,
    /// Entities the asker knows, as `cedar authorize --entities` takes them. The account and its teams are writ's own.
    pub entities: &'a Value,
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

/// Which members of the state each action's context declares.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnActions(BTreeMap<String, BTreeSet<String>>);

impl OwnActions {
    /// Reads them off a schema's text. What cannot be read declares nothing: the schema check then names what is missing.
    pub(crate) fn of(schema: &str) -> Self {
        let json =
            SchemaFragment::from_cedarschema_str(schema).ok().and_then(|(schema, _)| schema.to_json_value().ok());
        let mut declared = BTreeMap::new();
        for (namespace, body) in json.as_ref().and_then(Value::as_object).into_iter().flatten() {
            for (action, definition) in body.get("actions").and_then(Value::as_object).into_iter().flatten() {
                let Some(mut context) = definition.pointer("/appliesTo/context") else { continue };
                let named = context.get("name").or_else(|| context.get("type")).and_then(Value::as_str);
                if let Some(common) = named.and_then(|name| body.get("commonTypes")?.get(name)) {
                    context = common;
                }
                let attributes = context.get("attributes").and_then(Value::as_object);
                let kind = if namespace.is_empty() { "Action".to_owned() } else { format!("{namespace}::Action") };
                let members = attributes.into_iter().flat_map(|attributes| attributes.keys().cloned()).collect();
                declared.insert(format!("{kind}::{}", super::schema::quoted(action)), members);
            }
        }
        Self(declared)
    }
}

impl Bundle {
    /// Asks Cedar about an action of the operator's own.
    pub fn authorize(&self, asked: &ActionRequest<'_>, state: &AccountState) -> Result<Evaluation, ActionError> {
        let account =
            self.accounts.get(asked.account).ok_or_else(|| ActionError::UnknownAccount(asked.account.to_owned()))?;
        if matches!(asked.action, "Action::\"connect\"" | "Action::\"open-socket\"") {
            return Err(ActionError::KernelAction(asked.action.to_owned()));
        }
        let entity = |name: &str| name.parse::<EntityUid>().map_err(|_| ActionError::NotAnEntity(name.to_owned()));
        let (action, resource) = (entity(asked.action)?, entity(asked.resource)?);
        // Only the state is taken from this question, and not the executable: nobody is connecting.
        let question = Question {
            account: &account.account,
            subject: Subject::OpenSocket(Family::Other),
            executable: UNLISTED,
            risk: state.risk,
            signals: &state.signals,
            fresh: &state.fresh,
            approvals: BTreeSet::new(),
            moment: self.moment(state),
        };
        let mut context = asked.context.clone();
        if let (Some(context), Some(declared)) = (context.as_object_mut(), self.own_actions.0.get(asked.action)) {
            let own =
                question.state_json().into_iter().filter(|(name, _)| *name != "executable" && declared.contains(*name));
            context.extend(own.map(|(name, value)| (name.to_owned(), value)));
        }
        let schema = Some(&self.cedar_schema);
        let misfit = |error: &dyn std::fmt::Display| ActionError::Schema(error.to_string());
        let context =
            Context::from_json_value(context, Some((&self.cedar_schema, &action))).map_err(|error| misfit(&error))?;
        let principal = question::uid(&self.names.account, asked.account);
        let request = Request::new(principal, action, resource, context, schema).map_err(|error| misfit(&error))?;
        let misfit = |error: &dyn std::fmt::Display| ActionError::Entities(error.to_string());
        let entities = Entities::from_json_value(asked.entities.clone(), schema).map_err(|error| misfit(&error))?;
        let entities =
            entities.add_entities(account.entities.iter().cloned(), schema).map_err(|error| misfit(&error))?;
        Ok(account.shared.others.judge(&self.authorizer, &request, &entities))
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
        let request = ActionRequest { account: "ci", action, resource: "Secret::\"key\"", context, entities };
        broker().authorize(&request, &state(risk, NOON))
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
}
