//! What becomes of a record when its document changes while the gate runs.
//!
//! Three versions meet: what the last document said, what the record has become since, and what the new document
//! says. A field that the new document says otherwise than the last is taken from it; a field that it leaves as it
//! was keeps what happened at run time. A revoked key stays revoked.

use crate::{auth::KeyRecord, tenant::TenantRecord};

/// Takes over the fields that differ between `$base` and `$new`.
macro_rules! take_changed {
    ($record:ident, $base:ident, $new:ident: $($field:ident)+) => {
        $(if $new.$field != $base.$field {
            $record.$field.clone_from(&$new.$field);
        })+
    };
}

/// The record with the version that it has now.
pub(super) fn tenant(
    base: Option<&TenantRecord>,
    current: Option<&TenantRecord>,
    new: &TenantRecord,
) -> TenantRecord {
    let Some(current) = current else {
        let mut record = new.clone();
        record.version = record.version.max(1);
        return record;
    };
    let mut record = current.clone();
    match base {
        Some(base) => {
            take_changed!(record, base, new: plan access billing_anchor pay_url route_hint);
        }
        // Made at run time, and now the document's.
        None => {
            record = new.clone();
            record.version = current.version;
        }
    }
    record
}

/// The record under the version after the present one.
pub(super) fn next_tenant(
    mut record: TenantRecord,
    current: Option<&TenantRecord>,
) -> TenantRecord {
    if let Some(current) = current {
        record.version = current.version.saturating_add(1);
    }
    record
}

/// The record with the version that it has now.
pub(super) fn key(
    base: Option<&KeyRecord>,
    current: Option<&KeyRecord>,
    new: &KeyRecord,
) -> KeyRecord {
    let Some(current) = current else {
        return new.clone();
    };
    let mut record = current.clone();
    match base {
        Some(base) => {
            take_changed!(record, base, new: id tenant environment shown counts_as plan scopes);
            take_changed!(record, base, new: allowed_networks limits created_at expires_at revoked_at);
        }
        // Issued at run time, and now the document's, which may be older than a rotation.
        None => {
            record = new.clone();
            record.version = current.version;
            record.expires_at = match (new.expires_at, current.expires_at) {
                (Some(new), Some(current)) => Some(new.min(current)),
                (new, current) => new.or(current),
            };
        }
    }
    record.revoked_at = current.revoked_at.or(record.revoked_at);
    record
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::Timestamp,
        id::{KeyId, PlanName, TenantId},
        tenant::AccessState,
    };

    fn tenant_on(plan: &str) -> TenantRecord {
        TenantRecord::new(TenantId::new("acme").unwrap(), PlanName::new(plan).unwrap())
    }

    #[test]
    fn what_the_document_leaves_alone_keeps_what_happened_at_run_time() {
        let base = tenant_on("free");
        let mut current = base.clone();
        current.access = AccessState::Closed;
        current.version = 4;
        let merged = tenant(Some(&base), Some(&current), &tenant_on("pro"));
        assert_eq!(merged.access, AccessState::Closed);
        assert_eq!(merged.plan.as_str(), "pro");
        assert_eq!(tenant(Some(&base), Some(&current), &base), current);
        assert_eq!(
            tenant(None, Some(&current), &base).access,
            AccessState::Active
        );
    }

    #[test]
    fn no_document_revives_a_revoked_key_or_puts_off_its_end() {
        let id = KeyId::new("k").unwrap();
        let owner = TenantId::new("acme").unwrap();
        let base = KeyRecord::new(id, owner, Arc::from("x"), Timestamp::UNIX_EPOCH);
        let mut current = base.clone();
        current.expires_at = Some(Timestamp::from_unix_seconds(9));
        current.revoked_at = Some(Timestamp::from_unix_seconds(5));
        for base_of in [None, Some(&base)] {
            let merged = key(base_of, Some(&current), &base);
            assert_eq!(merged.revoked_at, current.revoked_at);
            assert_eq!(merged.expires_at, current.expires_at);
        }
    }
}
