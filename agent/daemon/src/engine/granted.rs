//! Grants as what they are to policy: permits of one account's own, archived beside the set they were added to.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use writ_core::config::SourceFile;
use writ_core::policy::{Bundle, Grant as PolicyGrant, GrantTarget};
use writ_core::replay::Manifest;
use writ_core::stance::GrantDestination;

use super::Engine;
use crate::kernel::InstallError;
use crate::log::archive_put;

impl Engine {
    /// The accounts with a live grant.
    pub(super) fn accounts_with_grants(&self, now: Timestamp) -> BTreeSet<String> {
        let live = self.live.grants().all(now).filter(|grant| grant.is_live(now));
        live.map(|grant| grant.account.clone()).collect()
    }

    /// The live grants of an account as policies.
    pub(super) fn grants_of(&self, account: &str, now: Timestamp) -> Vec<SourceFile> {
        let live = self.live.grants().all(now).filter(|grant| grant.is_live(now) && grant.account == account);
        live.map(|grant| policy_of(grant).source()).collect()
    }

    fn put(&self, content: &str) -> Result<String, InstallError> {
        archive_put(self.log.layout(), content.as_bytes())
            .map_err(|error| InstallError { table: "archive", error: error.to_string() })
    }

    /// Archives a set without grants as evaluated, so that a copied log replays by itself.
    pub(super) fn archive(&self, bundle: &Bundle) -> Result<Manifest, InstallError> {
        if let Some(parts) = self.base_parts.as_ref().filter(|_| self.base.digest() == bundle.digest()) {
            return Ok(parts.clone());
        }
        Ok(Manifest {
            policies: self.put(&bundle.archived_policies())?,
            enforced: self.put(&bundle.archived_enforced_policies())?,
            schema: self.put(bundle.archived_schema())?,
            entities: self.put(bundle.archived_entities())?,
            escalating: bundle.escalating().into_iter().map(str::to_owned).collect(),
            grants: Vec::new(),
        })
    }

    /// Archives the manifest that names a set's parts. Its digest is the `policy_digest` of records.
    pub(super) fn archive_manifest(&self, parts: &Manifest) -> Result<String, InstallError> {
        let text = serde_json::to_string(parts)
            .map_err(|error| InstallError { table: "archive", error: error.to_string() })?;
        self.put(&text)
    }

    /// Archives a set with the grants of one account: what decides about it.
    pub(super) fn archive_granted(
        &self,
        parts: &Manifest,
        bundle: &Bundle,
        account: &str,
    ) -> Result<String, InstallError> {
        let text = bundle.archived_grants(account);
        let grants = if text.is_empty() { Vec::new() } else { vec![self.put(&text)?] };
        self.archive_manifest(&Manifest { grants, ..parts.clone() })
    }

    /// Archives a set with every grant there is.
    pub(super) fn archive_all(&self, parts: &Manifest, bundle: &Arc<Bundle>) -> Result<String, InstallError> {
        let texts = bundle.granted_accounts().map(|account| self.put(&bundle.archived_grants(account)));
        self.archive_manifest(&Manifest { grants: texts.collect::<Result<_, _>>()?, ..parts.clone() })
    }
}

fn policy_of(grant: &writ_core::stance::Grant) -> PolicyGrant {
    PolicyGrant {
        id: grant.id.clone(),
        account: grant.account.clone(),
        target: match &grant.destination {
            GrantDestination::Named(name) => GrantTarget::Destination(name.clone()),
            GrantDestination::Endpoint { addresses, port, protocol } => {
                GrantTarget::Endpoint { addresses: *addresses, port: *port, protocol: Some(*protocol) }
            }
        },
        executable: grant.executable.clone(),
        expires: grant.expires,
        approver: grant.approver.name.clone().unwrap_or_else(|| grant.approver.uid.to_string()),
        reason: grant.reason.clone(),
    }
}
